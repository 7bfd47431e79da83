"""Moderation: against limma's closed form, against direct integration, and on simulated nulls."""

from __future__ import annotations

from types import SimpleNamespace

import models
import numpy as np
import pytest
from fitting import fit_counts, frame_of, intercepts
from scipy import stats
from scipy.optimize import minimize

from scglmm.inference import moderation
from scglmm.inference.genes import Options
from scglmm.inference.moderation import match_t, why_not_moderated
from scglmm.inference.prior import log_sd_grid
from scglmm.inference.sd_profile import NODES, Profile, chebyshev

FRAME = SimpleNamespace(X=np.ones((4, 1)), terms=[SimpleNamespace(scale=np.ones(1))])


def chi_square_profile(square: float, df: int, variance: float, effect: float) -> Profile:
    """A normal one-way layout: mean square of donors `square` on `df`, sampling variance `variance`."""
    low, high = np.log(variance), np.log(variance + 100.0)
    u = 0.5 * (low + high) + 0.5 * (high - low) * chebyshev(NODES[1])
    value = -0.5 * df * (u + square * np.exp(-u))
    # The covariance of the effect is proportional to variance + sigma^2.
    return Profile(
        np.array([variance]), np.array([low]), np.array([high]), value - value.max(),
        np.full((u.size, 1), effect), np.exp(u)[:, None].astype(np.float32),
    )  # fmt: skip


@pytest.mark.parametrize(("df", "prior_df", "square"), [(4, 6.0, 0.3), (8, 3.0, 1.5), (20, 10.0, 0.8)])
def test_limma(df, prior_df, square, monkeypatch):
    """With an inverse chi-square prior the mixture is limma's moderated t (Smyth 2004, equations 4 and 5)."""
    monkeypatch.setitem(moderation.POINTS, 1, 800)
    monkeypatch.setitem(NODES, 1, 40)  # the whole range of sigma, which is not narrowed here
    typical = 0.7  # s0^2
    grid = np.linspace(np.log(0.01), np.log(10), 600)
    sigma2 = np.exp(2 * grid)
    # Density of log(sigma) when 1/sigma^2 ~ chi2(prior_df) / (prior_df s0^2).
    log_density = -0.5 * prior_df * (2 * grid + typical / sigma2)
    weights = np.concatenate([[0.0], np.exp(log_density - log_density.max())])
    weights /= weights.sum()
    profile = chi_square_profile(square, df, 1e-4, 1.7)
    (found,) = moderation._moderate_batch([profile], [weights[None]], grid, FRAME)
    posterior = (prior_df * typical + df * square) / (prior_df + df)
    np.testing.assert_allclose(found.df, prior_df + df, rtol=0.03)
    np.testing.assert_allclose(found.se**2, posterior, rtol=0.02)
    np.testing.assert_allclose(found.vcov[0, 0], found.se[0] ** 2, rtol=1e-6)
    np.testing.assert_allclose(2 * found.vcov[0, 0] ** 2 / (found.d_vcov[:, 0, 0] ** 2).sum(), found.df[0], rtol=1e-6)


def test_a_prior_at_zero_gives_a_z_test():
    grid = log_sd_grid(1)
    weights = np.zeros(grid.size + 1)
    weights[0] = 1.0
    (found,) = moderation._moderate_batch([chi_square_profile(0.5, 6, 0.2, 1.0)], [weights[None]], grid, FRAME)
    assert np.isinf(found.df).all()
    np.testing.assert_allclose(found.se**2, 0.2, rtol=1e-4)
    np.testing.assert_array_equal(found.variances, 0.0)
    np.testing.assert_array_equal(found.d_vcov, 0.0)


@pytest.mark.parametrize("df", [1.5, 3.0, 7.0, 40.0, 1000.0])
def test_match_t_returns_a_t(df):
    """A t distribution as a mixture of normals over its chi-square quantiles is given back."""
    n = 20000
    levels = (np.arange(n) + 0.5) / n
    sd = np.sqrt(df / stats.chi2.ppf(levels, df))
    se, found = match_t(np.full((1, n), 1 / n), np.zeros((1, n, 1)), sd[None, :, None])
    np.testing.assert_allclose(se, 1.0, rtol=0.01)
    np.testing.assert_allclose(found, df, rtol=0.05)


def counts_of(n_donors, n_genes, seed, *, sd, cells=60, rate=0.3):
    """Null genes of donors in two groups."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), cells)
    offset = rng.normal(0, 0.3, donor.size)
    spread = sd * np.exp(rng.normal(0, 0.4, n_genes))
    effects = rng.normal(size=(n_donors, n_genes)) * spread
    mu = rate * np.exp(offset[:, None] + effects[donor])
    counts = rng.poisson(mu * rng.gamma(2.0, 0.5, mu.shape)).astype(float)
    X = np.column_stack([np.ones(donor.size), donor % 2])
    return counts, offset, X, intercepts(donor)


def test_level_on_null_genes():
    """Four against four donors, where REML with containment is conservative: the level is nominal, tails included."""
    counts, offset, X, terms = counts_of(8, 1500, 0, sd=0.4)
    fits = fit_counts(counts, offset, X, terms, moderate=True)
    p = np.array([2 * stats.t.sf(abs(f.beta[1] / f.se[1]), f.df[1]) for f in fits])
    # Standard error 0.56 points; the prototype of this test had 4.9%.
    assert 0.035 < np.mean(p < 0.05) < 0.065
    assert np.mean(p < 0.01) < 0.018
    singular = np.array([f.status == "singular" for f in fits])
    assert 0.01 < np.mean(p[singular] < 0.05) < 0.12  # 131 of them
    df = np.array([f.df[1] for f in fits])
    assert np.median(df) > 6.0  # more than the donors left


def test_against_direct_integration():
    """One gene: the same posterior by adding up dense evaluations on a fine grid."""
    counts, offset, X, terms = counts_of(6, 60, 1, sd=0.5, cells=12, rate=1.0)
    fits = fit_counts(counts, offset, X, terms, moderate=True)
    frame, _ = frame_of(X, terms, offset)
    profiles, log_mean = [], np.log(counts.mean(axis=0))
    original = moderation.moderate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scglmm.inference.genes.moderate", lambda p, m, f: (profiles.extend(p), original(p, m, f))[1])
        fit_counts(counts, offset, X, terms, moderate=True)
    _, prior = original(profiles, log_mean, frame)
    g = 7
    cells = models.Cells(counts[:, g], offset, X, terms, np.arange(offset.size))
    dense = models.Dense(cells)
    log_sd = np.concatenate([[-np.inf], prior.log_sd])
    value, beta, variance = [], [], []
    for s in np.exp(log_sd):
        thetas = np.linspace(-2, 5, 57)
        criteria = [dense.criterion(np.array([s, t]), joint=True) for t in thetas]
        best = thetas[int(np.argmax(criteria))]
        value.append(dense.criterion(np.array([s, best]), joint=True))
        B = np.hstack([dense.Z * s, X])
        x, hessian = dense.mode(B, offset, np.exp(best), np.zeros(B.shape[1]))
        # Fixed effects are those at the maximum of the Laplace likelihood, not of the joint mode.
        laplace = minimize(
            lambda b, s=s, t=best: -dense.criterion(np.array([*b, s, t]), joint=False), x[-2:], method="Nelder-Mead",
            options={"xatol": 1e-4, "fatol": 1e-7},
        )  # fmt: skip
        beta.append(laplace.x[1])
        variance.append(np.linalg.inv(hessian)[-1, -1])
    weight = np.exp(np.array(value) - max(value)) * prior.at(log_mean[[g]], 0)[0]
    weight /= weight.sum()
    np.testing.assert_allclose(fits[g].beta[1], weight @ beta, atol=0.02 * fits[g].se[1])
    np.testing.assert_allclose(fits[g].moderated[0], weight @ np.exp(2 * log_sd), rtol=0.05)
    level = stats.norm.sf(np.abs(fits[g].beta[1] + 2.0 * fits[g].se[1] - beta) / np.sqrt(variance)) @ weight
    np.testing.assert_allclose(stats.t.sf(2.0, fits[g].df[1]), level, rtol=0.1)


def test_reml_part_stays():
    """Theta, variances, log-likelihood and status are those of the fit without moderation."""
    counts, offset, X, terms = counts_of(8, 60, 2, sd=0.3)
    plain = fit_counts(counts, offset, X, terms)
    moderated = fit_counts(counts, offset, X, terms, moderate=True)
    for one, two in zip(plain, moderated, strict=True):
        assert (one.status, one.theta, one.loglik) == (two.status, two.theta, two.loglik)
        np.testing.assert_array_equal(one.sigma[0], two.sigma[0])
        assert two.moderated.shape == (1,)
        assert one.moderated is None
        assert two.profile is None


def test_two_terms():
    """Treated and untreated cells of the same donors: moderated estimates of both contrasts."""
    rng = np.random.default_rng(3)
    donor = np.repeat(np.arange(6), 40)
    treated = np.arange(donor.size) % 2
    effects = rng.normal(0, 0.4, (6, 60))[donor] + rng.normal(0, 0.2, (12, 60))[2 * donor + treated]
    counts = rng.poisson(0.8 * np.exp(effects)).astype(float)
    X = np.column_stack([np.ones(donor.size), treated])
    fits = fit_counts(counts, np.zeros(donor.size), X, intercepts(donor, 2 * donor + treated), moderate=True)
    assert all(f.moderated is not None and f.moderated.shape == (2,) for f in fits)
    p = np.array([2 * stats.t.sf(abs(f.beta[1] / f.se[1]), f.df[1]) for f in fits])
    assert np.mean(p < 0.05) < 0.17
    assert np.isfinite([f.se for f in fits]).all()


@pytest.mark.parametrize(
    ("kind", "n_genes", "wanted", "method", "why"),
    [
        ("one", 500, None, "reml", ""),
        ("one", 500, False, "reml", "moderate=False"),
        ("one", 500, None, "ml", "maximum likelihood"),
        ("one", 199, None, "reml", "only 199 genes are tested, fewer than 200"),
        ("one", 199, True, "reml", ""),
        ("one", 49, True, "reml", "only 49 genes are tested, fewer than 50"),
        ("none", 500, None, "reml", "there is no random effect"),
        ("slope", 500, None, "reml", "(x|g0) has correlated effects"),
        ("uncorrelated", 500, None, "reml", ""),
    ],
)
def test_why_not(kind, n_genes, wanted, method, why):
    cells = models.simulate(kind)
    frame, _ = frame_of(cells.X, cells.terms)
    assert why_not_moderated(frame, n_genes, wanted, method) == why


def test_options_default_is_not_moderated():
    assert Options().moderate is False
