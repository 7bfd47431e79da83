"""Predictions for old and new rows, against R and against matrices written out."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy.linalg import block_diag

import scglmm


@pytest.fixture(scope="module")
def newdata(designs):
    return pd.DataFrame(designs["plots"]["newdata"])


def test_against_lme4(plots, newdata, designs):
    frozen = designs["plots"]
    np.testing.assert_allclose(plots.predict(newdata), frozen["predicted"], rtol=1e-5)
    np.testing.assert_allclose(plots.predict(newdata, re_form=False), frozen["predicted_population"], rtol=1e-6)
    np.testing.assert_allclose(plots.predict(newdata, re_form="~ 0"), frozen["predicted_population"], rtol=1e-6)


def test_counts_against_glmmtmb(plot_counts, newdata, designs):
    frozen = designs["counts"]
    population = pd.DataFrame(frozen["population"])
    own = plot_counts.predict(newdata, re_form=False, se=True)
    np.testing.assert_allclose(own["fit"], population["fit"], atol=2e-4)
    np.testing.assert_allclose(own["se"], population["se"], rtol=1e-2)
    own = plot_counts.predict(newdata[newdata["plot"] == "p3"], "response")
    np.testing.assert_allclose(own, frozen["conditional"], rtol=1e-3)


def test_rows_of_the_fit_are_predicted_as_they_were_fitted(plots, plot_counts, design_data):
    data = design_data("plots")
    for fit in (plots, plot_counts):
        for re_form in (None, False):
            np.testing.assert_allclose(fit.predict(data, re_form=re_form), fit.predict(re_form=re_form), rtol=1e-10)
        np.testing.assert_allclose(fit.predict(), fit.estimates.eta, rtol=1e-10)
        np.testing.assert_allclose(fit.predict(re_form=False), fit.estimates.eta_fixed, rtol=1e-10)
        np.testing.assert_allclose(fit.fitted(), fit.predict(data, "response"), rtol=1e-10)
        assert fit.fitted().index.equals(data.index)


def test_everything_that_a_formula_may_hold(design_data):
    data = design_data("plots").assign(effort=lambda d: 1 + d.index % 5)
    formula = "count ~ bs(ph, df=3) + soil + offset(log(effort)) + (1 + scale(ph)|plot) + (1|plot:light)"
    fit = scglmm.glmm(formula, data, family="poisson")
    few = data.iloc[[30, 3, 3, 70]]
    np.testing.assert_allclose(fit.predict(few), fit.predict().loc[few.index], rtol=1e-8)
    np.testing.assert_allclose(
        fit.predict(few.assign(effort=few["effort"] * 7), "response"), 7 * fit.predict(few, "response"), rtol=1e-8
    )


def test_some_random_effects(design_data):
    fit = scglmm.glmm("y ~ ph + (1|plot) + (0 + ph|plot) + (1|soil:light)", design_data("plots"))
    data = design_data("plots")
    parts = [fit.predict(data, re_form=form) - fit.predict(data, re_form=False) for form in (
        "~ (1|plot)", "(0 + ph|plot)", "~ (1|soil:light)", "~ (1|plot) + (1|soil:light)", None)]  # fmt: skip
    np.testing.assert_allclose(parts[0] + parts[2], parts[3], atol=1e-8)
    np.testing.assert_allclose(parts[0] + parts[1] + parts[2], parts[4], atol=1e-8)
    assert parts[0].abs().max() > 0.01
    # columns of terms that are not asked for are not needed
    assert len(fit.predict(data[["ph", "plot"]], re_form="~ (1|plot)")) == len(data)


def test_new_groups_are_said(plots, newdata):
    before, sc.settings.verbosity = sc.settings.logfile, 1
    sc.settings.logfile = said = io.StringIO()
    try:
        plots.predict(newdata[newdata["plot"] == "p3"])
        assert not said.getvalue()
        plots.predict(newdata)
    finally:
        sc.settings.logfile = before
    assert "1 level(s) of 'plot' in the new data are new to the model ('nowhere')" in said.getvalue()


def test_zero_inflation(design_data):
    rng = np.random.default_rng(1)
    data = design_data("plots")
    data = data.assign(count=data["count"] * (rng.random(len(data)) > 0.3))
    fit = scglmm.glmm("count ~ soil + (1|plot)", data, family="poisson", ziformula="~ light")
    zprob, conditional, response = (fit.predict(data, kind) for kind in ("zprob", "conditional", "response"))
    np.testing.assert_allclose(response, conditional * (1 - zprob))
    np.testing.assert_allclose(response, fit.fitted())
    assert zprob.groupby(data["light"]).nunique().eq(1).all()
    share = (np.exp(-conditional) * (1 - zprob) + zprob).groupby(data["light"]).mean()
    np.testing.assert_allclose(share, (data["count"] == 0).groupby(data["light"]).mean(), atol=0.02)


def test_standard_errors_with_random_effects(plots, design_data):
    """Henderson's mixed-model equations, written out."""
    data = design_data("plots")
    levels = sorted(data["plot"].unique())
    Z = (data["plot"].to_numpy()[:, None] == np.array(levels)).astype(float)
    B = np.hstack([Z, plots.model.design.X])
    variance = plots.varcorr()["vcov"]
    precision = B.T @ B / variance[1] + block_diag(
        np.eye(len(levels)) / variance[0], np.zeros((B.shape[1] - Z.shape[1],) * 2)
    )
    covariance = np.linalg.inv(precision)
    own = plots.predict(data, se=True)["se"]
    np.testing.assert_allclose(own, np.sqrt(np.einsum("ij,jk,ik->i", B, covariance, B)), rtol=1e-6)
    assert plots.estimates.hat_trace == pytest.approx(np.trace(covariance @ B.T @ B) / variance[1], rel=1e-6)
    assert plots.df_residual == pytest.approx(len(data) - plots.estimates.hat_trace)
    chisq = np.sum((data["y"] - plots.fitted()) ** 2) / variance[1]
    assert plots.dispersion == pytest.approx(chisq / plots.df_residual)
    own = plots.predict(data, "response", se=True, re_form=False)
    X = plots.model.design.X
    np.testing.assert_allclose(own["se"], np.sqrt(np.einsum("ij,jk,ik->i", X, plots.vcov, X)), rtol=1e-8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"soil": "peat"}, ValueError, "'soil' has the level 'peat', unknown to the model. The levels are 'clay'"),
        ({"ph": np.nan}, ValueError, "Values of 'ph' are missing"),
        ({"ph": "high"}, ValueError, "'ph' is a number in the model"),
        ({"plot": None}, ValueError, "'plot' are missing"),
    ],
)
def test_bad_rows(plots, newdata, change, error, message):
    with pytest.raises(error, match=message):
        plots.predict(newdata.assign(**change))


def test_bad_arguments(plots, newdata):
    with pytest.raises(KeyError, match="The data have no column 'ph'"):
        plots.predict(newdata.drop(columns="ph"))
    with pytest.raises(ValueError, match="type='mean' is not one of 'link'"):
        plots.predict(type="mean")
    with pytest.raises(ValueError, match="its random terms are \\(1\\|plot\\)"):
        plots.predict(re_form="~ (1|soil)")
    with pytest.raises(ValueError, match="holds more than random terms"):
        plots.predict(re_form="~ soil + (1|plot)")
    with pytest.raises(TypeError, match="re_form must be"):
        plots.predict(re_form=3)
    with pytest.raises(TypeError, match="newdata must be a pandas DataFrame"):
        plots.predict([1, 2])
    with pytest.raises(ValueError, match="no standard errors for type='zprob'"):
        plots.predict(type="zprob", se=True)
