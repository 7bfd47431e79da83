"""Residuals, and data drawn from a fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import scglmm
from scglmm.mixed._distribution import Distribution


def grouped(rng, n_groups=40, n=50, **columns):
    data = pd.DataFrame({"g": np.repeat(np.arange(n_groups), n), "x": rng.normal(size=n_groups * n)})
    data["eta"] = 0.6 + 0.4 * data["x"] + rng.normal(0, 0.5, n_groups)[data["g"]]
    return data


@pytest.mark.parametrize(
    ("family", "zi"),
    [("gaussian", False), ("poisson", False), ("nbinom2", False), ("poisson", True), ("nbinom2", True)],
)
def test_quantile_residuals_are_normal_under_the_model(family, zi):
    rng = np.random.default_rng(4)
    data = grouped(rng)
    pi = np.full(len(data), 0.25 * zi)
    mu = data["eta"] if family == "gaussian" else np.exp(data["eta"])
    theta = 2.0 if family == "nbinom2" else np.inf
    data["y"] = Distribution(family, mu.to_numpy(), theta, 0.7, pi).sample(rng)
    fit = scglmm.glmm("y ~ x + (1|g)", data, family=family, ziformula="~ 1" if zi else None)
    residuals = fit.residuals("quantile", rng=1)
    assert stats.kstest(residuals, "norm").pvalue > 0.01
    assert residuals.equals(fit.residuals("quantile", rng=1))
    assert np.isfinite(residuals).all()
    pearson = fit.residuals("pearson")
    assert np.mean(pearson**2) == pytest.approx(1, abs=0.15)


def test_deviance_and_response(plots, plot_counts):
    np.testing.assert_allclose(plots.residuals("deviance"), plots.residuals("response"))
    np.testing.assert_allclose(plots.residuals("response") / plots.sigma, plots.residuals("pearson"))
    np.testing.assert_allclose(plots.residuals("response") / plots.sigma, plots.residuals("quantile"))
    y, mu, theta = plot_counts.model.y, plot_counts.fitted().to_numpy(), plot_counts.theta
    saturated = stats.nbinom.logpmf(y, theta, theta / (theta + np.maximum(y, 1e-12)))
    expected = 2 * (saturated - stats.nbinom.logpmf(y, theta, theta / (theta + mu)))
    np.testing.assert_allclose(plot_counts.residuals("deviance") ** 2, expected, atol=1e-6)


def test_far_tails_are_not_cut():
    mu = np.array([3.0, 3.0])
    distribution = Distribution("poisson", mu, np.inf, np.nan, np.zeros(2))
    assert distribution.sf(np.array([80.0]))[0] > 0
    data = pd.DataFrame({"y": np.r_[np.tile([2, 3, 4], 30), 60], "g": np.arange(91) % 7})
    fit = scglmm.glmm("y ~ 1 + (1|g)", data, family="poisson")
    assert fit.residuals("quantile").iloc[-1] > 10  # 8.2 where 1 - p is rounded to 1


@pytest.mark.parametrize("family", ["poisson", "nbinom2"])
@pytest.mark.parametrize("pi", [0.0, 0.3])
def test_distribution_adds_up(family, pi):
    mu, y = np.array([0.2, 3.0, 12.0])[:, None], np.arange(400.0)
    distribution = Distribution(family, mu, 1.5 if family == "nbinom2" else np.inf, np.nan, np.array(pi))
    probability = np.exp(distribution.log_prob(y))
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-8)
    mean = (probability * y).sum(axis=1)
    np.testing.assert_allclose(mean, distribution.mean.ravel(), rtol=1e-6)
    np.testing.assert_allclose((probability * y**2).sum(axis=1) - mean**2, distribution.variance.ravel(), rtol=1e-5)
    np.testing.assert_allclose(np.cumsum(probability, axis=1), distribution.cdf(y), rtol=1e-8)
    np.testing.assert_allclose(distribution.cdf(y) + distribution.sf(y), 1)
    np.testing.assert_allclose(probability[:, 0], distribution.zero.ravel())


def test_simulated_data_have_the_variances_of_the_model():
    rng = np.random.default_rng(2)
    data = grouped(rng)
    data["y"] = data["eta"] + rng.normal(0, 0.7, len(data))
    fit = scglmm.glmm("y ~ x + (x|g)", data)
    draws = fit.simulate(200, rng=3)
    assert list(draws.columns[:2]) == ["sim_1", "sim_2"]
    assert draws.index.equals(data.index)
    rest = draws.sub(fit.predict(re_form=False), axis=0)
    between = rest.groupby(data["g"]).mean().to_numpy().var(axis=0, ddof=1).mean()
    sigma = fit.estimates.sigma[0]
    x = data["x"].groupby(data["g"]).mean()
    expected = sigma[0, 0] + 2 * sigma[0, 1] * x.mean() + sigma[1, 1] * (x**2).mean() + fit.sigma**2 / 50
    assert between == pytest.approx(expected, rel=0.1)
    kept = fit.simulate(200, rng=3, re_form=None).sub(fit.predict(), axis=0)
    assert kept.to_numpy().std() == pytest.approx(fit.sigma, rel=0.02)
    assert fit.simulate(2, rng=5).equals(fit.simulate(2, rng=5))


def test_a_fit_is_recovered_from_its_simulation(plot_counts, design_data):
    data = design_data("plots")
    simulated = plot_counts.simulate(30, rng=8)
    estimates = [
        scglmm.glmm("y ~ soil + ph + (1|plot)", data.assign(y=simulated[name]), family="nbinom2").coef_table["estimate"]
        for name in simulated.columns[:3]
    ]
    assert np.isfinite(estimates).all()
    np.testing.assert_allclose(simulated.mean(axis=1).mean(), plot_counts.fitted().mean(), rtol=0.2)


def test_bad_arguments(plots, design_data):
    with pytest.raises(ValueError, match="type='working' is not one of"):
        plots.residuals("working")
    with pytest.raises(ValueError, match="n must be a whole number"):
        plots.simulate(0)
    with pytest.raises(ValueError, match="re_form must be False"):
        plots.simulate(1, re_form="~ (1|plot)")
    zi = scglmm.glmm("count ~ soil + (1|plot)", design_data("plots"), family="poisson", ziformula="~ 1")
    with pytest.raises(ValueError, match="not defined with zero inflation"):
        zi.residuals("deviance")
