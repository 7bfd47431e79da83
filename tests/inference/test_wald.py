"""Degrees of freedom and covariances against a dense Laplace criterion and numerical derivatives; p-values."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pandas as pd
import pytest
from fitting import fit_cells, fit_counts, frame_of, intercepts
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from scglmm.inference.containment import find_carrier
from scglmm.inference.contrasts import contrast
from scglmm.inference.wald import benjamini_hochberg, satterthwaite, two_sided

REFERENCE = Path(__file__).parents[1] / "reference"
KINDS = {"one": 3, "nested": 3, "crossed": 3, "slope": 3, "uncorrelated": 1}  # seeds at which no variance is 0

# ------------------------------------------------------------------------------------------------ numerical derivatives


def parameters(fitted, kind: str) -> np.ndarray:
    """psi in the user's units and log(theta), as the dense criterion wants them."""
    psi = []
    for sigma in fitted.sigma:
        root = np.linalg.cholesky(sigma)
        psi += [root[i, j] for j in range(len(root)) for i in range(j, len(root))]
    return np.array([*psi, np.log(fitted.theta)])


def second_derivatives(function, x: np.ndarray, step: float = 0.01) -> np.ndarray:
    """Hessian by central differences, extrapolated to fourth order."""
    n = x.size

    def at(h: float) -> np.ndarray:
        result = np.empty((n, n))
        e = h * np.eye(n)
        centre = function(x)
        for i in range(n):
            result[i, i] = (function(x + e[i]) - 2 * centre + function(x - e[i])) / h**2
            for j in range(i):
                mixed = function(x + e[i] + e[j]) - function(x + e[i] - e[j])
                mixed += function(x - e[i] - e[j]) - function(x - e[i] + e[j])
                result[i, j] = result[j, i] = mixed / (4 * h**2)
        return result

    return (4 * at(step / 2) - at(step)) / 3


def mode_of(dense, par: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """beta and its covariance at fixed psi and theta: from the joint mode."""
    B = np.hstack([dense.Z @ dense.root(par[:-1]), dense.cells.X])
    x, hessian = dense.mode(B, dense.cells.offset, np.exp(par[-1]), np.zeros(B.shape[1]))
    return x[dense.q :], np.linalg.inv(hessian)[dense.q :, dense.q :]


def jacobian(function, x: np.ndarray, step: float = 0.02) -> np.ndarray:
    """(parameters, ...) derivatives of an array, central differences extrapolated to fourth order."""
    result = []
    for e in np.eye(x.size):
        one, two = ((function(x + h * e) - function(x - h * e)) / (2 * h) for h in (step, step / 2))
        result.append((4 * two - one) / 3)
    return np.array(result)


@pytest.mark.parametrize("kind", KINDS)
def test_satterthwaite_against_numerical_derivatives(kind):
    cells = models.simulate(kind, seed=KINDS[kind], n_donors=10, intercept=1.0)
    fitted = fit_cells(cells)
    assert fitted.status == "ok"
    dense = models.Dense(cells)
    par = parameters(fitted, kind)
    np.testing.assert_allclose(dense.criterion(par, joint=True), fitted.loglik, rtol=1e-9)

    beta, covariance = mode_of(dense, par)
    np.testing.assert_allclose(fitted.beta, beta, atol=1e-7)
    np.testing.assert_allclose(fitted.vcov, covariance, rtol=1e-6)
    S = np.linalg.inv(-second_derivatives(lambda x: dense.criterion(x, joint=True), par))
    derivatives = jacobian(lambda x: mode_of(dense, x)[1], par)
    d = np.einsum("kcc->kc", derivatives)
    df = 2 * np.diag(covariance) ** 2 / np.einsum("ic,ij,jc->c", d, S, d)
    np.testing.assert_allclose(fitted.df, df, rtol=1e-4)
    c = np.array([0.3, -1.0, 0.7])
    d = np.einsum("i,kij,j->k", c, derivatives, c)
    df = 2 * (c @ covariance @ c) ** 2 / (d @ S @ d)
    of_contrast = contrast(c, *(np.array([x]) for x in (fitted.beta, fitted.vcov, fitted.d_vcov, fitted.df)))
    np.testing.assert_allclose(of_contrast[2], df, rtol=1e-4)

    J = jacobian(lambda x: mode_of(dense, x)[0], par)
    adjusted = fit_cells(cells, adjust_se=True)
    np.testing.assert_allclose(adjusted.vcov, covariance + J.T @ S @ J, rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(adjusted.df, fitted.df)


@pytest.mark.parametrize("kind", ["one", "nested", "slope"])
def test_covariance_of_maximum_likelihood(kind):
    """Inverse Hessian over (beta, psi, log theta) together."""
    cells = models.simulate(kind, seed=5, n_donors=10, intercept=1.0)
    fitted = fit_cells(cells, "ml")
    assert fitted.status == "ok"
    dense = models.Dense(cells)
    par = np.concatenate([fitted.beta, parameters(fitted, kind)])
    np.testing.assert_allclose(dense.criterion(par, joint=False), fitted.loglik, rtol=1e-9)
    hessian = second_derivatives(lambda x: dense.criterion(x, joint=False), par)
    np.testing.assert_allclose(fitted.vcov, np.linalg.inv(-hessian)[:3, :3], rtol=1e-4)
    assert np.isposinf(fitted.df).all()


def test_a_balanced_design_has_as_many_degrees_of_freedom_as_the_analysis_of_variance():
    """Where counts are large the model is nearly a linear one: J - 2 for a group of donors, exact if it were linear."""
    rng = np.random.default_rng(0)
    n_donors, n_cells = 10, 60
    donor = np.repeat(np.arange(n_donors), n_cells)
    X = np.column_stack([np.ones(donor.size), donor % 2])
    mu = np.exp(6 + rng.normal(0, 0.4, (n_donors, 5))[donor])
    counts = rng.poisson(mu * rng.gamma(50, 1 / 50, mu.shape))
    for fitted in fit_counts(counts, np.zeros(donor.size), X, intercepts(donor)):
        np.testing.assert_allclose(fitted.df, n_donors - 2, rtol=0.01)


@pytest.mark.parametrize("model", ["intercept", "slope", "uncorrelated"])
def test_lmertest_where_counts_are_nearly_gaussian(model):
    """lmerTest on the logarithm of large counts, unbalanced donors; made by tests/reference/lmerTest_df.R."""
    cells, expected = (pd.read_csv(REFERENCE / f"lmerTest_{name}.csv") for name in ("cells", "df"))
    expected = expected[expected["model"] == model]
    one, x = np.ones(len(cells)), cells["x"].to_numpy()
    donor = np.unique(cells["donor"], return_inverse=True)[1]
    columns = {"intercept": [[one]], "slope": [[one, x]], "uncorrelated": [[one], [x]]}[model]
    terms = [(donor, 9, np.column_stack(c)) for c in columns]
    X = np.column_stack([one, cells["group"], x])
    fitted = fit_counts(cells["y"].to_numpy(float)[:, None], np.zeros(len(cells)), X, terms)[0]
    assert fitted.status == "ok"
    np.testing.assert_allclose(fitted.df, expected["df"], rtol=0.006)
    np.testing.assert_allclose(fitted.se, expected["se"], rtol=0.015)
    np.testing.assert_allclose(fitted.beta, expected["estimate"], atol=0.0015)


@pytest.mark.parametrize(("kind", "zero"), [("nested", 1), ("crossed", 1), ("uncorrelated", 1), ("nested", 0)])
def test_a_term_of_variance_zero_is_as_if_it_were_not_there(kind, zero):
    """Satterthwaite where another variance carries the coefficient, containment where it is the one at 0."""
    psi = [0.6, 0.6]
    psi[zero] = 0.0
    fits = []
    for seed in range(40):
        cells = models.simulate(kind, seed=seed, psi=psi, intercept=1.5)
        fitted = fit_cells(cells)
        if fitted.status == "singular" and fitted.sigma[zero].item() == 0 < fitted.sigma[1 - zero].item():
            fits.append((cells, fitted))
    assert len(fits) > 5
    frame, _ = frame_of(cells.X, cells.terms)
    carriers = [find_carrier(frame, contrast) for contrast in np.eye(3)]
    carried = np.array([carrier is not None and carrier.term == zero for carrier in carriers])
    for cells, fitted in fits[:6]:
        smaller = fit_counts(cells.y[:, None], cells.offset, cells.X, [cells.terms[1 - zero]])[0]
        np.testing.assert_allclose(fitted.loglik, smaller.loglik, rtol=1e-10)
        np.testing.assert_allclose(fitted.beta, smaller.beta, atol=1e-6)
        np.testing.assert_allclose(fitted.vcov, smaller.vcov, rtol=1e-5)
        np.testing.assert_allclose(fitted.df[~carried], smaller.df[~carried], rtol=1e-4)
        for j in np.flatnonzero(carried):
            assert fitted.df[j] == carriers[j].df


def test_satterthwaite_by_hand():
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    d = np.array([[[1.0, 0], [0, 0]], [[0, 0], [0, 2.0]]])
    S = np.array([[0.3, 0.1], [0.1, 0.2]])
    assert satterthwaite(np.array([1.0, 0]), covariance, d, S) == pytest.approx(2 * 4 / 0.3)
    assert satterthwaite(np.array([0, 1.0]), covariance, d, S) == pytest.approx(2 * 1 / (4 * 0.2))
    # variance 2 - 2*0.5 + 1, derivatives (1, 2)
    expected = 2 * 4 / (0.3 + 2 * 2 * 0.1 + 4 * 0.2)
    assert satterthwaite(np.array([1.0, -1.0]), covariance, d, S) == pytest.approx(expected)
    assert satterthwaite(np.array([1.0, -1.0]) * 1e-4, covariance, d, S) == pytest.approx(expected)
    assert satterthwaite(np.array([1.0, 0]), covariance, 0 * d, S) == np.inf
    assert satterthwaite(np.array([1.0, 0]), covariance, d[:0], S[:0, :0]) == np.inf


# ------------------------------------------------------------------------------------------------------------- p-values


def test_two_sided():
    statistic = np.array([[1.0, -2.0, 3.0], [np.nan, 2.0, 0.0], [40.0, 40.0, -1.0]])
    df = np.array([[5.0, np.inf, 2.0], [5.0, np.nan, np.inf], [np.inf, 2000.0, 0.0]])
    expected = [
        [2 * stats.t.cdf(-1, 5), 2 * stats.norm.cdf(-2), 2 * stats.t.cdf(-3, 2)],
        [np.nan, np.nan, 1.0],
        [2 * stats.norm.sf(40), 2 * stats.t.sf(40, 2000), np.nan],
    ]
    np.testing.assert_allclose(two_sided(statistic, df), expected, rtol=1e-12)
    assert two_sided(np.array([37.0]), np.array([np.inf]))[0] > 0  # no cancellation in the tail
    assert two_sided(np.empty((0, 3)), np.empty((0, 3))).shape == (0, 3)


def test_benjamini_hochberg_as_in_r():
    """`p.adjust(p, "BH")` of R 4.2."""
    p = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.5, 0.001, 0.9, 0.04])
    expected = [0.045, 0.06, 0.06, 0.06, 0.0642857142857143, 0.5625, 0.009, 0.9, 0.06]
    np.testing.assert_allclose(benjamini_hochberg(p[:, None])[:, 0], expected, rtol=1e-14)


@given(arrays(float, st.tuples(st.integers(0, 12), st.integers(1, 3)), elements=st.floats(0, 1)), st.integers(0, 2**12))
def test_benjamini_hochberg_by_hand(p, missing):
    p = p.copy()
    p[[i for i in range(p.shape[0]) if missing >> i & 1], 0] = np.nan
    adjusted = benjamini_hochberg(p)
    for j in range(p.shape[1]):
        tested = p[~np.isnan(p[:, j]), j]
        for i, value in enumerate(p[:, j]):
            if np.isnan(value):
                assert np.isnan(adjusted[i, j])
                continue
            # the smallest rate at which this one is among the discoveries
            larger = tested[tested >= value]
            rate = min(min(1.0, x * tested.size / np.sum(tested <= x)) for x in larger)
            assert adjusted[i, j] == pytest.approx(rate, rel=1e-12)
