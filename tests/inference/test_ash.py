"""Adaptive shrinkage: against numerical integration and another optimiser, and calibrated where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import minimize

from scglmm.inference.ash import Prior, adjusted_se, fit_prior, make_grid, posterior, s_values


def simulate(n: int, seed: int = 0, null: float = 0.7, df: float = np.inf):
    """Draw effects of which many are 0, their estimates with errors of very different size, and standard errors."""
    rng = np.random.default_rng(seed)
    beta = np.where(rng.random(n) < null, 0.0, rng.normal(0, 0.6, n))
    sigma = rng.lognormal(-1.5, 0.6, n)
    estimate = beta + sigma * rng.normal(size=n)
    se = sigma if np.isinf(df) else sigma * np.sqrt(rng.chisquare(df, n) / df)
    return beta, estimate, se


# ----------------------------------------------------------------------------------------------------- standard errors


@pytest.mark.parametrize("df", [1.0, 2.5, 7.0, 40.0, 1e4])
def test_adjusted_standard_errors_give_the_p_value_of_the_t_test(df):
    estimate = np.array([-7.0, -1e-3, 0.02, 0.5, 1, 2, 4, 10, 25])
    se = np.linspace(0.5, 2, 9)
    adjusted = adjusted_se(estimate, se, np.full(9, df))
    expected = 2 * stats.t.sf(np.abs(estimate / se), df)
    np.testing.assert_allclose(2 * stats.norm.sf(np.abs(estimate / adjusted)), expected, rtol=1e-9)
    assert (adjusted > se).all()


def test_adjusted_standard_errors_at_the_ends():
    df = np.array([5.0, 5, 5, 5, 300, 300, np.inf])
    statistic = np.array([0.0, 0.99e-4, 1.01e-4, 1e200, 40, 200, 60])
    adjusted = adjusted_se(statistic, np.ones(7), df)
    assert np.isfinite(adjusted).all()
    assert adjusted[0] == pytest.approx(stats.norm.pdf(0) / stats.t.pdf(0, 5))
    np.testing.assert_allclose(adjusted[1:3], adjusted[0], rtol=1e-6)
    assert adjusted[6] == 1
    # where the tail underflows an approximation takes over
    for df, low, high in (
        (20.0, 7.04309311e14, 2.22722160e15),
        (300.0, 151.456692, 163.690772),
        (1e4, 37.3135338, 38.0111457),
        (1e7, 36.1046581, 36.7364873),
    ):
        z = np.array([low, high]) / adjusted_se(np.array([low, high]), np.ones(2), np.full(2, df))
        assert z[0] == pytest.approx(-stats.norm.ppf(tail_of_t(low, df)), rel=1e-6)
        assert z[1] == pytest.approx(-stats.norm.ppf(tail_of_t(high, df)), rel=1e-5)


def tail_of_t(statistic, df):
    """By integration: scipy's own tails are wrong out there before 1.15."""
    here = stats.t.logpdf(statistic, df)
    # with t = statistic exp(s) tails of a power and those of an exponential are alike
    tail, _ = quad(
        lambda s: np.exp(stats.t.logpdf(statistic * np.exp(s), df) - here + s),
        0,
        3,
        points=[0.001, 0.01, 0.1],
        limit=200,
    )
    tail = np.exp(here) * statistic * tail
    assert tail == pytest.approx(1e-285 if tail > 1e-290 else 1e-295, rel=1e-3)
    return tail


# --------------------------------------------------------------------------------------------------------------- prior


def penalised(weight, estimate, se, scale, null_weight):
    density = stats.norm.pdf(estimate[:, None], scale=np.sqrt(se[:, None] ** 2 + scale**2))
    return np.log(density @ weight).sum() + (null_weight - 1) * np.log(max(weight[0], 1e-300))


@pytest.mark.filterwarnings("ignore:Values in x were outside bounds:RuntimeWarning")  # scipy before 1.16
@pytest.mark.parametrize("null_weight", [1.0, 10.0])
@pytest.mark.parametrize(("n", "null"), [(40, 0.7), (400, 0.9), (400, 0.0), (400, 1.0)])
def test_weights_against_a_general_optimiser(n, null, null_weight):
    _, estimate, se = simulate(n, seed=1, null=null)
    scale = np.array([0.0, 0.05, 0.2, 0.4, 0.8, 1.6])
    prior = fit_prior(estimate, se, scale, null_weight)
    assert prior.gap < 1e-6
    assert prior.weight.sum() == pytest.approx(1, abs=1e-9)
    assert (prior.weight >= 0).all()

    starts = [np.full(6, 1 / 6), np.array([0.9, *[0.02] * 5]), np.array([*[0.02] * 5, 0.9])]
    found = [
        minimize(
            lambda x: -penalised(x, estimate, se, scale, null_weight),
            start,
            bounds=[(1e-12, 1)] * 6,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
            options={"ftol": 1e-12, "maxiter": 500},
        ).x
        for start in starts
    ]
    # Scaled to a sum of 1: before scipy 1.16 the search may stop where its constraint does not hold.
    best = max(penalised(x / x.sum(), estimate, se, scale, null_weight) for x in found)
    ours = penalised(prior.weight, estimate, se, scale, null_weight)
    assert ours >= best - 1e-6
    assert ours == pytest.approx(best, abs=1e-4)
    loglik = ours - (null_weight - 1) * np.log(prior.weight[0]) if null_weight > 1 else ours
    assert prior.loglik == pytest.approx(loglik, abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_the_gap_bounds_what_is_missing(seed):
    """Expectation-maximisation, run for long, does not get higher."""
    _, estimate, se = simulate(300, seed=seed)
    scale = make_grid(estimate, se)
    density = stats.norm.pdf(estimate[:, None], scale=np.hypot(se[:, None], scale))
    weight = np.full(scale.size, 1 / scale.size)
    for _ in range(20_000):
        counts = weight * (density / (density @ weight)[:, None]).sum(axis=0)
        counts[0] += 9
        weight = counts / counts.sum()
    prior = fit_prior(estimate, se)
    ours, theirs = (penalised(w, estimate, se, scale, 10.0) for w in (prior.weight, weight))
    assert theirs - 1e-6 <= ours
    assert ours - theirs < 1e-2


def test_the_truth_is_found():
    _, estimate, se = simulate(20_000, seed=2)
    prior = fit_prior(estimate, se)
    assert prior.weight[0] == pytest.approx(0.7, abs=0.03)
    variance = prior.weight @ prior.scale**2
    assert variance == pytest.approx(0.3 * 0.36, rel=0.05)


def test_without_any_effect():
    _, estimate, se = simulate(2000, seed=3, null=1.0)
    prior = fit_prior(estimate, se)
    assert prior.weight[0] > 0.95
    found = posterior(estimate, se, prior)
    assert np.abs(found.mean).max() < 0.1
    assert found.svalue.min() > 0.2
    # estimates that vary less than their errors say
    prior = fit_prior(0.1 * estimate, se)
    assert prior.weight[0] == pytest.approx(1)
    assert posterior(0.1 * estimate, se, prior).mean == pytest.approx(0)


def test_grid():
    scale = make_grid(np.array([0.1, -3.0]), np.array([0.1, 0.2]))
    assert scale[0] == 0
    assert scale[-1] == pytest.approx(2 * np.sqrt(9 - 0.04))
    assert 0.005 < scale[1] <= 0.01
    np.testing.assert_allclose(scale[2:] / scale[1:-1], np.sqrt(2))
    assert make_grid(np.array([0.1]), np.array([0.2]))[-1] == pytest.approx(8 * 0.02)


# ----------------------------------------------------------------------------------------------------------- posterior


def test_posterior_against_numerical_integration():
    prior = Prior(np.array([0.0, 0.1, 0.5, 2.0]), np.array([0.5, 0.2, 0.2, 0.1]), 0.0, 0.0)
    estimate, se = np.array([0.0, 0.3, -1.2, 4.0, -0.05]), np.array([0.2, 0.2, 0.5, 1.0, 0.01])
    found = posterior(estimate, se, prior)
    for j, (b, s) in enumerate(zip(estimate, se, strict=True)):

        def integral(function, low, high, b=b, s=s):
            def integrand(x):
                density = prior.weight[1:] @ stats.norm.pdf(x, scale=prior.scale[1:])
                return function(x) * stats.norm.pdf(b, x, s) * density

            return quad(integrand, low, high, points=sorted({min(max(b, low), high), 0.0}), epsabs=1e-13, limit=400)[0]

        point = prior.weight[0] * stats.norm.pdf(b, 0, s)
        low, high = b - 12 * s, b + 12 * s
        total = point + integral(lambda x: 1, low, high)
        mean = integral(lambda x: x, low, high) / total
        second = integral(lambda x: x * x, low, high) / total
        positive = integral(lambda x: 1, max(low, 0), max(high, 0)) / total
        negative = integral(lambda x: 1, min(low, 0), min(high, 0)) / total
        assert found.mean[j] == pytest.approx(mean, abs=1e-9)
        assert found.sd[j] == pytest.approx(np.sqrt(second - mean**2), rel=1e-6)
        assert found.lfdr[j] == pytest.approx(point / total, rel=1e-8)
        assert found.lfsr[j] == pytest.approx(point / total + min(positive, negative), rel=1e-6)


def test_no_point_mass():
    prior = Prior(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 0.0, 0.0)
    found = posterior(np.array([1.0]), np.array([1.0]), prior)
    assert found.lfdr == 0
    assert found.mean == pytest.approx(0.5)
    assert found.lfsr == pytest.approx(stats.norm.sf(np.sqrt(0.5)))


@given(
    arrays(float, st.shared(st.integers(1, 30), key="n"), elements=st.floats(-1e3, 1e3)),
    arrays(float, st.shared(st.integers(1, 30), key="n"), elements=st.floats(1e-2, 1e2)),
    arrays(float, st.shared(st.integers(1, 30), key="n"), elements=st.floats(1, 1e6)),
)
def test_any_numbers(estimate, se, df):
    adjusted = adjusted_se(estimate, se, df)
    prior = fit_prior(estimate, adjusted)
    assert prior.gap < 1e-3
    found = posterior(estimate, adjusted, prior)
    tiny = 1e-9
    assert (np.abs(found.mean) <= np.abs(estimate) + tiny).all()
    assert (np.sign(found.mean) * np.sign(estimate) >= 0).all()
    assert (found.sd >= 0).all()
    assert (found.lfdr <= found.lfsr + tiny).all()
    assert (found.lfsr <= (1 + found.lfdr) / 2 + tiny).all()
    assert (found.svalue <= found.lfsr + tiny).all()


def test_units_do_not_matter():
    _, estimate, se = simulate(500, seed=4)
    one, two = (posterior(f * estimate, f * se, fit_prior(f * estimate, f * se)) for f in (1.0, 1e-4))
    np.testing.assert_allclose(two.mean, 1e-4 * one.mean, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(two.lfsr, one.lfsr, rtol=1e-3)


def test_s_values_by_hand():
    lfsr = np.array([0.5, 0.1, 0.3, 0.1, 0.02])
    expected = [1.02 / 5, 0.22 / 3, 0.52 / 4, 0.22 / 3, 0.02]
    np.testing.assert_allclose(s_values(lfsr), expected)


@pytest.mark.parametrize("df", [np.inf, 6.0])
def test_calibration(df):
    """Of the genes with a local false sign rate near r, a share of at most about r has the wrong sign, or no effect."""
    wrong_sign, rates, s, error, raw, discoveries = [], [], [], [], [], []
    for seed in range(5):
        beta, estimate, se = simulate(4000, seed=100 + seed, df=df)
        adjusted = adjusted_se(estimate, se, np.full(4000, df))
        found = posterior(estimate, adjusted, fit_prior(estimate, adjusted))
        wrong_sign.append(np.sign(found.mean) != np.sign(beta))
        rates.append(found.lfsr)
        s.append(found.svalue)
        error.append((found.mean - beta) ** 2)
        raw.append((estimate - beta) ** 2)
        discoveries.append(stats.false_discovery_control(2 * stats.t.sf(np.abs(estimate / se), df)))
    wrong, lfsr, svalue = (np.concatenate(x) for x in (wrong_sign, rates, s))
    for low, high in ((0, 0.01), (0.01, 0.05), (0.05, 0.15), (0.15, 0.35), (0.35, 0.6), (0.6, 0.9)):
        inside = (lfsr >= low) & (lfsr < high)
        expected, observed = lfsr[inside].mean(), wrong[inside].mean()
        margin = 4 * np.sqrt(max(expected, 0.002) / inside.sum())
        assert inside.sum() > 100
        assert observed < expected + margin
        if np.isinf(df):  # and not much fewer
            assert observed > 0.7 * expected - margin
    for level in (0.01, 0.05, 0.1):
        chosen = svalue < level
        assert chosen.sum() > 0.8 * np.sum(np.concatenate(discoveries) < level)
        assert wrong[chosen].mean() < level + 3 * np.sqrt(level / chosen.sum())
    assert np.mean(error) < 0.6 * np.mean(raw)
