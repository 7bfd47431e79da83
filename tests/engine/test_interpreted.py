"""The whole engine as Python: compiled kernels compute what is written."""

from __future__ import annotations

import numpy as np
import pytest
from models import compile_model, simulate

from scglmm.engine.fit import fit


@pytest.mark.parametrize(("kind", "per_donor", "joint"), [("one", 1, False), ("crossed", 2, True)])
def test_fit(kind, per_donor, joint, interpret):
    cells = simulate(kind, 2, n_donors=8, per_donor=per_donor, cells=4)
    model = compile_model(cells)
    arguments = (model.data, model.structure, model.X, joint, np.zeros(model.p))
    compiled = fit(*arguments)
    assert not compiled.failed
    interpret()
    with np.errstate(all="ignore"):
        found = fit(*arguments)
    assert found.status == compiled.status
    assert found.value == pytest.approx(compiled.value, abs=1e-9)
    assert found.psi == pytest.approx(compiled.psi, abs=1e-6)
    assert found.hessian == pytest.approx(compiled.hessian, rel=1e-5, abs=1e-5)
    assert found.d_covariance == pytest.approx(compiled.d_covariance, rel=1e-5, abs=1e-7)
