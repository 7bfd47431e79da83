"""Contrasts, joint tests and analysis of variance against lmerTest and car; intervals against lme4."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

import scglmm

CONTRASTS = ["soil[T.loam] - soil[T.sand]", "ph + 0.5 * (soil[T.loam]:light[T.shade] + soil[T.sand]:light[T.shade])"]


def test_contrasts_against_lmertest(plots, designs):
    frozen = pd.DataFrame(designs["plots"]["contest1"])
    table = plots.contrast(CONTRASTS)
    assert list(table.index) == CONTRASTS
    for own, theirs in (("estimate", "Estimate"), ("se", "Std. Error"), ("df", "df"), ("statistic", "t value")):
        np.testing.assert_allclose(table[own], frozen[theirs], rtol=2e-3)
    np.testing.assert_allclose(table["p"], frozen["Pr(>|t|)"], rtol=0.01)
    np.testing.assert_allclose(table[["low", "high"]], frozen[["lower", "upper"]], rtol=2e-3)


def test_joint_test_against_lmertest(plots, designs):
    (frozen,) = designs["plots"]["contest"]
    own = plots.joint_test(CONTRASTS)
    assert own["statistic"] == pytest.approx(frozen["F value"], rel=1e-3)
    assert own["num_df"] == 2
    assert own["den_df"] == pytest.approx(frozen["DenDF"], rel=1e-3)
    assert own["p"] == pytest.approx(frozen["Pr(>F)"], rel=0.01)


def test_a_redundant_contrast_changes_nothing(plots):
    first, second = CONTRASTS
    twice = plots.joint_test([first, second, f"2 * ({first}) - ({second})"])
    once = plots.joint_test([first, second])
    assert twice["num_df"] == 2
    # eigenvectors depend on how a hypothesis is written, and df a little on them; F does not
    np.testing.assert_allclose(twice[["statistic", "den_df", "p"]], once[["statistic", "den_df", "p"]], rtol=5e-3)
    assert twice["statistic"] == pytest.approx(once["statistic"], rel=1e-8)


def test_type_three_against_lmertest(plots, designs):
    frozen = pd.DataFrame(designs["plots"]["anova3"]).set_index("term")
    table = plots.anova()
    assert list(table.index) == ["soil", "light", "ph", "soil:light"]
    np.testing.assert_allclose(table["statistic"], frozen.loc[table.index, "F value"], rtol=1e-3)
    np.testing.assert_array_equal(table["num_df"], frozen.loc[table.index, "NumDF"])
    np.testing.assert_allclose(table["den_df"], frozen.loc[table.index, "DenDF"], rtol=1e-3)
    np.testing.assert_allclose(table["p"], frozen.loc[table.index, "Pr(>F)"], rtol=5e-3)


def test_type_two_against_car(plots, plot_counts, designs):
    frozen = pd.DataFrame(designs["plots"]["anova2"]).set_index("term")
    table = plots.anova(type=2)
    np.testing.assert_allclose(table["statistic"] * table["num_df"], frozen.loc[table.index, "Chisq"], rtol=1e-3)
    frozen = pd.DataFrame(designs["counts"]["anova2"]).set_index("term")
    table = plot_counts.anova(type=2)
    assert np.isinf(table["den_df"]).all()
    np.testing.assert_allclose(table["statistic"], frozen.loc[table.index, "Chisq"], rtol=5e-3)
    np.testing.assert_allclose(table["p"], frozen.loc[table.index, "Pr(>Chisq)"], rtol=0.02)


def test_type_three_does_not_depend_on_the_coding(design_data, plots):
    other = scglmm.glmm("y ~ C(soil, Sum) * C(light, Treatment('shade')) + ph + (1|plot)", design_data("plots"))
    np.testing.assert_allclose(other.anova().to_numpy(), plots.anova().to_numpy(), rtol=1e-4)


def test_anova_of_sleepstudy(fitted, published):
    fit = fitted("sleepstudy", "Reaction ~ Days + (Days|Subject)")
    (frozen,) = published("sleepstudy_tests")["satterthwaite"]
    row = fit.anova().loc["Days"]
    assert row["statistic"] == pytest.approx(frozen["F value"], rel=1e-4)
    assert row["den_df"] == pytest.approx(17.0, abs=0.001)
    assert row["p"] == pytest.approx(frozen["Pr(>F)"], rel=1e-3)
    joint = fit.joint_test("Days")
    np.testing.assert_allclose(joint.to_numpy(float), row.to_numpy(float))


def test_profile_intervals_against_lme4(plots, designs):
    frozen = pd.DataFrame(designs["plots"]["profile"])
    table = plots.confint(method="profile")
    # lme4 interpolates its profile with splines
    np.testing.assert_allclose(table[["low", "high"]], frozen[["low", "high"]], rtol=1e-3, atol=1e-3)


def test_profile_intervals_of_variances_against_lme4(fitted):
    fit = fitted("sleepstudy", "Reaction ~ Days + (Days|Subject)")
    table = fit.confint(method="profile", parm=["sd[Subject]", "sd[Subject:Days]", "sigma", "Days"])
    # lme4: confint(lmer(Reaction ~ Days + (Days | Subject), sleepstudy, REML = FALSE))
    expected = [[14.38148, 37.71602], [3.801165, 8.753367], [22.89827, 28.85800], [7.358653, 13.57592]]
    np.testing.assert_allclose(table[["low", "high"]], expected, rtol=2e-5)


def test_profile_of_a_slope_whose_correlation_is_nearly_minus_one(design_data):
    """The likelihood at the limits, from the normal density of all rows, searched by scipy."""
    data = design_data("plots")
    fit = scglmm.glmm("y ~ soil + ph + (ph|plot)", data, reml=False)
    limits = fit.confint(method="profile", parm="sd[plot:ph]").loc["sd[plot:ph]", ["low", "high"]]
    X, y, ph = fit.model.design.X, data["y"].to_numpy(), data["ph"].to_numpy()
    same = data["plot"].to_numpy()[:, None] == data["plot"].to_numpy()

    def deviance(x, sd):
        root = np.array([[np.exp(x[0]), 0], [sd * np.tanh(x[1]), sd / np.cosh(x[1])]])
        Z = np.column_stack([np.ones_like(ph), ph]) @ root
        V = same * (Z @ Z.T) + np.exp(2 * x[2]) * np.eye(y.size)
        half = np.linalg.cholesky(V)
        Xw, yw = solve_triangular(half, X, lower=True), solve_triangular(half, y, lower=True)
        rest = yw - Xw @ np.linalg.lstsq(Xw, yw, rcond=None)[0]
        return rest @ rest + 2 * np.log(half.diagonal()).sum() + y.size * np.log(2 * np.pi)

    for sd in limits:
        start = [np.log(6 * sd), -2.0, np.log(fit.sigma)]
        found = minimize(deviance, start, args=(sd,), method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-7})
        assert found.fun + 2 * fit.loglik == pytest.approx(stats.chi2.ppf(0.95, 1), abs=1e-4)


def test_profile_of_a_variance_at_zero(fitted):
    fit = fitted("arabidopsis", "total.fruits ~ nutrient + amd + (1|popu) + (1|gen)")
    table = fit.confint(method="profile", parm=["sd[gen]", "sd[popu]"])
    # lme4: confint(lmer(total.fruits ~ nutrient + amd + (1 | popu) + (1 | gen), A, REML = FALSE))
    np.testing.assert_allclose(table[["low", "high"]], [[0, 6.558781], [7.202086, 20.699018]], rtol=1e-4)


def test_profile_of_theta(design_data):
    fit = scglmm.glmm("count ~ soil + ph", design_data("plots"), family="nbinom2")
    limits = fit.confint(method="profile", parm="theta").loc["theta"]
    assert limits["low"] < fit.theta < limits["high"]
    X, y = fit.model.design.X, fit.model.y

    def deviance(beta, theta):
        return -2 * stats.nbinom.logpmf(y, theta, theta / (theta + np.exp(X @ beta))).sum()

    for theta in limits[["low", "high"]]:
        found = minimize(deviance, fit.coef_table["estimate"], args=(theta,), method="BFGS", options={"gtol": 1e-4})
        assert found.fun + 2 * fit.loglik == pytest.approx(stats.chi2.ppf(0.95, 1), abs=1e-4)


@pytest.mark.parametrize("options", [{"family": "nbinom2"}, {"family": "poisson"}, {"family": "gaussian"}])
def test_profile_of_an_intercept_alone(design_data, options):
    fit = scglmm.glmm("count ~ 1 + (1|plot)", design_data("plots"), reml=False, **options)
    row = fit.confint(method="profile").loc["(Intercept)"]
    wald = fit.confint().loc["(Intercept)"]
    assert row["low"] < row["estimate"] < row["high"]
    np.testing.assert_allclose(row, wald, atol=0.15 * (wald["high"] - wald["low"]))


def test_wald_intervals_use_the_quantile_of_their_test(plots, plot_counts):
    for fit in (plots, plot_counts):
        table, limits = fit.coef_table, fit.confint(0.9)
        df = table["df"].to_numpy()
        q = np.where(np.isinf(df), stats.norm.ppf(0.95), stats.t.ppf(0.95, np.where(np.isinf(df), 1, df)))
        np.testing.assert_allclose(limits["high"] - limits["estimate"], q * table["se"])
    assert list(plots.confint(parm="ph").index) == ["ph"]


def test_cond_is_a_row_of_the_design(plots, design_data):
    data = design_data("plots")
    difference = plots.cond(soil="sand", light="shade") - plots.cond(light="shade")
    by_name = plots.contrast("soil[T.sand] + soil[T.sand]:light[T.shade]").iloc[0]
    by_row = plots.contrast(difference).iloc[0]
    by_text = plots.contrast('cond(soil="sand", light="shade") - cond(light="shade")').iloc[0]
    np.testing.assert_allclose(by_row, by_name)
    np.testing.assert_allclose(by_text, by_name)
    alone = plots.contrast("cond(ph=6.5)").iloc[0]
    newdata = pd.DataFrame({"soil": ["clay"], "light": ["full"], "ph": [6.5]})
    assert alone["estimate"] == pytest.approx(plots.predict(newdata, re_form=False)[0])
    assert plots.cond()[plots.model.design.columns.index("ph")] == pytest.approx(data["ph"].mean())


def test_a_hypothesis_with_a_value(plots):
    free, shifted = plots.contrast("ph").iloc[0], plots.contrast("ph = 0.25").iloc[0]
    assert shifted["estimate"] == free["estimate"]
    assert shifted["statistic"] == pytest.approx((free["estimate"] - 0.25) / free["se"])
    np.testing.assert_allclose(shifted[["low", "high"]], free[["low", "high"]])


def test_names_and_vectors(plots):
    p = len(plots.model.design.columns)
    weights = np.eye(p)[-1]
    table = plots.contrast({"a": weights, "b": plots.model.design.columns[-1]})
    assert list(table.index) == ["a", "b"]
    np.testing.assert_allclose(table.loc["a"], table.loc["b"])
    np.testing.assert_allclose(plots.contrast(weights).iloc[0], table.loc["a"])
    np.testing.assert_allclose(plots.contrast(np.eye(p)[-2:])["estimate"], plots.coef_table["estimate"].iloc[-2:])


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("soil[T.lome]", KeyError, "'soil\\[T.lome\\]' is not a coefficient"),
        ("cond(soyl='clay')", KeyError, "'soyl' is no column of the fixed effects; these are 'soil'"),
        ("cond(soil='peat')", ValueError, "unknown to the model"),
        ("cond(ph='high')", ValueError, "'ph' is a number in the model"),
        ("ph * ph", ValueError, "a contrast is linear"),
        ("ph - ph", ValueError, "nothing to test"),
        ("__import__('os').system('true')", KeyError, "is not a coefficient"),
        ("cond(ph=__import__('os'))", ValueError, "a value is a number or a level in quotes"),
        ([], ValueError, "the list is empty"),
        (np.zeros(7), ValueError, "All weights"),
        (np.ones(3), ValueError, "one finite number per coefficient, 7 in all"),
    ],
)
def test_bad_contrasts(plots, what, error, message):
    with pytest.raises(error, match=message):
        plots.contrast(what)


def test_other_bad_arguments(plots, design_data):
    with pytest.raises(ValueError, match="level must be a number between 0 and 1"):
        plots.confint(95)
    with pytest.raises(ValueError, match="method='boot' is not one of"):
        plots.confint(method="boot")
    with pytest.raises(KeyError, match="'pH' is no parameter with an interval; they are 'ph'"):
        plots.confint(parm="pH")
    with pytest.raises(ValueError, match=r"'sd\[plot\]' has no Wald interval"):
        plots.confint(parm="sd[plot]")
    with pytest.raises(ValueError, match="neither 2 nor 3"):
        plots.anova(1)
    with pytest.raises(ValueError, match="no fixed terms"):
        scglmm.glmm("y ~ 1 + (1|plot)", design_data("plots")).anova()
