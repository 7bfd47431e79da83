"""The whole engine as Python: compiled kernels compute what is written."""

from __future__ import annotations

import importlib
import math
import pkgutil

import numpy as np
import pytest
from models import compile_model, simulate
from numba.core.dispatcher import Dispatcher

import scglmm.engine
from scglmm.engine.fit import fit

PLAIN = {"log1p": math.log1p, "exp": math.exp}  # in place of those that look at the bits of numbers


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the Python form of every compiled function into all modules of the engine."""
    for info in pkgutil.iter_modules(scglmm.engine.__path__, "scglmm.engine."):
        module = importlib.import_module(info.name)
        for name, value in list(vars(module).items()):
            if isinstance(value, Dispatcher):
                monkeypatch.setattr(module, name, PLAIN.get(name, value.py_func))


@pytest.mark.parametrize(("kind", "per_donor", "joint"), [("one", 1, False), ("crossed", 2, True)])
def test_fit(kind, per_donor, joint, monkeypatch):
    cells = simulate(kind, 2, n_donors=8, per_donor=per_donor, cells=4)
    model = compile_model(cells)
    arguments = (model.data, model.structure, model.X, joint, np.zeros(model.p))
    compiled = fit(*arguments)
    assert not compiled.failed
    interpret(monkeypatch)
    with np.errstate(all="ignore"):
        found = fit(*arguments)
    assert found.status == compiled.status
    assert found.value == pytest.approx(compiled.value, abs=1e-9)
    assert found.psi == pytest.approx(compiled.psi, abs=1e-6)
    assert found.hessian == pytest.approx(compiled.hessian, rel=1e-5, abs=1e-5)
    assert found.d_covariance == pytest.approx(compiled.d_covariance, rel=1e-5, abs=1e-7)
