from __future__ import annotations

import numpy as np
import pytest
from models import KINDS, compile_model, richardson, simulate

from scglmm.engine import curvature

BOTH = pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])


def state(kind: str, joint: bool):
    model = compile_model(simulate(kind, 1))
    par = np.r_[[] if joint else [0.6, 0.5, -0.3], KINDS[kind], 0.5]
    _, gradient, beta, v = model.evaluate(par, joint=joint)
    return model, par, gradient, beta, v


def hessian_of(model, par, gradient, beta, v, joint, *, central=True, free=None):
    n = par.size
    free = np.ones(n, bool) if free is None else free
    d_covariance, d_beta = np.zeros((n, model.p, model.p)), np.zeros((n, model.p))
    _, gradient, beta, v = model.evaluate(par, joint=joint, beta=beta, v=v)  # a Hessian overwrites the scratch arrays
    result = curvature.hessian(
        model.data, model.structure, model.X, joint, par.copy(), free, central, beta, v, gradient, model.work,
        d_covariance, d_beta, np.zeros((n, v.size)),
    )  # fmt: skip
    return result, d_covariance, d_beta


@BOTH
@pytest.mark.parametrize("kind", ["none", "one", "crossed", "slope"])
def test_hessian_against_differences(kind, joint, as_python):
    model, par, gradient, beta, v = state(kind, joint)
    found, d_covariance, d_beta = hessian_of(model, par, gradient, beta, v, joint)

    def at(x: np.ndarray, what: int) -> np.ndarray:
        return model.evaluate(x, joint=joint, beta=beta, v=v)[what]

    expected = np.array([richardson(lambda x, i=i: at(x, 1)[i], par, 0.01) for i in range(par.size)])
    assert found == pytest.approx(expected, rel=2e-6, abs=2e-6 * np.abs(expected).max())
    assert (found == found.T).all()
    if not joint:
        return
    for c in range(model.p):
        assert d_beta[:, c] == pytest.approx(richardson(lambda x, c=c: at(x, 2)[c], par, 0.01), rel=1e-5, abs=1e-6)

    def covariance(x: np.ndarray) -> np.ndarray:
        at(x, 0)
        return model.work.schur[1].copy()

    for c in range(model.p):
        for d in range(model.p):
            expected = richardson(lambda x, c=c, d=d: covariance(x)[c, d], par, 0.01)
            assert d_covariance[:, c, d] == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("central", [False, True])
def test_the_block_of_beta_where_every_level_is_a_stratum(central, as_python):
    """Written out there, not differences: exact also in the rough Hessian."""
    model = compile_model(simulate("one", 3, n_donors=9, per_donor=1, cells=6))
    assert model.X.shape[0] == 9
    par = np.r_[0.6, 0.5, -0.3, 0.9, 0.5]
    _, gradient, beta, v = model.evaluate(par, joint=False)
    found, *_ = hessian_of(model, par, gradient, beta, v, False, central=central)

    def at(x: np.ndarray) -> np.ndarray:
        return model.evaluate(x, joint=False, beta=beta, v=v)[1][:3]

    expected = np.array([richardson(lambda x, i=i: at(x)[i], par, 0.01)[:3] for i in range(3)])
    assert found[:3, :3] == pytest.approx(expected, rel=1e-8, abs=1e-8 * np.abs(expected).max())


@BOTH
def test_rows_of_fixed_parameters_are_zero(joint, as_python):
    model, par, gradient, beta, v = state("crossed", joint)
    free = np.ones(par.size, bool)
    free[[-2, -1]] = False
    full, *_ = hessian_of(model, par, gradient, beta, v, joint)
    found, d_covariance, d_beta = hessian_of(model, par, gradient, beta, v, joint, free=free)
    assert found[np.ix_(free, free)] == pytest.approx(full[np.ix_(free, free)], rel=1e-6, abs=1e-6)
    assert not found[~free].any()
    assert not found[:, ~free].any()
    assert not d_covariance[~free].any()
    assert not d_beta[~free].any()


@BOTH
def test_rough_hessian_is_close(joint, as_python):
    model, par, gradient, beta, v = state("slope", joint)
    exact, _, exact_d_beta = hessian_of(model, par, gradient, beta, v, joint)
    rough, d_covariance, d_beta = hessian_of(model, par, gradient, beta, v, joint, central=False)
    size = np.sqrt(np.outer(np.abs(np.diag(exact)), np.abs(np.diag(exact))))
    assert np.abs((rough - exact) / size).max() < 0.01
    assert not d_covariance.any()
    assert d_beta == pytest.approx(exact_d_beta, rel=1e-10)  # no difference: the mode's move by itself


@BOTH
def test_the_move_of_the_mode_against_differences(joint, as_python):
    model, par, gradient, beta, v = state("crossed", joint)
    _, gradient, beta, v = model.evaluate(par, joint=joint, beta=beta, v=v)
    n = par.size
    d_v, d_covariance = np.full((n, v.size), np.nan), np.zeros((n, model.p, model.p))
    curvature.hessian(
        model.data, model.structure, model.X, joint, par.copy(), np.ones(n, bool), False, beta, v, gradient, model.work,
        d_covariance, np.zeros((n, model.p)), d_v,
    )  # fmt: skip
    for k in range(v.size):
        expected = richardson(lambda x, k=k: model.evaluate(x, joint=joint, beta=beta, v=v)[3][k], par, 0.01)
        assert d_v[:, k] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_positive_inverse(as_python):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 4)) * np.array([1, 10, 100, 1000])
    hessian = -(a.T @ a) - np.diag([1, 100, 1e4, 1e6])
    free = np.ones(4, bool)
    assert curvature.positive_inverse(hessian, free) == pytest.approx(np.linalg.inv(-hessian), rel=1e-9)

    indefinite = hessian.copy()
    indefinite[0, 0] *= -1
    found = curvature.positive_inverse(indefinite, free)
    assert (np.linalg.eigvalsh(found) > 0).all()

    free[1] = False
    zero = hessian.copy()
    zero[1] = zero[:, 1] = 0
    found = curvature.positive_inverse(zero, free)
    assert not found[1].any()
    assert not found[:, 1].any()
    at = np.ix_(free, free)
    assert found[at] == pytest.approx(np.linalg.inv(-hessian[at]), rel=1e-9)

    broken = np.full((4, 4), np.nan)
    assert np.isfinite(curvature.positive_inverse(broken, free)).all()


def test_negative_definite(as_python):
    free = np.ones(3, bool)
    negative = -np.diag([1.0, 1e-6, 1e6])

    def is_negative(a: np.ndarray) -> bool:
        return bool(curvature.negative_definite(a, free))

    assert is_negative(negative)
    assert not is_negative(-negative)
    assert not is_negative(negative * np.nan)
    saddle = negative.copy()
    saddle[0, 1] = saddle[1, 0] = 2e-3
    assert not is_negative(saddle)
    positive = negative.copy()
    positive[1, 1] = 1e-6
    assert not is_negative(positive)
    free[1] = False
    assert is_negative(positive)
