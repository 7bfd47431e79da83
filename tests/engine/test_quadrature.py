"""Adaptive Gauss-Hermite quadrature: against numerical integration and differences."""

from __future__ import annotations

import numpy as np
import pytest
from models import CASES, Family, case, compile_model, richardson, simulate
from scipy.integrate import quad
from scipy.special import logsumexp

from scglmm.engine.families import NB2
from scglmm.engine.quadrature import quadrature, rule

NAMES = ["nbinom2", *CASES]


def model_of(name: str, kind: str = "one"):
    if name == "nbinom2":
        cells = simulate(kind, 5, intercept=-0.5)
        return compile_model(cells), cells, np.empty(0), None
    model, dense, zi = case(name, kind, 5)
    return model, dense.cells, zi, dense


def evaluate(model, n_quad: int, par: np.ndarray):
    gradient = np.empty(par.size)
    points = rule(n_quad)
    v, beta = np.zeros(model.q), np.zeros(model.p)
    value = quadrature(model.data, model.structure, model.X, *points, par, beta, v, gradient, model.work)
    return value, gradient


@pytest.mark.parametrize("name", NAMES)
def test_one_point_is_laplace(name):
    model, _, zi, _ = model_of(name)
    par = np.r_[0.2, 0.3, -0.2, zi, 0.7, 0.4]
    value, gradient = evaluate(model, 1, par)
    expected, expected_gradient, *_ = model.evaluate(par, joint=False)
    assert value == pytest.approx(expected, rel=1e-12)
    assert gradient == pytest.approx(expected_gradient, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("n_quad", [3, 10])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_against_differences(name, n_quad):
    model, _, zi, _ = model_of(name)
    par = np.r_[0.2, 0.3, -0.2, zi, -0.7, 0.4]
    _, gradient = evaluate(model, n_quad, par)
    expected = richardson(lambda x: evaluate(model, n_quad, x)[0], par)
    assert np.abs(gradient - expected).max() <= 1e-6 * (1 + np.abs(gradient).max())


@pytest.mark.parametrize("sigma", [0.3, 1.5])
@pytest.mark.parametrize("name", NAMES)
def test_value_against_numerical_integration(name, sigma):
    model, cells, zi, dense = model_of(name)
    beta, log_theta = np.array([0.2, 0.3, -0.2]), 0.4
    value, _ = evaluate(model, 40, np.r_[beta, zi, sigma, log_theta])
    if dense is None:
        dense = Family(cells, NB2, np.empty((cells.y.size, 0)))
    dense.zi = zi
    donor, z = cells.terms[0][0], cells.terms[0][2][:, 0]
    base = cells.offset + cells.X @ beta
    total = 0.0
    for level in range(cells.terms[0][1]):
        at = donor == level

        def log_density(u: float, at=at) -> float:
            return dense.cell(base + sigma * u * z, np.exp(log_theta))[at].sum() - 0.5 * u * u

        grid = np.linspace(-9, 9, 721)
        logs = np.array([log_density(u) for u in grid])
        top, mode = logs.max(), grid[logs.argmax()]
        area, _ = quad(
            lambda u, f=log_density, top=top: np.exp(f(u) - top), mode - 6, mode + 6, epsabs=1e-13, limit=400
        )
        total += top + np.log(area) - 0.5 * np.log(2 * np.pi)
        assert abs(logsumexp(logs) + np.log(18 / 720) - top - np.log(area)) < 1e-3
    assert value == pytest.approx(total, abs=1e-6)
