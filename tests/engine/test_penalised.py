from __future__ import annotations

import numpy as np
import pytest
from models import KINDS, Dense, compile_model, simulate

from scglmm.engine import penalised
from scglmm.engine.layout import H

DESIGNS = [*KINDS]


def dense_rows(model, cells, psi: np.ndarray) -> np.ndarray:
    """Z Lambda on the strata, effects in their new order."""
    first = np.searchsorted(cells.stratum, np.arange(model.X.shape[0]))
    dense = Dense(cells)
    rows = np.zeros((model.X.shape[0], model.q))
    rows[:, model.order] = (dense.Z @ dense.root(psi))[first]
    return rows


@pytest.fixture
def state(as_python, request):
    """A model, psi, and scratch filled with Z Lambda and curvatures."""
    cells = simulate(request.param, n_donors=5, per_donor=4)
    model = compile_model(cells)
    rng = np.random.default_rng(1)
    psi = rng.normal(size=model.n_psi)
    penalised.scaled_rows(model.structure, psi, model.work.zl)
    model.work.strata[H] = rng.uniform(0.2, 3, model.X.shape[0])
    return model, dense_rows(model, cells, psi)


def assembled(model, joint: bool) -> float:
    w, structure = model.work, model.structure
    penalised.assemble(structure.z_column, structure.place, model.X, w.zl, w.strata, joint, w.values, w.fixed, w.schur)
    return penalised.factor_joint(structure.starts, structure.entries, joint, w.values, w.fixed, w.schur, w.effects[0])


@pytest.mark.parametrize("state", DESIGNS, indirect=True)
def test_scaled_rows(state):
    model, rows = state
    for s in range(model.X.shape[0]):
        found = np.zeros(model.q)
        np.add.at(found, model.structure.z_column[s], model.work.zl[s])
        assert found == pytest.approx(rows[s], abs=1e-14)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("state", DESIGNS, indirect=True)
def test_determinant_and_solution(state, joint):
    model, rows = state
    h = model.work.strata[H]
    B = np.hstack([rows, model.X]) if joint else rows
    hessian = (B * h[:, None]).T @ B
    hessian[: model.q, : model.q] += np.eye(model.q)
    log_det = assembled(model, joint)
    assert log_det == pytest.approx(np.linalg.slogdet(hessian)[1], rel=1e-12, abs=1e-12)
    if joint:
        covariance = np.empty((model.p, model.p))
        penalised.cholesky_inverse(model.work.schur[0], covariance)
        assert covariance == pytest.approx(np.linalg.inv(hessian)[model.q :, model.q :], rel=1e-9)

    rng = np.random.default_rng(2)
    rhs, rhs_beta = rng.normal(size=(model.q, 1)), rng.normal(size=model.p)
    right = np.concatenate([rhs[:, 0], rhs_beta]) if joint else rhs[:, 0].copy()
    before = rhs_beta.copy()
    w, structure = model.work, model.structure
    penalised.solve_joint(structure.starts, structure.entries, joint, w.values, w.fixed, w.schur, rhs, rhs_beta)
    found = np.concatenate([rhs[:, 0], rhs_beta]) if joint else rhs[:, 0]
    assert hessian @ found == pytest.approx(right, abs=1e-10)
    if not joint:
        assert (rhs_beta == before).all()


@pytest.mark.parametrize("state", ["one"], indirect=True)
def test_not_positive_definite(state):
    model, _ = state
    model.work.strata[H] = -1e3
    assert np.isnan(assembled(model, False))
    model.work.strata[H] = 0.0
    assert assembled(model, False) == 0.0
    assert np.isnan(assembled(model, True))  # nothing is known about beta


def test_cholesky(as_python):
    rng = np.random.default_rng(3)
    for p in (0, 1, 4):
        a = rng.normal(size=(p, p))
        a = a @ a.T + np.eye(p)
        chol = a.copy()
        assert penalised.cholesky(chol) == pytest.approx(np.linalg.slogdet(a)[1], abs=1e-12)
        assert np.tril(chol) == pytest.approx(np.linalg.cholesky(a), abs=1e-12)
        x = rng.normal(size=p)
        b = a @ x
        penalised.cholesky_solve(chol, b)
        assert b == pytest.approx(x, abs=1e-10)
        inverse = np.empty((p, p))
        penalised.cholesky_inverse(chol, inverse)
        assert inverse @ a == pytest.approx(np.eye(p), abs=1e-10)
    assert np.isnan(penalised.cholesky(np.array([[1.0, 2.0], [2.0, 1.0]])))
