"""Designs on the boundary, simulated in R and fitted by lme4 (`tests/reference/glmm_designs.R`)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scglmm


def check(fit, frozen, rtol=1e-4):
    expected = pd.DataFrame(frozen["coefficients"])
    np.testing.assert_allclose(fit.coef_table["estimate"], expected["Estimate"], rtol=rtol)
    np.testing.assert_allclose(fit.coef_table["se"], expected["Std. Error"], rtol=1e-3)
    assert fit.loglik > frozen["loglik"] - 1e-5
    assert fit.loglik == pytest.approx(frozen["loglik"], abs=1e-3)
    assert fit.aic == pytest.approx(frozen["aic"], abs=2e-3)
    assert fit.bic == pytest.approx(frozen["bic"], abs=2e-3)
    assert fit.singular == frozen["singular"]
    table = pd.DataFrame(frozen["varcorr"])
    np.testing.assert_allclose(fit.varcorr()["sdcor"], table["sdcor"], rtol=2e-3, atol=1e-6)


def test_ten_samples_of_fifty_cells_without_variance_between_samples(design_data, designs):
    fit = scglmm.glmm("y ~ group + offset(log(depth)) + (1|sample)", design_data("cells"), family="poisson")
    check(fit, designs["cells"])
    assert fit.status == "singular"
    assert fit.varcorr()["vcov"][0] == 0
    assert (fit.ranef()["estimate"] == 0).all()
    assert "the variance of 'sample' is 0" in str(fit)
    frozen = designs["cells"]
    np.testing.assert_allclose(fit.residuals("deviance")[:20], frozen["deviance_residuals"], atol=1e-4)
    np.testing.assert_allclose(fit.residuals("pearson")[:20], frozen["pearson_residuals"], atol=1e-4)


def test_response_to_a_drug_with_correlation_minus_one(design_data, designs):
    fit = scglmm.glmm("y ~ drug + (drug|strain)", design_data("strains"))
    check(fit, designs["strains"])
    assert fit.status == "singular"
    assert fit.varcorr()["sdcor"][2] == pytest.approx(-1, abs=1e-6)
    # lmerTest's degrees of freedom are by finite differences, which are rough at the boundary
    np.testing.assert_allclose(
        fit.coef_table["df"], [row["df"] for row in designs["strains"]["coefficients"]], rtol=0.02
    )
    assert "the correlation is -1" in str(fit)


def test_a_grouping_factor_of_two_levels_is_warned_about(design_data, designs):
    with pytest.warns(UserWarning, match="'batch' has only 2 levels"):
        fit = scglmm.glmm("y ~ x + (1|batch)", design_data("two"))
    check(fit, designs["two"])
    np.testing.assert_allclose(fit.coef_table["df"], [row["df"] for row in designs["two"]["coefficients"]], rtol=0.02)


def test_unbalanced_crossed_factors(plots, designs):
    check(plots, designs["plots"])
    np.testing.assert_allclose(
        plots.coef_table["df"], [row["df"] for row in designs["plots"]["coefficients"]], rtol=1e-3
    )
    np.testing.assert_allclose(
        plots.coef_table["p"], [row["Pr(>|t|)"] for row in designs["plots"]["coefficients"]], rtol=5e-3
    )


def test_coefficients_and_effects_of_a_slope(design_data, designs):
    fit = scglmm.glmm("y ~ soil * light + ph + (ph|plot)", design_data("plots"))
    frozen = designs["plots"]
    check(fit, frozen["slope"], rtol=1e-3)
    expected = pd.DataFrame(frozen["slope_coef"]).set_index("level").drop(columns="_row", errors="ignore")
    expected.columns = [name.replace("soil", "soil[T.").replace("light", "light[T.") for name in expected.columns]
    own = fit.coef("plot")
    assert list(own.columns) == fit.model.design.columns
    np.testing.assert_allclose(own.loc[expected.index], expected, atol=5e-3)
    effects = pd.DataFrame(frozen["slope_ranef"])
    merged = fit.ranef().merge(effects, left_on=["level", "term"], right_on=["grp", "term"])
    assert len(merged) == len(effects) == len(fit.ranef())
    np.testing.assert_allclose(merged["estimate"], merged["condval"], atol=5e-3)
    np.testing.assert_allclose(merged["sd"], merged["condsd"], rtol=5e-3)


def test_negative_binomial(plot_counts, designs):
    frozen = designs["counts"]
    expected = pd.DataFrame(frozen["coefficients"])
    assert plot_counts.loglik == pytest.approx(frozen["loglik"], abs=1e-4)
    assert plot_counts.theta == pytest.approx(frozen["theta"], rel=1e-3)
    np.testing.assert_allclose(plot_counts.coef_table["estimate"], expected["Estimate"], atol=2e-4)
    np.testing.assert_allclose(plot_counts.coef_table["se"], expected["Std. Error"], rtol=1e-2)
    np.testing.assert_allclose(plot_counts.residuals("response")[:20], frozen["response_residuals"], atol=5e-3)
    np.testing.assert_allclose(plot_counts.residuals("pearson")[:20], frozen["pearson_residuals"], atol=5e-3)
