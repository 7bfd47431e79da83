"""Variance fractions against the formulas by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import polygamma

from scglmm.inference.varpart import METHODS, distribution_variance, fractions, log_mean_exp, mean_rate

RATE, THETA = np.array([0.02, 1.3, 250.0, 4.0]), np.array([0.4, 0.2443, 12.0, np.inf])


def test_methods_by_hand():
    noise = 1 / RATE + 1 / THETA
    D, D_inf = distribution_variance(RATE, THETA, "lognormal")
    np.testing.assert_allclose(D, np.log(1 + noise))
    np.testing.assert_allclose(D_inf, [np.log(1 + 1 / 0.4), np.log(1 + 1 / 0.2443), np.log(1 + 1 / 12), 0])
    D, D_inf = distribution_variance(RATE, THETA, "delta")
    np.testing.assert_allclose(D, noise)
    np.testing.assert_allclose(D_inf, [1 / 0.4, 1 / 0.2443, 1 / 12, 0])
    D, D_inf = distribution_variance(RATE, THETA, "trigamma")
    np.testing.assert_allclose(D, polygamma(1, 1 / noise))
    np.testing.assert_allclose(D_inf[:3], polygamma(1, THETA[:3]))
    assert D_inf[3] == 0
    # Poisson: psi1(lambda)
    np.testing.assert_allclose(D[3], polygamma(1, 4.0))
    with pytest.raises(ValueError, match=r"method='log' is not one of trigamma, lognormal, delta"):
        distribution_variance(RATE, THETA, "log")


def test_the_published_example():
    """PTPRG in microglia: the fractions follow from the published parameters and a mean of 1.3."""
    theta, donor, dx = 0.2443, 0.4803, 1.103
    q = np.array([[dx**2 * 0.25, donor]])
    D, D_inf = distribution_variance(np.array([1.3]), np.array([theta]), "trigamma")
    G = q.sum() * 0.9
    result = fractions(np.array([G]), q, np.array([1.3]), np.array([theta]))[0]
    whole = G + D[0]
    expected = [*(q[0] / q.sum() * G / whole), (D[0] - D_inf[0]) / whole, D_inf[0] / whole]
    np.testing.assert_allclose(result, expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from(METHODS), st.integers(0, 4))
def test_fractions_sum_to_one(seed, method, n_terms):
    rng = np.random.default_rng(seed)
    rate, theta = np.exp(rng.uniform(-10, 10, (2, 8)))
    theta[0] = np.inf
    parts = rng.exponential(size=(8, n_terms)) * (rng.random((8, n_terms)) < 0.7)
    linear = rng.exponential(size=8)
    result = fractions(linear, parts, rate, theta, method)
    assert result.shape == (8, n_terms + 2)
    np.testing.assert_allclose(result.sum(axis=1), 1, rtol=1e-12)
    assert (result >= 0).all()
    assert result[0, -1] == 0
    nothing = parts.sum(axis=1) == 0
    np.testing.assert_array_equal(result[nothing, :-2], 0)
    # only the proportions of the parts matter
    np.testing.assert_allclose(fractions(linear, parts * 3.0, rate, theta, method), result, rtol=1e-12)


def test_nothing_explained():
    """A linear predictor that does not vary leaves all to the distribution."""
    for parts in (np.zeros((1, 2)), np.array([[0.3, 0.1]])):
        result = fractions(np.zeros(1), parts, np.array([2.0]), np.array([1.5]))[0]
        np.testing.assert_allclose(result[:2], 0)
        np.testing.assert_allclose(result.sum(), 1)


def test_missing_values_stay():
    values = np.array([1.0, np.nan])
    result = fractions(values, np.array([[1.0], [1.0]]), np.array([1.0, 1.0]), np.array([1.0, 1.0]))
    assert np.isfinite(result[0]).all()
    assert np.isnan(result[1]).all()
    result = fractions(np.ones(2), np.array([[1.0], [np.nan]]), np.ones(2), np.ones(2))
    assert np.isnan(result[1]).all()
    result = fractions(np.ones(2), np.ones((2, 1)), np.array([1.0, np.nan]), np.array([np.nan, 1.0]))
    assert np.isnan(result).all()


def test_log_mean_exp():
    offset = np.random.default_rng(0).normal(size=50)
    np.testing.assert_allclose(log_mean_exp(offset), np.log(np.mean(np.exp(offset))))
    np.testing.assert_allclose(log_mean_exp(offset + 900), log_mean_exp(offset) + 900)
    np.testing.assert_allclose(log_mean_exp(offset - 900), log_mean_exp(offset) - 900)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("theta", [1e-6, 2.0, np.inf])
def test_enormous_and_tiny_means(method, theta):
    """A variance of thousands, or an intercept far below, is no reason for a warning or a fraction that is not one."""
    rate = mean_rate(np.array([3.0, -5000.0]), 0.5, np.array([4000.0, 0.1]))
    found = fractions(np.ones(2), np.ones((2, 1)), rate, np.full(2, theta), method)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert ((found >= 0) & (found <= 1)).all()
