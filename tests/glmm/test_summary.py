"""What is printed, and the tables that other software knows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scglmm

SLEEP = """\
Linear mixed model fit by REML
   Family: gaussian ( identity )
  Formula: Reaction ~ Days + (Days|Subject)

      AIC       BIC    logLik  REMLcrit  df.resid
   1755.6    1774.8    -871.8    1743.6     151.0

Random effects:
 Groups   Name        Variance Std.Dev. Corr
 Subject  (Intercept)   612.{..}   24.74{.}
          Days           35.07    5.922 0.07
 Residual               654.94   25.592
Number of obs: 180, groups:  Subject, 18

Fixed effects:
            Estimate Std. Error   df t value Pr(>|t|)
(Intercept)  251.405      6.825 17.0  36.838  < 2e-16 ***
Days          10.467      1.546 17.0   6.771 3.26e-06 ***
---
Signif. codes:  0 ‘***’ 0.001 ‘**’ 0.01 ‘*’ 0.05 ‘.’ 0.1 ‘ ’ 1"""


def test_summary_of_sleepstudy(fitted):
    lines = str(fitted("sleepstudy", "Reaction ~ Days + (Days|Subject)")).splitlines()
    expected = SLEEP.splitlines()
    assert len(lines) == len(expected)
    for line, wanted in zip(lines, expected, strict=True):
        assert line == wanted or ("{" in wanted and line.startswith(wanted.split("{")[0])), line


def test_summary_of_counts(fitted):
    full = "total.fruits ~ nutrient + rack + status + amd + reg + (1|popu) + (1|gen)"
    text = fitted("arabidopsis", full, family="poisson", ziformula="~ 1").summary()
    for piece in (
        "Generalized linear mixed model fit by maximum likelihood (Laplace approximation)",
        "   Family: poisson ( log )",
        "Zero infl: ~ 1",
        "-8021.6",
        "popu, 9; gen, 24",
        "Zero-inflation model",
        "(Intercept)  -1.3808     0.1001 -13.800  < 2e-16 ***",
        "z value Pr(>|z|)",
    ):
        assert piece in text
    text = fitted("arabidopsis", "total.fruits ~ nutrient + amd + (1|popu) + (1|gen)", family="nbinom2").summary()
    assert "Dispersion parameter theta for nbinom2 family: 0.5360" in text
    assert "5051.1    5077.7   -2519.5    5039.1" in text


def test_html(plots, fitted):
    html = plots._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 4
    assert "soil[T.loam]:light[T.shade]" in html
    assert "Pr(&gt;|t|)" in html
    full = "total.fruits ~ nutrient + rack + status + amd + reg + (1|popu) + (1|gen)"
    assert "Zero-inflation" in fitted("arabidopsis", full, family="poisson", ziformula="~ 1")._repr_html_()


def test_names_cannot_inject_markup(design_data):
    data = design_data("plots").rename(columns={"ph": "<script>alert(1)</script>"})
    fit = scglmm.glmm("y ~ `<script>alert(1)</script>` + (1|plot)", data)
    assert "<script>" not in fit._repr_html_()


def test_broom(plots, plot_counts):
    table = plots.to_frame(conf_int=True)
    assert list(table.columns) == [
        "effect", "component", "group", "term", "estimate", "std.error", "statistic", "df", "p.value",
        "conf.low", "conf.high",
    ]  # fmt: skip
    assert set(table["effect"]) == {"fixed", "ran_pars"}
    assert table["term"].to_list()[-2:] == ["sd__(Intercept)", "sd__Observation"]
    assert table["group"].to_list()[-2:] == ["plot", "Residual"]
    np.testing.assert_allclose(table["std.error"].iloc[:7], plots.coef_table["se"])
    values = plot_counts.to_frame("ran_vals")
    assert list(values["level"]) == plot_counts.model.design.random[0].levels
    glance = plots.glance()
    assert glance["nobs"] == plots.nobs
    assert glance["df"] == plots.n_params
    assert len(scglmm.glmm("y ~ ph", plots.model.frame.assign(y=plots.model.y)).to_frame("ran_vals")) == 0
    with pytest.raises(ValueError, match="effects='random' is not one of"):
        plots.to_frame("random")


def test_correlation_in_broom(design_data):
    fit = scglmm.glmm("y ~ ph + (ph|plot)", design_data("plots"))
    assert list(fit.to_frame("ran_pars")["term"]) == [
        "sd__(Intercept)",
        "sd__ph",
        "cor__(Intercept).ph",
        "sd__Observation",
    ]


def test_coef_wants_a_group_where_there_are_several(fitted, design_data):
    fit = fitted("arabidopsis", "total.fruits ~ nutrient + amd + (1|popu) + (1|gen)", family="nbinom2")
    with pytest.raises(ValueError, match="Say which grouping factor is meant; they are 'popu', 'gen'"):
        fit.coef()
    with pytest.raises(KeyError, match="no grouping factor 'pop'; they are 'popu'"):
        fit.coef("pop")
    plain = scglmm.glmm("y ~ ph", design_data("plots"))
    with pytest.raises(ValueError, match="no random effects"):
        plain.coef()
    assert plain.ranef().empty
    assert "Linear model fit by REML" in str(plain)
    assert "Residual standard error" in str(plain)


def test_uncorrelated_slopes_are_one_table(design_data):
    fit = scglmm.glmm("y ~ ph + (ph||plot)", design_data("plots"))
    coef = fit.coef()
    effects = fit.ranef()
    assert {"(Intercept)", "ph"} <= set(coef.columns)
    total = effects[effects["term"] == "ph"].set_index("level")["estimate"] + fit.coef_table.loc["ph", "estimate"]
    np.testing.assert_allclose(coef["ph"], total)


@pytest.mark.parametrize("family", ["gaussian", "nbinom2"])
def test_plain_models_against_scipy(design_data, family):
    data = design_data("plots")
    fit = scglmm.glmm("count ~ soil + ph", data, family=family)
    X, y = fit.model.design.X, data["count"].to_numpy(float)
    assert fit.df_residual == pytest.approx(len(y) - 4, abs=1e-6)
    if family == "gaussian":
        beta, rss, *_ = np.linalg.lstsq(X, y, rcond=None)
        np.testing.assert_allclose(fit.coef_table["estimate"], beta)
        assert fit.sigma**2 == pytest.approx(rss[0] / (len(y) - 4))
        np.testing.assert_allclose(fit.coef_table["df"], len(y) - 4, rtol=1e-4)
        np.testing.assert_allclose(fit.vcov, fit.sigma**2 * np.linalg.inv(X.T @ X))
    else:
        score = X.T @ ((y - fit.fitted()) / (1 + fit.fitted() / fit.theta))
        np.testing.assert_allclose(score, 0, atol=1e-3)


def test_data_may_be_a_dictionary(design_data):
    data = design_data("plots")
    own = scglmm.glmm("y ~ ph + (1|plot)", {name: data[name].to_numpy() for name in data})
    pd.testing.assert_frame_equal(own.coef_table, scglmm.glmm("y ~ ph + (1|plot)", data).coef_table)
