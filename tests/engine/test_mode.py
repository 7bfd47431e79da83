from __future__ import annotations

import numpy as np
import pytest
from models import KINDS, Dense, compile_model, simulate

DESIGNS = [*KINDS]


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("kind", DESIGNS)
def test_mode_against_dense(kind, joint):
    cells = simulate(kind)
    model, dense = compile_model(cells), Dense(cells)
    psi, beta, log_theta = np.array(KINDS[kind]), np.array([0.6, 0.3, -0.1]), 0.4
    par = np.r_[[] if joint else beta, psi, log_theta]
    _, _, found_beta, found_v = model.evaluate(par, joint=joint, beta=beta)
    ZL = dense.Z @ dense.root(psi)
    base = cells.offset if joint else cells.offset + cells.X @ beta
    B = np.hstack([ZL, cells.X]) if joint else ZL
    x, _ = dense.mode(B, base, np.exp(log_theta), np.zeros(B.shape[1])) if B.shape[1] else (np.empty(0), None)
    assert found_v[model.order] == pytest.approx(x[: model.q], abs=1e-8)
    assert found_beta == pytest.approx(x[model.q :] if joint else beta, abs=1e-8)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("kind", DESIGNS)
@pytest.mark.parametrize("theta", [0.1, 3.0, 1e8])
def test_mode_from_far_away(kind, joint, theta):
    cells = simulate(kind, 1)
    model = compile_model(cells)
    rng = np.random.default_rng(5)
    par = np.r_[[] if joint else [0.6, 0.3, -0.1], np.array(KINDS[kind]) * 2, np.log(theta)]
    value, gradient, beta, v = model.evaluate(par, joint=joint, beta=np.array([0.6, 0.3, -0.1]))
    for shift in (-5.0, 5.0):
        start = np.array([0.6, 0.3, -0.1]) + shift * np.array([1, -1, 0.5])
        again = model.evaluate(par, joint=joint, beta=start, v=rng.normal(0, 3, model.q))
        assert again[0] == pytest.approx(value, rel=1e-11)
        assert again[1] == pytest.approx(gradient, abs=1e-6 * (1 + np.abs(gradient).max()))
        assert again[2] == pytest.approx(beta, abs=1e-6)
        assert again[3] == pytest.approx(v, abs=1e-6)


@pytest.mark.parametrize("shift", [-40.0, -15.0, 15.0, 40.0])
def test_an_intercept_that_is_off_by_far(shift):
    model = compile_model(simulate("nested", 2))
    par = np.array([0.5, 0.4, 0.7])
    value, *_ = model.evaluate(par, joint=True)
    assert model.evaluate(par, joint=True, beta=[shift, 0, 0])[0] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_counts_of_any_size(scale):
    cells = simulate("one", 3, intercept=np.log(scale) + 1, n_donors=40, per_donor=20)
    model, dense = compile_model(cells), Dense(cells)
    par = np.array([np.log(scale) + 1, 0.2, 0.1, 0.8, 0.3])
    assert model.evaluate(par, joint=False)[0] == pytest.approx(dense.criterion(par, joint=False), rel=1e-10)


def test_a_donor_without_counts():
    cells = simulate("one", 4)
    y = cells.y.copy()
    y[cells.terms[0][0] == 3] = 0
    model, dense = compile_model(cells.subset(y)), Dense(cells.subset(y))
    par = np.array([3.0, 0.4])
    value, _, _, v = model.evaluate(par, joint=True)
    assert value == pytest.approx(dense.criterion(par, joint=True), rel=1e-10)
    assert v[model.order[3]] < -0.5
