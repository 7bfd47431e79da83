"""One gene: what is reported beside estimates and tests, and the statuses."""

from __future__ import annotations

from dataclasses import replace

import models
import numpy as np
import pytest
from fitting import fit_cells, fit_counts, intercepts
from scipy.optimize import minimize
from scipy.special import gammaln

from scglmm.engine.fit import FAILED
from scglmm.inference import gene


@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("kind", ["one", "nested", "slope"])
def test_variance_of_the_linear_predictor(kind, method):
    """Over the cells, random effects included, the offset left out: from the mode with dense matrices."""
    cells = models.simulate(kind, seed=3, n_donors=10, cells=3, intercept=1.0)
    fitted = fit_cells(cells, method)
    dense = models.Dense(cells)
    root = np.linalg.cholesky(_block(fitted.sigma, cells.terms))
    B = dense.Z @ root
    base = cells.offset + cells.X @ fitted.beta
    if method == "reml":
        B = np.hstack([B, cells.X])
        base = cells.offset
    x, _ = dense.mode(B, base, fitted.theta, np.zeros(B.shape[1]))
    np.testing.assert_allclose(fitted.var_linpred, np.var(base + B @ x - cells.offset, ddof=1), rtol=1e-6)


def _block(sigma, terms) -> np.ndarray:
    size = sum(levels * z.shape[1] for _, levels, z in terms)
    result, at = np.zeros((size, size)), 0
    for s, (_, levels, _) in zip(sigma, terms, strict=True):
        n = levels * s.shape[0]
        result[at : at + n, at : at + n] = np.kron(np.eye(levels), s)
        at += n
    return result


@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("kind", ["one", "crossed", "slope"])
def test_the_model_without_fixed_effects(kind, method):
    cells = models.simulate(kind, seed=3, n_donors=10, intercept=1.0)
    fitted = fit_cells(cells, method)
    null = fit_cells(cells, method, X=np.ones((cells.y.size, 1)))
    np.testing.assert_allclose(fitted.null_intercept, null.beta[0], atol=2e-4)
    variance = sum(
        np.mean(np.einsum("ni,ij,nj->n", z, s, z)) for s, (_, _, z) in zip(null.sigma, cells.terms, strict=True)
    )
    np.testing.assert_allclose(fitted.null_var, variance, rtol=2e-3)


@pytest.mark.parametrize("theta", [0.5, 3.0])
def test_without_random_effects(theta):
    """Plain negative binomial regression, by a general optimiser."""
    cells = models.simulate("none", seed=8, theta=theta)
    fitted = fit_cells(cells, "ml")

    def minus_log_likelihood(par: np.ndarray) -> float:
        eta, size = cells.offset + cells.X @ par[:-1], np.exp(par[-1])
        y = cells.y
        terms = gammaln(y + size) - gammaln(size) - gammaln(y + 1) - (y + size) * np.log1p(np.exp(eta) / size)
        return -np.sum(terms + y * (eta - par[-1]))

    best = minimize(minus_log_likelihood, np.zeros(4), method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(fitted.loglik, -best.fun, rtol=1e-10)
    np.testing.assert_allclose(fitted.beta, best.x[:3], atol=1e-5)
    np.testing.assert_allclose(np.log(fitted.theta), best.x[3], atol=1e-5)
    assert fitted.sigma == []
    assert fitted.status == "ok"
    # cells count as replicates: only theta costs degrees of freedom
    assert (fit_cells(cells, "reml").df > 50).all()


def test_statuses():
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(10), 30)
    X = np.column_stack([np.ones(300), donor % 2])
    offset = np.zeros(300)
    poisson = np.zeros(300)
    poisson[rng.permutation(300)[:150]] = 1  # less spread than Poisson
    by_donor = rng.binomial(1, np.linspace(0.05, 0.8, 10)[donor]).astype(float)
    overdispersed = rng.poisson(rng.gamma(0.5, 2, 300)).astype(float)
    absent = overdispersed * (donor % 2)
    fits = fit_counts(np.column_stack([poisson, by_donor, overdispersed, absent]), offset, X, intercepts(donor))
    assert fits[0].theta == fits[1].theta == np.inf
    assert [fit.status for fit in fits[:2]] == ["singular", "poisson_limit"]
    assert fits[0].sigma[0].item() == 0 < fits[1].sigma[0].item()
    assert fits[2].status in {"ok", "singular"}
    assert fits[3].status == "separated"


def test_a_search_that_fails(monkeypatch):
    cells = models.simulate("slope", seed=0)
    fit = gene.fit_from_starts
    monkeypatch.setattr(gene, "fit_from_starts", lambda *args, **kwargs: replace(fit(*args, **kwargs), status=FAILED))
    fitted = fit_cells(cells)
    assert fitted.status == "not_converged"
    for name in ("beta", "se", "df", "vcov", "theta", "loglik", "var_linpred", "null_intercept", "null_var"):
        assert np.isnan(getattr(fitted, name)).all()
    assert np.isnan(fitted.sigma[0]).all()
    assert fitted.n_eval > 0


def test_a_null_model_that_fails(monkeypatch):
    """Only the variance fractions need it."""
    cells = models.simulate("one", seed=3)
    one = fit_cells(cells)
    fit = gene.fit

    def fails(data, structure, X, *args, **kwargs):
        found = fit(data, structure, X, *args, **kwargs)
        return replace(found, status=FAILED) if X.shape[1] == 1 else found

    monkeypatch.setattr(gene, "fit", fails)
    other = fit_cells(cells)
    assert other.status == one.status
    np.testing.assert_array_equal(other.beta, one.beta)
    assert np.isnan(other.null_intercept)


def test_no_variance_at_all_in_a_term_of_several_columns():
    """`Dx + stim + (0 + stim|ind)` is `(stim|ind)`: where Sigma = 0, Dx has J - 2 degrees of freedom."""
    rng = np.random.default_rng(1)
    donor = np.repeat(np.arange(12), 40)
    stim = np.tile([0.0, 1.0], donor.size // 2)
    X = np.column_stack([np.ones(donor.size), donor % 2, stim])
    counts = rng.negative_binomial(2, 0.5, (donor.size, 12)).astype(float)
    both = np.column_stack([1 - stim, stim])
    slope = np.column_stack([np.ones(donor.size), stim])
    fits = [fit_counts(counts, np.zeros(donor.size), X, [(donor, 12, z)]) for z in (both, slope)]
    nothing = 0
    for one, other in zip(*fits, strict=True):
        np.testing.assert_allclose(one.loglik, other.loglik, rtol=1e-9)
        if not one.sigma[0].any():
            nothing += 1
            assert one.status == other.status == "singular"
            np.testing.assert_array_equal(one.df, 10)
            np.testing.assert_array_equal(other.df, [10, 10, 11])
    assert nothing > 1


def test_a_singular_covariance_matrix_has_no_more_degrees_of_freedom_than_the_design():
    """A correlation of 1: no variance is 0, but a direction of Sigma is, and Satterthwaite's formula misses it."""
    rng = np.random.default_rng(5)
    donor = np.repeat(np.arange(8), 60)
    stim = np.tile([0.0, 1.0], donor.size // 2)
    X = np.column_stack([np.ones(donor.size), donor % 2, stim])
    eta = rng.normal(0, 0.2, (8, 40))[donor] + rng.normal(0, 0.2, (8, 40))[donor] * stim[:, None]
    counts = rng.poisson(0.5 * np.exp(eta) * rng.gamma(1, 1, eta.shape)).astype(float)
    slope = np.column_stack([np.ones(donor.size), stim])
    fits = fit_counts(counts, np.zeros(donor.size), X, [(donor, 8, slope)])
    singular = [fit for fit in fits if fit.status == "singular" and (fit.sigma[0].diagonal() > 0).all()]
    assert len(singular) > 5
    for fit in singular:
        assert (fit.df <= [6, 6, 7]).all()
