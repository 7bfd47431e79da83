"""Likelihood-ratio tests of nested models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import scglmm


def test_sleepstudy_fixed_effect(fitted, published):
    small = fitted("sleepstudy", "Reaction ~ 1 + (Days|Subject)", reml=False)
    large = fitted("sleepstudy", "Reaction ~ Days + (Days|Subject)", reml=False)
    table = scglmm.lrt(small, large)
    frozen = published("sleepstudy_tests")["lrt"]
    row = table.iloc[1]
    assert row["chisq"] == pytest.approx(23.54, abs=0.005)
    assert row["p"] == pytest.approx(1.2e-6, abs=5e-8)
    assert row["df"] == 1
    assert "p_mixture" not in table
    for own, theirs in (
        ("npar", "npar"),
        ("aic", "AIC"),
        ("bic", "BIC"),
        ("loglik", "logLik"),
        ("deviance", "deviance"),
    ):
        np.testing.assert_allclose(table[own], [line[theirs] for line in frozen], rtol=1e-7)
    assert scglmm.lrt(large, small).equals(table)


def test_sleepstudy_random_effect(fitted):
    small = fitted("sleepstudy", "Reaction ~ Days + (1|Subject)")
    large = fitted("sleepstudy", "Reaction ~ Days + (Days|Subject)")
    row = scglmm.lrt(small, large).iloc[1]
    assert row["chisq"] == pytest.approx(42.84, abs=0.005)
    assert row["df"] == 2
    assert row["p"] == pytest.approx(4.99e-10, rel=1e-3)
    mixture = (stats.chi2.sf(row["chisq"], 1) + stats.chi2.sf(row["chisq"], 2)) / 2
    assert row["p_mixture"] == pytest.approx(mixture)


def test_one_variance(fitted):
    small = fitted("sleepstudy", "Reaction ~ Days", reml=True)
    large = fitted("sleepstudy", "Reaction ~ Days + (1|Subject)")
    row = scglmm.lrt(small, large).iloc[1]
    assert row["p_mixture"] == pytest.approx(stats.chi2.sf(row["chisq"], 1) / 2)


def test_poisson_within_negative_binomial(fitted):
    formula = "total.fruits ~ nutrient + amd + (1|popu) + (1|gen)"
    small, large = (fitted("arabidopsis", formula, family=family) for family in ("poisson", "nbinom2"))
    row = scglmm.lrt(small, large).iloc[1]
    assert row["df"] == 1
    assert row["p_mixture"] == row["p"] / 2


def test_refusals(fitted, design_data, plots, plot_counts):
    data = design_data("plots")
    days = fitted("sleepstudy", "Reaction ~ Days + (Days|Subject)")
    with pytest.raises(ValueError, match="different fixed effects and are fitted by REML"):
        scglmm.lrt(fitted("sleepstudy", "Reaction ~ 1 + (Days|Subject)"), days)
    with pytest.raises(ValueError, match="One model is fitted by REML"):
        scglmm.lrt(fitted("sleepstudy", "Reaction ~ Days + (1|Subject)", reml=False), days)
    with pytest.raises(ValueError, match="different responses"):
        scglmm.lrt(plots, plot_counts)
    with pytest.raises(ValueError, match=r"different data \(\d+ and \d+ rows\)"):
        scglmm.lrt(plots, scglmm.glmm("y ~ ph + (1|plot)", data.iloc[5:]))
    with pytest.raises(ValueError, match="different data,"):
        scglmm.lrt(plots, scglmm.glmm("y ~ ph + (1|plot)", data.assign(y=data["y"] + 1)))
    ml = {name: scglmm.glmm(f"y ~ {name} + (1|plot)", data, reml=False) for name in ("ph", "soil", "soil + light")}
    with pytest.raises(ValueError, match="not nested: fixed effects of 'y ~ ph"):
        scglmm.lrt(ml["ph"], ml["soil"])
    with pytest.raises(ValueError, match="same number of parameters"):
        scglmm.lrt(ml["ph"], ml["ph"])
    with pytest.raises(ValueError, match="no random '\\(Intercept\\)' for 'plot'"):
        scglmm.lrt(ml["soil"], scglmm.glmm("y ~ soil + light + ph", data, reml=False))
    with pytest.raises(ValueError, match="not nested in one of family"):
        scglmm.lrt(
            scglmm.glmm("count ~ soil + (1|plot)", data, reml=False),
            scglmm.glmm("count ~ soil + light + (1|plot)", data, family="nbinom2"),
        )
    with pytest.raises(ValueError, match="different offsets"):
        scglmm.lrt(ml["ph"], scglmm.glmm("y ~ ph + soil + offset(ph) + (1|plot)", data, reml=False))
    with pytest.raises(TypeError, match=r"two fits of scglmm\.glmm, not str"):
        scglmm.lrt("y ~ x", plots)
