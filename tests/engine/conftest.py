"""The simulated models of `tests/models.py`, importable as `models`, and a way to run kernels as Python."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from numba.core.dispatcher import Dispatcher

if "models" not in sys.modules:
    spec = importlib.util.spec_from_file_location("models", Path(__file__).parents[1] / "models.py")
    sys.modules["models"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["models"])


@pytest.fixture
def as_python(monkeypatch):
    """Let the kernels of some modules run as Python: those that cannot be called from Python become `py_func`."""

    def replace(*modules: ModuleType) -> None:
        for module in modules:
            for name, value in vars(module).items():
                if isinstance(value, Dispatcher) and value.targetoptions.get("no_cpython_wrapper"):
                    monkeypatch.setattr(module, name, value.py_func)

    return replace
