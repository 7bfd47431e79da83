"""`strategies.py` and `conduct.py`, importable under these names, and a quiet logger."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import scanpy as sc

for name in ("strategies", "conduct"):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    """No progress bars and no logs: thousands of runs."""
    before = sc.settings.verbosity
    sc.settings.verbosity = 0
    yield
    sc.settings.verbosity = before
