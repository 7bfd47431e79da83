"""The REML criterion at given standard deviations, against dense matrices and scipy's search over theta."""

from __future__ import annotations

import models
import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from scglmm.engine.laplace import laplace
from scglmm.engine.optimise import LOG_THETA_MAX
from scglmm.engine.profile import profile


def run(cells, psi, *, log_theta=0.5, curvature=0.0, free=True, least=-np.inf):
    model = models.compile_model(cells)
    n, p = len(psi), model.p
    value, beta, vcov = np.empty(n), np.empty((n, p)), np.empty((n, p, p))
    starts = np.full(n, log_theta)
    profile(
        model.data, model.structure, model.X, np.array(psi, float), np.zeros(len(psi[0])), np.ones(len(psi[0])), starts,
        curvature, np.bool_(free), 0.03, least, np.zeros(p), np.zeros(model.q), model.work, value, beta, vcov,
    )  # fmt: skip
    return model, value, beta, vcov


@pytest.mark.parametrize("curvature", [0.0, -3.0])
@pytest.mark.parametrize(
    ("kind", "psi"),
    [
        ("one", [[0.0], [0.3], [0.8], [3.0]]),
        ("nested", [[0.0, 0.2], [0.6, 0.0], [0.4, 0.5]]),
        ("crossed", [[0.5, 0.3]]),
    ],
)
def test_maximised_over_theta(kind, psi, curvature):
    cells = models.simulate(kind, seed=4, cells=3, intercept=1.0, theta=1.5)
    _, value, _, _ = run(cells, psi, curvature=curvature)
    dense = models.Dense(cells)
    for at, found in zip(psi, value, strict=True):
        best = minimize_scalar(
            lambda t, at=at: -dense.criterion(np.array([*at, t]), joint=True), bounds=(-4, 6), method="bounded",
            options={"xatol": 1e-7},
        )  # fmt: skip
        # What another Newton step promises is added without taking it: not exact, but close.
        np.testing.assert_allclose(found, -best.fun, atol=5e-3)
        assert found < -best.fun + 5e-3


def test_at_the_poisson_limit():
    """With theta held the value and the fixed effects are the engine's own, and the covariance that of beta."""
    cells = models.simulate("one", seed=5, theta=np.inf)
    psi = [[0.2], [0.5]]
    model, value, beta, vcov = run(cells, psi, log_theta=LOG_THETA_MAX, free=False)
    for k, at in enumerate(psi):
        par = np.array([*at, LOG_THETA_MAX])
        mode, v, gradient = np.zeros(model.p), np.zeros(model.q), np.zeros(par.size)
        direct = laplace(
            model.data, model.structure, model.X, np.bool_(True), np.bool_(True), par, mode, v, gradient, model.work
        )
        np.testing.assert_allclose(value[k], direct, rtol=1e-11)
        # The fixed effects are at the maximum of the Laplace likelihood, which is near the joint mode here.
        np.testing.assert_allclose(beta[k], mode, atol=0.02)
        np.testing.assert_allclose(vcov[k], model.work.schur[1], rtol=1e-6)


def test_a_bad_start_is_overcome():
    """What one row leaves behind does not spoil the next."""
    cells = models.simulate("one", seed=6)
    _, there, _, _ = run(cells, [[0.4]])
    _, value, _, _ = run(cells, [[30.0], [0.4], [0.0], [0.4]])
    np.testing.assert_allclose(value[[1, 3]], there[0], atol=5e-3)


@pytest.mark.parametrize(("kind", "psi"), [("one", [1.0]), ("nested", [0.8, 0.5]), ("crossed", [0.9, 0.4])])
def test_fixed_effects_maximise_the_laplace_likelihood(kind, psi):
    """Where donors differ much and counts are few the joint mode is far off; one Newton step makes up for it."""
    cells = models.simulate(kind, 1, per_donor=3, cells=1, intercept=-0.3, psi=psi)
    model, _, beta, _ = run(cells, [psi], log_theta=0.7, free=False)
    _, _, joint, _ = model.evaluate(np.array([*psi, 0.7]), joint=np.bool_(True))
    dense = models.Dense(cells)
    found = minimize(
        lambda b: -dense.criterion(np.array([*b, *psi, 0.7]), joint=False), joint, method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-10, "maxiter": 2000},
    )  # fmt: skip
    assert np.abs(found.x - joint).max() > 0.03
    assert np.abs(beta[0] - found.x).max() < 0.1 * np.abs(found.x - joint).max()


def test_rows_after_a_low_one_are_left_out():
    cells = models.simulate("one", seed=4, cells=3, intercept=1.0, theta=1.5)
    psi = [[0.5], [3.0], [9.0], [0.4]]
    _, value, beta, _ = run(cells, psi)
    assert value[0] > value[1] > value[2]
    _, some, their_beta, _ = run(cells, psi, least=value[1] + 1e-6)
    np.testing.assert_array_equal(some[:2], value[:2])
    np.testing.assert_array_equal(their_beta[:2], beta[:2])
    assert np.isnan(some[2:]).all()
