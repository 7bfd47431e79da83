"""The prior from all genes: what it is known to be in simulations, and its edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from scglmm.inference.prior import AT_ZERO, EDGE, OK, Prior, estimate_prior, hats, log_sd_grid


def one_way(sd: np.ndarray, df: int, variance: float, rng: np.random.Generator) -> np.ndarray:
    """Likelihood over the grid of donor mean squares: (variance + sd^2) chi2(df) / df."""
    square = (variance + sd**2) * rng.chisquare(df, sd.size) / df
    tau = variance + np.concatenate([[0.0], np.exp(2 * log_sd_grid(1))])
    log_likelihood = -0.5 * df * (np.log(tau) + square[:, None] / tau)
    return np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))


def test_recovers_a_log_normal_distribution():
    rng = np.random.default_rng(0)
    sd = 0.4 * np.exp(rng.normal(0, 0.4, 5000))
    prior = estimate_prior(one_way(sd, 6, 0.02, rng), np.zeros(sd.size))
    assert prior.status(0) == OK
    found = prior.quantiles(np.zeros(1), 0, np.array([0.1, 0.5, 0.9]))[0]
    true = np.quantile(sd, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(found[1], true[1], rtol=0.1)
    # Neither widened nor narrowed, when only every gene's likelihood is known.
    assert 0.85 < np.log(found[2] / found[0]) / np.log(true[2] / true[0]) < 1.25


def test_follows_a_trend_with_mean_expression():
    rng = np.random.default_rng(1)
    log_mean = rng.uniform(-4, 1, 3000)
    sd = np.exp(-1.0 - 0.3 * log_mean + rng.normal(0, 0.2, log_mean.size))
    prior = estimate_prior(one_way(sd, 10, 0.01, rng), log_mean)
    at = np.array([-3.5, 0.5])
    median = prior.quantiles(at, 0, np.array([0.5]))[:, 0]
    np.testing.assert_allclose(np.log(median), -1.0 - 0.3 * at, atol=0.25)


def test_mass_at_zero():
    """Half the genes without variance: the prior says so."""
    rng = np.random.default_rng(2)
    sd = np.where(rng.random(4000) < 0.5, 0.0, 0.6)
    prior = estimate_prior(one_way(sd, 20, 0.05, rng), np.zeros(sd.size))
    small = np.concatenate([[True], np.exp(prior.log_sd) < 0.2])
    assert 0.4 < prior.weights[0][0, small].sum() < 0.6


def test_no_variance_anywhere_is_an_edge():
    rng = np.random.default_rng(3)
    likelihood = one_way(np.zeros(3000), 8, 1.0, rng)
    likelihood[:, 1:] *= np.exp(-0.5)  # as where every other gene prefers 0
    prior = estimate_prior(likelihood, np.zeros(3000))
    assert prior.weights[0][0, 0] > EDGE
    assert prior.status(0) == AT_ZERO


def test_a_gene_far_above_the_others_keeps_its_own():
    rng = np.random.default_rng(4)
    sd = np.concatenate([0.2 * np.exp(rng.normal(0, 0.2, 999)), [4.0]])
    likelihood = one_way(sd, 10, 0.01, rng)
    prior = estimate_prior(likelihood, np.zeros(1000))
    posterior = likelihood[-1] * prior.at(np.zeros(1), 0)[0]
    posterior /= posterior.sum()
    mean = posterior @ np.concatenate([[0.0], np.exp(prior.log_sd)])
    own = likelihood[-1] / likelihood[-1].sum()
    assert mean > 0.7 * (own @ np.concatenate([[0.0], np.exp(prior.log_sd)]))


def test_two_terms_are_told_apart():
    """With likelihoods that factor, each term gets the prior that it would get alone."""
    rng = np.random.default_rng(5)
    n = 400
    grid = np.concatenate([[0.0], np.exp(log_sd_grid(2))])
    both = []
    for typical in (0.2, 0.8):
        sd = typical * np.exp(rng.normal(0, 0.3, n))
        square = (0.01 + sd**2) * rng.chisquare(8, n) / 8
        tau = 0.01 + grid**2
        both.append(np.exp(-4 * (np.log(tau) + square[:, None] / tau)))
        both[-1] /= both[-1].max(axis=1, keepdims=True)
    joint = estimate_prior(both[0][:, :, None] * both[1][:, None, :], np.zeros(n))
    for term in range(2):
        median = joint.quantiles(np.zeros(1), term, np.array([0.5]))[0, 0]
        assert 0.7 < median / (0.2, 0.8)[term] < 1.4


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_order_of_the_genes(order):
    rng = np.random.default_rng(6)
    log_mean = rng.normal(size=1500)
    likelihood = one_way(0.3 * np.exp(rng.normal(0, 0.5, 1500)), 6, 0.05, rng)
    other = np.arange(1500)[::-1] if order == "reversed" else rng.permutation(1500)
    first, second = estimate_prior(likelihood, log_mean), estimate_prior(likelihood[other], log_mean[other])
    np.testing.assert_allclose(first.weights[0], second.weights[0], rtol=1e-9, atol=1e-12)


def test_hats_are_a_partition():
    x = np.array([-10.0, -1.0, 0.2, 3.0, 50.0])
    basis = hats(x, np.array([-1.0, 0.0, 3.0]))
    np.testing.assert_allclose(basis.sum(axis=1), 1.0)
    assert (basis >= 0).all()
    np.testing.assert_array_equal(hats(x, np.zeros(1)), np.ones((5, 1)))


def test_quantiles_of_a_mass_at_zero():
    grid = log_sd_grid(1)
    weights = np.zeros((1, grid.size + 1))
    weights[0, 0] = 0.6
    weights[0, 20] = 0.4
    prior = Prior(np.zeros(1), grid, [weights], 1000, 1)
    low, high = prior.quantiles(np.zeros(1), 0, np.array([0.5, 0.99]))[0]
    assert low == 0.0
    np.testing.assert_allclose(high, np.exp(grid[19]), rtol=0.2)


def test_two_shapes_are_found():
    """With much information the density is not log-normal when the genes are not."""
    rng = np.random.default_rng(7)
    sd = np.where(rng.random(6000) < 0.5, 0.1, 1.0) * np.exp(rng.normal(0, 0.2, 6000))
    prior = estimate_prior(one_way(sd, 20, 0.001, rng), np.zeros(sd.size))
    between = np.abs(prior.log_sd - np.log(0.316)) < 0.4
    assert prior.weights[0][0, 1:][between].sum() < 0.1
    assert 0.45 < prior.weights[0][0, 1:][prior.log_sd > np.log(0.316)].sum() < 0.55


def test_few_genes_give_a_log_normal_distribution():
    """Where there is little information the third differences of the log density are small."""
    rng = np.random.default_rng(8)
    prior = estimate_prior(one_way(0.3 * np.exp(rng.normal(0, 0.4, 60)), 4, 0.05, rng), np.zeros(60))
    inside = prior.weights[0][0, 1:] > 1e-2
    third = np.diff(np.log(prior.weights[0][0, 1:][inside]), 3)
    assert np.abs(third).max() < 0.02


def test_marginal_likelihood_is_that_of_a_direct_search():
    """The mass at 0, the location and the spread that a generic optimiser finds for a log-normal shape."""
    rng = np.random.default_rng(9)
    sd = np.where(rng.random(3000) < 0.2, 0.0, 0.5 * np.exp(rng.normal(0, 0.3, 3000)))
    likelihood = one_way(sd, 12, 0.02, rng)
    grid = log_sd_grid(1)

    def weights(x: np.ndarray) -> np.ndarray:
        density = np.exp(-0.5 * ((grid - x[0]) / np.exp(x[1])) ** 2)
        return np.concatenate([[expit(x[2])], (1 - expit(x[2])) * density / density.sum()])

    best = minimize(lambda x: -np.log(likelihood @ weights(x)).sum(), [-1.0, -1.0, -1.0], method="Nelder-Mead")
    prior = estimate_prior(likelihood, np.zeros(3000))
    # In the log-likelihood per gene; the penalty and the weight that is spread evenly cost something.
    assert np.log(likelihood @ prior.weights[0][0]).mean() > -best.fun / 3000 - 1e-3
    median = prior.quantiles(np.zeros(1), 0, np.array([0.5]))[0, 0]
    above = np.cumsum(weights(best.x))
    assert median == pytest.approx(np.interp(0.5, above, np.concatenate([[0.0], np.exp(grid)])), rel=0.05)
