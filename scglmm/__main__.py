"""``python -m scglmm``: the command line."""

from __future__ import annotations

from scglmm.cli import main

if __name__ == "__main__":
    main()
