"""``python -m benchmarks.stress``."""

from .run import main

main()
