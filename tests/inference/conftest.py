"""Models of `tests/models.py` fitted through the layers below `tl`, importable as `fitting`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for name in ("models", "fitting"):
    if name not in sys.modules:
        folder = Path(__file__).parent if name == "fitting" else Path(__file__).parents[1]
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
