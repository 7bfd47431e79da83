"""Linear mixed models against lme4, lmerTest and glmmTMB on published data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scglmm


def fixed(frozen):
    return pd.DataFrame(frozen["fixed"]).set_index("term")


def check_fixed(fit, frozen, rtol=1e-5):
    """LMM: coefficients to 1e-5, standard errors within 1%."""
    expected = fixed(frozen)
    scale = np.maximum(np.abs(expected["estimate"]), expected["se"]).to_numpy()
    np.testing.assert_array_less(np.abs(fit.coef_table["estimate"].to_numpy() - expected["estimate"]) / scale, rtol)
    np.testing.assert_allclose(fit.coef_table["se"], expected["se"], rtol=0.01)


def check_loglik(fit, frozen):
    """Within 0.01 of the frozen value or better."""
    assert fit.loglik > frozen["logLik"] - 0.01


def test_sleepstudy_reml(fitted, published):
    fit, frozen = fitted("sleepstudy", "Reaction ~ Days + (Days|Subject)"), published("sleepstudy_lmer_reml")
    check_fixed(fit, frozen)
    assert fit.reml
    assert not fit.singular
    assert fit.status == "ok"
    assert -2 * fit.loglik == pytest.approx(frozen["REMLcrit"], abs=1e-4)
    np.testing.assert_allclose(fit.coef_table["df"], fixed(frozen)["df"], rtol=1e-3)
    np.testing.assert_allclose(fit.coef_table["p"], fixed(frozen)["p"], rtol=0.01)
    np.testing.assert_allclose(fit.vcov, frozen["vcov"], rtol=0.01)
    covariance = np.array(frozen["varcomp"]["Subject"]["cov"])
    table = fit.varcorr()
    np.testing.assert_allclose(
        table["vcov"], [*covariance.diagonal(), covariance[0, 1], frozen["sigma"] ** 2], rtol=1e-3
    )
    np.testing.assert_allclose(table["sdcor"][2], 0.0656, atol=1e-4)
    assert fit.sigma == pytest.approx(frozen["sigma"], rel=1e-4)
    assert fit.aic == pytest.approx(1755.628, abs=0.001)


def test_sleepstudy_random_effects(fitted, published):
    fit, frozen = fitted("sleepstudy", "Reaction ~ Days + (Days|Subject)"), published("sleepstudy_lmer_reml")
    expected = pd.DataFrame(frozen["blups"]["Subject"]).set_index("level")
    table = fit.ranef()
    assert list(table.columns) == ["group", "level", "term", "estimate", "sd", "pred_sd"]
    for term in ("(Intercept)", "Days"):
        own = table[table["term"] == term].set_index("level")
        np.testing.assert_allclose(own["estimate"], expected[term], atol=2e-3)
        np.testing.assert_allclose(fit.coef()[term], expected[term] + fixed(frozen)["estimate"][term], atol=2e-3)
        assert (own["pred_sd"] > own["sd"]).all()
    sd = np.sqrt(frozen["blup_condvar"]["Subject"][:4:3])
    np.testing.assert_allclose(table[table["level"] == "308"]["sd"], sd, rtol=1e-4)


def test_sleepstudy_ml(fitted, published):
    fit = fitted("sleepstudy", "Reaction ~ Days + (Days|Subject)", reml=False)
    frozen = published("sleepstudy_lmer_ml")
    check_fixed(fit, frozen)
    assert fit.loglik == pytest.approx(frozen["logLik"], abs=1e-5)
    assert fit.n_params == 6


def test_sim145(fitted, published):
    null, frozen = fitted("sim145", "y ~ 1 + (1|groupID)", reml=False), published("sim145_glmmTMB_null")
    np.testing.assert_allclose(null.varcorr()["vcov"], [9.205, 11.869], atol=5e-4)
    assert null.loglik == pytest.approx(frozen["logLik"], abs=1e-5)
    assert null.bic == pytest.approx(frozen["BIC"], abs=1e-3)
    # glmmTMB adds what the estimation of the variances costs, up to 3% here
    ratio = frozen["blup_condvar"]["groupID"] / null.ranef()["pred_sd"] ** 2
    assert ratio.between(1 - 1e-6, 1.03).all()
    fit = fitted("sim145", "y ~ x1 + (1|groupID)", reml=False)
    check_fixed(fit, published("sim145_glmmTMB_x1"))
    assert fit.coef_table.loc["x1", "estimate"] == pytest.approx(1.4528, abs=5e-5)
    np.testing.assert_allclose(fit.varcorr()["vcov"], [10.576, 4.081], atol=5e-4)
    coef = fit.coef("groupID")["(Intercept)"]
    assert coef["Group1"] == pytest.approx(19.194, abs=5e-4)
    assert coef["Group9"] == pytest.approx(23.142, abs=5e-4)


def test_percent_among_groups(fitted, published):
    table = fitted("sim145", "y ~ 1 + (1|groupID)", reml=False).cv2()
    assert table.loc["groupID", "percent"] == pytest.approx(43.68, abs=0.005)
    mean = published("sim145")["y"].mean()
    np.testing.assert_allclose(table["cv2"], table["variance"] / mean**2)
    assert table["percent"].sum() == pytest.approx(100)


def test_blossoms_nested(published):
    null = scglmm.glmm("UBW ~ 1 + (1|pop/patch)", published("blossoms"), reml=False, na_action="drop")
    assert null.model.dropped == 1
    table = null.varcorr().set_index("grp")["vcov"]
    np.testing.assert_allclose(table[["pop:patch", "pop", "Residual"]], [3.238, 1.143, 4.463], atol=1.5e-3)
    check_loglik(null, published("blossoms_glmmTMB_null"))


def test_blossoms_with_covariate(published):
    fit = scglmm.glmm("UBW ~ LBW + (1|pop/patch)", published("blossoms"), reml=False, na_action="drop")
    frozen = fixed(published("blossoms_glmmTMB_lbw"))
    np.testing.assert_allclose(fit.coef_table["estimate"], frozen["estimate"], rtol=1e-5)
    # lme4's standard errors, at the estimated variances; glmmTMB's, 0.5886 and 0.0292, invert the whole Hessian
    np.testing.assert_allclose(fit.coef_table["se"], [0.54355537, 0.02699216], rtol=1e-4)
    assert fit.coef_table.loc["LBW", "estimate"] == pytest.approx(0.8267, abs=5e-5)
    table = fit.varcorr().set_index("grp")["vcov"]
    np.testing.assert_allclose(table[["pop:patch", "pop", "Residual"]], [0.2255, 0.1045, 1.0128], atol=2e-4)


def test_arabidopsis(fitted, published):
    fit = fitted("arabidopsis", "total.fruits ~ nutrient + amd + (1|popu) + (1|gen)")
    frozen = published("arabidopsis_lmer_reml")
    check_fixed(fit, frozen)
    assert -2 * fit.loglik == pytest.approx(6245.2, abs=0.05)
    table = fit.varcorr().set_index("grp")["vcov"]
    assert table["popu"] == pytest.approx(151.7, abs=0.05)
    assert table["Residual"] == pytest.approx(1264, abs=0.5)
    assert table["gen"] == 0
    np.testing.assert_allclose(
        fit.coef_table.loc["nutrient", ["estimate", "se", "df"]], [4.578, 0.407, 614.9], atol=0.05
    )
    assert fit.singular
    assert fit.status == "singular"
    assert "the variance of 'gen' is 0" in str(fit)
