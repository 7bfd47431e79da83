"""Checks of a fit, and the influence of its groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scglmm
from scglmm.mixed import (
    check_collinearity,
    check_convergence,
    check_overdispersion,
    check_singular,
    check_zeroinflation,
    influence,
    vif,
)


def test_vif_against_car(plots, designs):
    frozen = pd.DataFrame(designs["plots"]["vif"]).set_index("term")
    table = vif(plots)
    np.testing.assert_allclose(table["vif"], frozen.loc[table.index, "GVIF"], rtol=1e-4)
    np.testing.assert_array_equal(table["df"], frozen.loc[table.index, "Df"])
    np.testing.assert_allclose(table["se_factor"], frozen.loc[table.index, "GVIF^(1/(2*Df))"], rtol=1e-4)
    assert plots.vif().equals(table)
    assert check_collinearity(plots).ok


def test_collinearity_is_said(design_data):
    rng = np.random.default_rng(1)
    data = design_data("plots")
    data = data.assign(acid=data["ph"] + rng.normal(0, 0.1, len(data)))
    found = check_collinearity(scglmm.glmm("y ~ ph + acid + soil + (1|plot)", data))
    assert not found.ok
    assert found.message.startswith("High collinearity of ph (")
    assert "leave one of them out" in found.message
    with pytest.raises(ValueError, match="fewer than two fixed terms"):
        vif(scglmm.glmm("y ~ ph + (1|plot)", data))


def test_singular_fits_name_the_term(design_data):
    cells = scglmm.glmm("y ~ group + offset(log(depth)) + (1|sample)", design_data("cells"), family="poisson")
    found = check_singular(cells)
    assert not found.ok
    assert "the variance of 'sample' is 0 (simplify by leaving (1|sample) out)" in found.message
    assert found.values == {"(1|sample)": 0}
    strains = scglmm.glmm("y ~ drug + (drug|strain)", design_data("strains"))
    found = check_singular(strains)
    assert not found.ok
    assert (
        "(1 + drug|strain) the correlation is -1 (simplify to uncorrelated effects, (1 + drug||strain)" in found.message
    )
    assert found.values["(1 + drug|strain)"] == pytest.approx(0, abs=1e-6)


def test_a_good_fit(plots):
    checks = plots.check()
    assert [c.name for c in checks] == ["convergence", "singularity", "collinearity"]
    assert all(c.ok for c in checks)
    assert all(str(c).endswith(".") for c in checks)
    assert check_convergence(plots).values["gradient"] < 1e-3
    assert check_singular(plots).ok
    assert "convergence: ok" in repr(checks[0])


def test_each_check_of_counts_says_what_to_do(design_data):
    rng = np.random.default_rng(2)
    data = design_data("plots")
    mean = np.exp(1.5 + 0.3 * data["ph"].to_numpy() - 1.8)
    good = scglmm.glmm("y ~ ph + (1|plot)", data.assign(y=rng.poisson(mean)), family="poisson")
    assert check_overdispersion(good).ok
    assert check_zeroinflation(good).values["observed"] == (good.model.y == 0).sum()
    over = scglmm.glmm(
        "y ~ ph + (1|plot)", data.assign(y=rng.negative_binomial(0.7, 0.7 / (0.7 + mean))), family="poisson"
    )
    found = check_overdispersion(over)
    assert not found.ok
    assert "use family='nbinom2'" in found.message
    under = scglmm.glmm("y ~ ph + (1|plot)", data.assign(y=np.round(mean)), family="poisson")
    assert "less than the model expects" in check_overdispersion(under).message
    none = scglmm.glmm("y ~ ph + (1|plot)", data.assign(y=1 + rng.poisson(mean)), family="poisson")
    assert check_zeroinflation(none).message == "There are no zeros in the response."
    for check in (check_overdispersion, check_zeroinflation):
        with pytest.raises(ValueError, match="is for counts"):
            check(scglmm.glmm("y ~ ph + (1|plot)", data))


def test_separation_is_said(design_data):
    data = design_data("plots")
    data = data.assign(count=data["count"].where(data["soil"] != "sand", 0))
    with pytest.warns(UserWarning, match=r"No finite estimate exists for soil\[T.sand\]"):
        fit = scglmm.glmm("count ~ soil + (1|plot)", data, family="poisson")
    assert fit.status == "separated"
    found = check_convergence(fit)
    assert not found.ok
    assert "The maximum is at infinity for soil[T.sand]" in found.message
    assert "The maximum is at infinity" in str(fit)
    table = fit.contrast(["soil[T.loam]", "soil[T.sand] - soil[T.loam]"])
    assert table["p"].notna().to_list() == [True, False]
    assert np.isnan(fit.anova().loc["soil", "p"])
    assert fit.predict(data, "response").isna().to_list() == (data["soil"] == "sand").to_list()
    for refused in (fit.r2, fit.varpart, lambda: fit.confint(method="profile"), lambda: scglmm.pl.check_model(fit)):
        with pytest.raises(ValueError, match="separated"):
            refused()


def test_influence_is_that_of_leaving_a_group_out(plots, design_data):
    """Generalised least squares without each group, at the variances of the whole fit."""
    data = design_data("plots")
    X, y = plots.model.design.X, data["y"].to_numpy()
    between, within = plots.varcorr()["vcov"]
    V = within * np.eye(len(data)) + between * (data["plot"].to_numpy()[:, None] == data["plot"].to_numpy())
    table = influence(plots)
    assert table["cook"].is_monotonic_decreasing

    def gls(rows):
        inverse = np.linalg.inv(V[np.ix_(rows, rows)])
        covariance = np.linalg.inv(X[rows].T @ inverse @ X[rows])
        return covariance @ X[rows].T @ inverse @ y[rows], covariance

    beta, covariance = gls(np.arange(len(data)))
    for level in table.index:
        change = gls(np.flatnonzero(data["plot"] != level))[0] - beta
        np.testing.assert_allclose(table.loc[level, plots.model.design.columns], change, rtol=1e-5, atol=1e-9)
        cook = change @ np.linalg.solve(covariance, change) / change.size
        assert table.loc[level, "cook"] == pytest.approx(cook, rel=1e-5)
        assert table.loc[level, "rows"] == (data["plot"] == level).sum()


def test_influence_of_groups_of_counts_is_near_that_of_a_refit(plot_counts, design_data):
    data = design_data("plots")
    table = influence(plot_counts)
    level = table.index[0]
    again = scglmm.glmm(plot_counts.formula, data[data["plot"] != level], family="nbinom2")
    change = again.coef_table["estimate"] - plot_counts.coef_table["estimate"]
    moved = table.loc[level, change.index]
    assert np.corrcoef(moved.astype(float), change)[0, 1] > 0.9


def test_influence_arguments(design_data, fitted):
    fit = scglmm.glmm("y ~ ph + (1|plot) + (1|soil:light)", design_data("plots"))
    assert influence(fit).index.name == "soil:light"
    assert influence(fit, "plot").index.name == "plot"
    with pytest.raises(KeyError, match="no grouping factor 'plott'; they are 'plot'"):
        influence(fit, "plott")
    with pytest.raises(ValueError, match="no random effects"):
        influence(scglmm.glmm("y ~ ph", design_data("plots")))
