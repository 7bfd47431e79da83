"""The simulated models of `tests/models.py`, importable as `models`, and a way to run kernels as Python."""

from __future__ import annotations

import importlib
import importlib.util
import math
import pkgutil
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

import scglmm.engine
from scglmm.engine.boundary import variance_derivative
from scglmm.engine.fit import fit

if "models" not in sys.modules:
    spec = importlib.util.spec_from_file_location("models", Path(__file__).parents[1] / "models.py")
    sys.modules["models"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["models"])
models = sys.modules["models"]


@pytest.fixture(scope="session")
def compiled():
    """Compile the entries: what `as_python` leaves compiled must be so before its kernels are taken away."""
    cells = models.simulate("one", 0)
    model = models.compile_model(cells)
    for joint in (False, True):
        fit(model.data, model.structure, model.X, joint, np.zeros(cells.X.shape[1]))
        variance_derivative(model.structure, model.X, joint, 0, 1, model.work)


PLAIN = {"log1p": math.log1p, "exp": math.exp}  # in place of those that look at the bits of numbers


def _interpret(monkeypatch: pytest.MonkeyPatch, *, entries: bool) -> None:
    """Put the Python form of kernels, and of entries, into all modules of the engine."""
    for info in pkgutil.iter_modules(scglmm.engine.__path__, "scglmm.engine."):
        module = importlib.import_module(info.name)
        for name, value in list(vars(module).items()):
            if isinstance(value, Dispatcher) and (entries or value.targetoptions.get("no_cpython_wrapper")):
                monkeypatch.setattr(module, name, PLAIN.get(name, value.py_func))


@pytest.fixture
def as_python(compiled, monkeypatch):
    """Let the kernels run as Python.

    Those that cannot be called from Python (calling one ends the process) become `py_func` in all modules; entries
    stay compiled.
    """
    _interpret(monkeypatch, entries=False)


@pytest.fixture
def interpret(monkeypatch):
    """Call it to let everything run as Python from then on, entries as well: slow."""
    return lambda: _interpret(monkeypatch, entries=True)
