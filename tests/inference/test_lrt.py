"""Nested models and the distribution of their likelihood ratio."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scglmm.formula import build_design, parse_formula
from scglmm.inference.lrt import Comparison, compare


@pytest.fixture(scope="module")
def obs() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(12), 20)
    return pd.DataFrame(
        {
            "ind": pd.Categorical([f"D{d}" for d in donor]),
            "same": pd.Categorical([f"other {100 - d}" for d in donor]),
            "batch": pd.Categorical(rng.integers(0, 4, 240).astype(str)),
            "stim": pd.Categorical(np.array(["ctrl", "stim"])[rng.integers(0, 2, 240)]),
            "level": pd.Categorical(np.array(["a", "b", "c"])[donor % 3]),
            "pair": pd.Categorical(np.array(["a or b", "c"])[donor % 3 // 2]),
            "age": rng.uniform(20, 80, 12)[donor],
            "x": rng.normal(size=240),
            "w": rng.normal(size=240),
        }
    )


def comparison(obs: pd.DataFrame, full: str, reduced: str) -> Comparison:
    return compare(*(build_design(parse_formula(formula), obs) for formula in (full, reduced)))


@pytest.mark.parametrize(
    ("full", "reduced", "counts", "distribution"),
    [
        ("~ stim + age + (1|ind)", "~ age + (1|ind)", (1, 0, 0), "chi2(1)"),
        ("~ level + age + (1|ind)", "~ age + (1|ind)", (2, 0, 0), "chi2(2)"),
        ("~ level + (1|ind)", "~ pair + (1|ind)", (1, 0, 0), "chi2(1)"),
        ("~ level * stim + (1|ind)", "~ level + stim + (1|ind)", (2, 0, 0), "chi2(2)"),
        ("~ x + I(x**2) + (1|ind)", "~ scale(x) + (1|ind)", (1, 0, 0), "chi2(1)"),
        ("~ bs(x, df=4) + (1|ind)", "~ x + (1|ind)", (3, 0, 0), "chi2(3)"),
        ("~ stim + (1|ind)", "~ stim", (0, 1, 1), "1/2 chi2(0) + 1/2 chi2(1)"),
        ("~ stim + (1|ind) + (1|ind:stim)", "~ stim + (1|ind)", (0, 1, 1), "1/2 chi2(0) + 1/2 chi2(1)"),
        ("~ stim + (1|ind) + (1|ind:stim)", "~ stim + (1|ind:stim)", (0, 1, 1), "1/2 chi2(0) + 1/2 chi2(1)"),
        ("~ stim + (1|ind) + (1|batch)", "~ (1|ind)", (1, 1, 1), "1/2 chi2(1) + 1/2 chi2(2)"),
        ("~ stim + (stim|ind)", "~ stim + (1|ind)", (0, 2, 1), "1/2 chi2(1) + 1/2 chi2(2)"),
        ("~ stim + (stim|ind)", "~ stim + (0 + stim|ind)", None, None),
        ("~ x + (x||ind)", "~ x + (1|ind)", (0, 1, 1), "1/2 chi2(0) + 1/2 chi2(1)"),
        ("~ x + (x|ind)", "~ x + (x||ind)", (0, 1, 0), "chi2(1)"),
        ("~ x + (x + w|ind)", "~ x + (x|ind)", (0, 3, 1), "1/2 chi2(2) + 1/2 chi2(3)"),
        ("~ x + (x + w|ind)", "~ x + (x||ind)", (0, 4, 1), "1/2 chi2(3) + 1/2 chi2(4)"),
        ("~ x + (x|ind)", "~ x", (0, 3, 2), "chi2(3)"),
        ("~ stim + (1|ind) + (1|batch)", "~ stim", (0, 2, 2), "chi2(2)"),
        ("~ stim + (1|ind)", "~ (1|same)", (1, 0, 0), "chi2(1)"),
    ],
)
def test_what_is_left_out(obs, full, reduced, counts, distribution):
    if counts is None:  # the same model, written by all levels of the factor
        with pytest.raises(ValueError, match="leaves nothing out"):
            comparison(obs, full, reduced)
        return
    found = comparison(obs, full, reduced)
    assert (found.n_fixed, found.n_random, found.n_variances) == counts
    assert found.distribution == distribution
    assert found.df == counts[0] + counts[1]


@pytest.mark.parametrize(
    ("full", "reduced", "message"),
    [
        ("~ stim + (1|ind)", "~ age + (1|ind)", "whose fixed effects cannot express 'age'"),
        ("~ stim + (1|ind)", "~ stim + age + x", "cannot express 'age', 'x'"),
        ("~ pair + (1|ind)", "~ level + (1|ind)", r"cannot express 'level\[T.b\]'\.$"),
        ("~ 0 + x + (1|ind)", "~ 1 + (1|ind)", r"cannot express '\(Intercept\)'"),
        ("~ stim + (1|ind)", "~ (1|batch)", r"has the random effects \(1 \| batch\), which no term"),
        ("~ stim + (1|ind)", "~ (1|ind:stim)", r"has the random effects \(1 \| ind:stim\)"),
        ("~ x + (1|ind)", "~ x + (x|ind)", r"\(1 \+ x \| ind\)"),
        ("~ x + (x||ind)", "~ 1 + (x|ind)", r"\(1 \+ x \| ind\)"),
        ("~ x + (0 + x|ind)", "~ x + (1|ind)", r"\(1 \| ind\)"),
        ("~ stim + (1|ind)", "~ stim + (1|ind)", "leaves nothing out"),
        ("~ stim + (1|ind)", "~ 0 + stim + (1|ind)", "leaves nothing out"),
    ],
)
def test_what_is_not_nested(obs, full, reduced, message):
    with pytest.raises(ValueError, match=message):
        comparison(obs, full, reduced)


def test_p_values():
    statistic = np.array([0.0, 1e-3, 2.7055, 6.0, np.nan])
    chi2 = stats.chi2
    np.testing.assert_allclose(Comparison(2, 0, 0).p_values(statistic), chi2.sf(statistic, 2))
    one = Comparison(0, 1, 1).p_values(statistic)
    np.testing.assert_allclose(one, [1, *(chi2.sf(statistic[1:], 1) / 2)])
    assert one[2] == pytest.approx(0.05, abs=1e-5)  # the 10% point of chi2(1)
    two = Comparison(0, 2, 1).p_values(statistic)
    np.testing.assert_allclose(two, (chi2.sf(statistic, 1) + chi2.sf(statistic, 2)) / 2)
    assert Comparison(0, 2, 1).p_values(np.array([5.1389]))[0] == pytest.approx(0.05, abs=1e-4)
    np.testing.assert_allclose(Comparison(1, 2, 2).p_values(statistic), chi2.sf(statistic, 3))


def test_the_mixture_is_that_of_a_normal_mean_that_cannot_be_negative():
    """The case to which the theory reduces: one of d means is at least 0."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200_000, 3))
    statistic = np.maximum(x[:, 0], 0) ** 2
    for d in (1, 2, 3):
        if d > 1:
            statistic = statistic + x[:, d - 1] ** 2
        p = Comparison(0, d, 1).p_values(statistic)
        for level in (0.01, 0.05, 0.3):
            assert np.mean(p < level) == pytest.approx(level, abs=5 * np.sqrt(level / 200_000))
