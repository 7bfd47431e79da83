"""What every result can do, whatever became of the fit."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

import scglmm
from scglmm.mixed import check_convergence, influence


@pytest.fixture(scope="module")
def failed(plot_counts):
    """A result without estimates, as it is when no maximum was found."""
    fit = plot_counts.estimates
    nothing = {
        name: np.full(np.shape(getattr(fit, name)), np.nan) for name in ("beta", "se", "df", "vcov", "eta", "eta_fixed")
    }
    nothing |= {
        name: [np.full(a.shape, np.nan) for a in getattr(fit, name)]
        for name in ("sigma", "ranef", "ranef_vcov", "ranef_pev")
    }
    empty = replace(
        fit,
        status="not_converged",
        theta=np.nan,
        hat_trace=np.nan,
        loglik=np.nan,
        lost=np.ones(fit.beta.size, bool),
        **nothing,
    )
    return scglmm.GLMMResult(plot_counts.model, plot_counts.family, plot_counts.reml, plot_counts.n_quad, empty)


def test_a_fit_that_failed_can_be_looked_at(failed):
    assert not failed.converged
    text = failed.summary()
    assert "NA" in text
    assert "No maximum of the likelihood was found" in text
    assert "No maximum" in failed._repr_html_()
    assert failed.coef_table["p"].isna().all()
    assert failed.to_frame(conf_int=True)["estimate"].isna().all()
    assert np.isnan(failed.aic)
    assert not check_convergence(failed).ok
    assert len(failed.check()) == 1
    assert failed.contrast("ph")["p"].isna().all()
    assert np.isnan(failed.joint_test("soil")["p"])
    assert failed.predict().isna().all()


def test_a_fit_that_failed_refuses_the_rest(failed, plot_counts):
    for refused in (
        failed.r2,
        failed.icc,
        failed.cv2,
        failed.varpart,
        failed.simulate,
        failed.vif,
        lambda: failed.confint(method="profile"),
        lambda: influence(failed),
        lambda: scglmm.pl.check_model(failed),
        lambda: scglmm.lrt(failed, plot_counts),
    ):
        with pytest.raises(ValueError, match=r"not_converged|has not converged"):
            refused()


def test_results_can_be_stored(plots):
    influence(plots)  # makes what cannot be pickled
    again = pickle.loads(pickle.dumps(plots))
    assert str(again) == str(plots)
    assert again.predict(plots.model.frame.assign(y=0)).equals(plots.predict(plots.model.frame.assign(y=0)))
    assert influence(again).equals(influence(plots))
    assert copy.deepcopy(plots).aic == plots.aic


def test_tables_are_the_users_to_change(plots):
    before, table, variances = plots.coef_table, plots.coef_table, plots.varcorr()
    table["p"] = 0.0
    variances["vcov"] = 0.0
    assert plots.coef_table.equals(before)
    assert plots.varcorr()["vcov"].min() > 0


def test_quadrature(design_data):
    formula = "count ~ soil + (1|plot)"
    laplace = scglmm.glmm(formula, design_data("plots"), family="poisson")
    fit = scglmm.glmm(formula, design_data("plots"), family="poisson", n_quad=9)
    finer = scglmm.glmm(formula, design_data("plots"), family="poisson", n_quad=15)
    assert fit.n_quad == 9
    assert "adaptive Gauss-Hermite quadrature, 9 points" in str(fit)
    assert abs(fit.loglik - finer.loglik) < 1e-4 < abs(laplace.loglik - finer.loglik)
    with pytest.raises(ValueError, match="approximated differently"):
        scglmm.lrt(
            laplace, scglmm.glmm("count ~ soil + ph + (1|plot)", design_data("plots"), family="poisson", n_quad=9)
        )
    with pytest.raises(ValueError, match="Laplace's approximation, and this fit has n_quad=9"):
        fit.confint(method="profile", parm="sd[plot]")
    assert fit.confint(method="profile", parm="soil[T.loam]").notna().all(axis=None)


def test_criteria(plots, plot_counts):
    for fit in (plots, plot_counts):
        assert fit.aic == pytest.approx(-2 * fit.loglik + 2 * fit.n_params)
        assert fit.bic == pytest.approx(-2 * fit.loglik + np.log(fit.nobs) * fit.n_params)
    assert plots.n_params == 9
    assert plot_counts.n_params == 9
    assert np.isnan(plots.theta)
    assert np.isnan(plot_counts.sigma)
    assert (plots.link, plot_counts.link) == ("identity", "log")
    assert plots.n_groups == {"plot": 14}
    assert plots.formula == "y ~ soil * light + ph + (1|plot)"


def test_vcov_belongs_to_the_standard_errors(plot_counts, design_data):
    np.testing.assert_allclose(np.sqrt(np.diag(plot_counts.vcov)), plot_counts.coef_table["se"])
    assert list(plot_counts.vcov.columns) == list(plot_counts.coef_table.index)
    zi = scglmm.glmm("count ~ soil + (1|plot)", design_data("plots"), family="poisson", ziformula="~ light")
    np.testing.assert_allclose(np.sqrt(np.diag(zi.zi_vcov)), zi.zi_table["se"])
    assert list(zi.zi_table.index) == ["(Intercept)", "light[T.shade]"]
