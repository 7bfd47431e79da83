from __future__ import annotations

import numpy as np
import pytest
from models import KINDS, Cells, Dense, compile_model, richardson, simulate
from scipy.integrate import quad
from scipy.stats import nbinom, norm

from scglmm.engine.laplace import laplace


def random_point(kind: str, joint: bool, seed: int) -> np.ndarray:
    """Parameters off the optimum; diagonals of Lambda of either sign."""
    rng = np.random.default_rng(seed)
    psi = np.array(KINDS[kind]) * rng.choice([-1, 1], len(KINDS[kind])) * rng.uniform(0.3, 2, len(KINDS[kind]))
    beta = np.array([0.7, 0.4, -0.2]) + rng.normal(0, 0.5, 3)
    return np.r_[[] if joint else beta, psi, rng.uniform(-1.5, 3)]


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
@pytest.mark.parametrize("kind", KINDS)
def test_value_against_dense(kind, joint):
    cells = simulate(kind)
    model, dense = compile_model(cells), Dense(cells)
    for seed in range(4):
        par = random_point(kind, joint, seed)
        assert model.evaluate(par, joint=joint)[0] == pytest.approx(dense.criterion(par, joint=joint), rel=1e-9)


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_against_differences(kind, joint):
    model = compile_model(simulate(kind))
    for seed in range(4):
        par = random_point(kind, joint, seed)
        _, gradient, beta, v = model.evaluate(par, joint=joint)
        expected = richardson(lambda x, b=beta, v=v: model.evaluate(x, joint=joint, beta=b, v=v)[0], par)
        assert np.abs(gradient - expected).max() <= 1e-6 * (1 + np.abs(gradient).max())


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
@pytest.mark.parametrize("theta", [0.02, 1e3, 1e6])
def test_gradient_at_extreme_sizes(theta, joint):
    model = compile_model(simulate("slope", 1, intercept=2.0))
    par = np.r_[[] if joint else [1.8, 0.5, -0.3], 0.5, -0.3, 0.2, np.log(theta)]
    _, gradient, beta, v = model.evaluate(par, joint=joint)
    expected = richardson(lambda x: model.evaluate(x, joint=joint, beta=beta, v=v)[0], par)
    assert np.abs(gradient - expected).max() <= 1e-6 * (1 + np.abs(gradient).max())


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
def test_gradient_with_zero_variances(joint):
    model = compile_model(simulate("several", 2))
    par = np.r_[[] if joint else [0.6, 0.5, -0.3], 0.4, 0.2, 0.0, 0.0, 0.3, 0.5]
    _, gradient, beta, v = model.evaluate(par, joint=joint)
    expected = richardson(lambda x: model.evaluate(x, joint=joint, beta=beta, v=v)[0], par)
    assert np.abs(gradient - expected).max() <= 1e-6 * (1 + np.abs(gradient).max())
    zero = np.flatnonzero(par == 0)
    assert gradient[zero] == pytest.approx(0, abs=1e-12)  # whatever the data say


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
@pytest.mark.parametrize("kind", ["none", "several"])
def test_without_theta_the_rest_is_the_same(kind, joint):
    model = compile_model(simulate(kind))
    par = random_point(kind, joint, 1)
    _, full, *_ = model.evaluate(par, joint=joint)
    value, short, *_ = model.evaluate(par, joint=joint, with_theta=False)
    assert value == 0.0
    assert short[:-1].tolist() == full[:-1].tolist()


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
def test_signs_of_columns_of_lambda_do_not_matter(joint):
    model = compile_model(simulate("slope", 3))
    fixed = [] if joint else [0.6, 0.5, -0.3]
    values = [
        model.evaluate(np.r_[fixed, a * 0.5, a * 0.2, b * 0.3, 0.4], joint=joint)[0] for a in (-1, 1) for b in (-1, 1)
    ]
    assert values == pytest.approx([values[0]] * 4, rel=1e-13)


def test_reml_is_ml_integrated_over_the_fixed_effects():
    # With one coefficient and much data, ML as a function of it is nearly normal, and REML its integral.
    cells = simulate("one", 4, n_donors=30, per_donor=8, intercept=2.0)
    cells = Cells(cells.y, cells.offset, cells.X[:, :1], cells.terms, cells.stratum)
    model = compile_model(cells)
    par = np.array([0.4, 0.7])
    reml, _, beta, _ = model.evaluate(par, joint=True)
    width = 0.09
    grid = beta[0] + width * np.linspace(-8, 8, 401)
    ml = np.array([model.evaluate(np.r_[b, par], joint=False)[0] for b in grid])
    integral = ml.max() + np.log(np.trapezoid(np.exp(ml - ml.max()), grid))
    assert reml == pytest.approx(integral, abs=0.015)  # what is left of the skewness


@pytest.mark.parametrize(("mean", "tolerance"), [(0.0, 0.02), (3.0, 0.003)])
def test_laplace_is_close_to_the_marginal_likelihood(mean, tolerance):
    # The error of Laplace's approximation falls with the counts of a donor; per donor it is below the tolerance here.
    cells = simulate("one", 5, n_donors=8, per_donor=10, cells=3, intercept=mean)
    beta, sigma, theta = np.array([mean, 0.3, -0.2]), 0.6, 2.0
    value, *_ = compile_model(cells).evaluate(np.r_[beta, sigma, np.log(theta)], joint=False)
    donor, total = cells.terms[0][0], 0.0
    for d in range(8):
        y, base = cells.y[donor == d], (cells.offset + cells.X @ beta)[donor == d]

        def log_density(u: float, y=y, base=base) -> float:
            return nbinom.logpmf(y, theta, theta / (theta + np.exp(base + u))).sum() + norm.logpdf(u, scale=sigma)

        grid = np.linspace(-4, 4, 161)
        logs = np.array([log_density(u) for u in grid])
        top, at = logs.max(), grid[logs.argmax()]
        area, _ = quad(lambda u, f=log_density, top=top: np.exp(f(u) - top), at - 2, at + 2, epsabs=1e-9, limit=100)
        total += top + np.log(area)
    assert value == pytest.approx(total, abs=8 * tolerance)


def test_one_stratum_and_one_coefficient():
    y, offset = np.array([0.0, 2.0, 1.0, 5.0]), np.array([0.1, 0.2, -0.3, 0.0])
    cells = Cells(y, offset, np.ones((4, 1)), [], np.zeros(4, int))
    model, dense = compile_model(cells), Dense(cells)
    for joint, par in ((False, np.array([0.4, 0.2])), (True, np.array([0.2]))):
        value, gradient, *_ = model.evaluate(par, joint=joint)
        assert value == pytest.approx(dense.criterion(par, joint=joint), rel=1e-12)
        expected = richardson(lambda x, joint=joint: model.evaluate(x, joint=joint)[0], par)
        assert gradient == pytest.approx(expected, abs=1e-8)


def test_what_cannot_be_evaluated_is_nan():
    model = compile_model(simulate("one"))
    assert np.isnan(model.evaluate(np.array([np.nan, 0.3]), joint=True)[0])
    assert np.isnan(model.evaluate(np.array([0.5, np.nan]), joint=True)[0])
    # The next evaluation is not spoilt.
    assert np.isfinite(model.evaluate(np.array([0.5, 0.3]), joint=True)[0])


def test_beta_is_overwritten():
    model = compile_model(simulate("one"))
    par, beta = np.array([0.5, 0.4, -0.1, 0.5, 0.3]), np.full(3, 9.0)
    laplace(model.data, model.structure, model.X, False, True, par, beta, np.zeros(model.q), np.empty(5), model.work)
    assert beta.tolist() == par[:3].tolist()


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
def test_linear_predictors_too_large_to_compute_are_no_optimum(joint):
    # Beyond exp(300) means are cut off: a value there must not look like a likelihood that keeps rising.
    model = compile_model(simulate("one", 6))
    near = model.evaluate(np.r_[[] if joint else [0.7, 0.4, -0.2], 0.5, 0.3], joint=joint)[0]
    for far in (250.0, 400.0, 1000.0):
        value = model.evaluate(np.r_[[] if joint else [far, 0.0, 0.0], 0.5, -17.0], joint=joint, beta=[far, 0, 0])[0]
        assert np.isnan(value) or value < near
