"""R², intraclass correlation and checks against R's `performance`; fractions of variance by their definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import polygamma

import scglmm
from scglmm.mixed import check_overdispersion, check_zeroinflation

SMALL = "total.fruits ~ nutrient + amd + (1|popu) + (1|gen)"
MODELS = {"poisson": "arabidopsis_glmmTMB_poisson", "nbinom2": "arabidopsis_glmmTMB_nbinom2"}


@pytest.mark.parametrize("family", MODELS)
def test_r2_and_icc(fitted, published, family):
    fit, frozen = fitted("arabidopsis", SMALL, family=family), published("arabidopsis_performance")[MODELS[family]]
    r2, icc = fit.r2(), fit.icc()
    assert r2.conditional == pytest.approx(frozen["r2_nakagawa"]["R2_conditional"], rel=1e-4)
    assert r2.marginal == pytest.approx(frozen["r2_nakagawa"]["R2_marginal"], rel=1e-4)
    assert icc.adjusted == pytest.approx(frozen["icc"]["ICC_adjusted"], rel=1e-4)
    assert icc.unadjusted == pytest.approx(frozen["icc"]["ICC_unadjusted"], rel=1e-4)
    by_group = {row["Group"]: row["ICC"] for row in frozen["icc_by_group"]}
    assert icc.by_group == pytest.approx(by_group, rel=1e-3)


@pytest.mark.parametrize(("family", "ratio", "zeros"), [("poisson", 37.82, 3), ("nbinom2", 1.161, 95)])
def test_overdispersion_and_zeros(fitted, published, family, ratio, zeros):
    fit, frozen = fitted("arabidopsis", SMALL, family=family), published("arabidopsis_performance")[MODELS[family]]
    own, theirs = check_overdispersion(fit), frozen["check_overdispersion"]
    assert own.values["ratio"] == pytest.approx(ratio, abs=0.005)
    assert own.values["ratio"] == pytest.approx(theirs["dispersion_ratio"], rel=1e-4)
    assert own.values["chisq"] == pytest.approx(theirs["chisq_statistic"], rel=1e-4)
    assert own.values["df"] == theirs["residual_df"]
    assert own.values["p"] == pytest.approx(theirs["p_value"], rel=1e-2)
    assert not own.ok
    found = check_zeroinflation(fit)
    assert (found.values["observed"], found.values["predicted"]) == (126, zeros)
    assert found.values["ratio"] == pytest.approx(frozen["check_zeroinflation"]["ratio"], rel=1e-6)
    assert not found.ok


def test_zero_inflation_explains_the_zeros(fitted):
    full = "total.fruits ~ nutrient + rack + status + amd + reg + (1|popu) + (1|gen)"
    found = check_zeroinflation(fitted("arabidopsis", full, family="poisson", ziformula="~ 1"))
    assert found.ok
    assert found.values["predicted"] == 126


def test_r2_of_a_linear_model(fitted):
    fit = fitted("sleepstudy", "Reaction ~ Days + (Days|Subject)")
    r2 = fit.r2()
    # performance::r2(lmer(Reaction ~ Days + (Days | Subject), sleepstudy)): 0.799, 0.279
    assert r2.conditional == pytest.approx(0.799, abs=5e-4)
    assert r2.marginal == pytest.approx(0.279, abs=5e-4)
    assert fit.icc().adjusted == pytest.approx(0.722, abs=5e-4)


@pytest.mark.parametrize("method", ["trigamma", "lognormal", "delta"])
def test_fractions_of_counts(fitted, method):
    fit = fitted("arabidopsis", SMALL, family="nbinom2")
    shares = fit.varpart(method)
    assert list(shares.index) == ["nutrient", "amd", "popu", "gen", "CountNoise", "Residuals"]
    assert shares.sum() == pytest.approx(1)
    X, beta = fit.model.design.X, fit.coef_table["estimate"].to_numpy()
    null = scglmm.glmm("total.fruits ~ 1 + (1|popu) + (1|gen)", fit.model.frame, family="nbinom2")
    rate = np.exp(null.coef_table["estimate"].iloc[0] + null.varcorr()["vcov"].sum() / 2)
    noise = 1 / rate + 1 / fit.theta
    D = {"trigamma": polygamma(1, 1 / noise), "lognormal": np.log1p(noise), "delta": noise}[method]
    G = np.var(fit.predict(), ddof=1)
    q = [np.var(X[:, 1] * beta[1], ddof=1), np.var(X[:, 2] * beta[2], ddof=1), *fit.varcorr()["vcov"]]
    np.testing.assert_allclose(shares.iloc[:4], G / (G + D) * np.array(q) / np.sum(q), rtol=1e-5)


def test_fractions_of_a_linear_model(fitted):
    fit = fitted("sleepstudy", "Reaction ~ Days + (Days|Subject)")
    shares = fit.varpart()
    assert list(shares.index) == ["Days", "Subject", "Residuals"]
    assert shares.sum() == pytest.approx(1)
    G = np.var(fit.predict(), ddof=1)
    assert shares["Residuals"] == pytest.approx(fit.sigma**2 / (G + fit.sigma**2))


def test_squared_coefficients_of_variation_of_counts(fitted):
    fit = fitted("arabidopsis", SMALL, family="nbinom2")
    table = fit.cv2()
    assert list(table.index) == ["popu", "gen", "Overdispersion", "Counting"]
    np.testing.assert_allclose(table["cv2"].iloc[:2], np.expm1(fit.varcorr()["vcov"]))
    assert table.loc["Overdispersion", "cv2"] == pytest.approx(1 / fit.theta)
    assert table["percent"].sum() == pytest.approx(100)


def test_without_random_effects(design_data):
    fit = scglmm.glmm("count ~ soil + ph", design_data("plots"), family="nbinom2")
    assert fit.r2().conditional == pytest.approx(fit.r2().marginal)
    assert fit.varpart().sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="no random effects"):
        fit.icc()
    with pytest.raises(ValueError, match="method='best' is not one of"):
        fit.varpart("best")
