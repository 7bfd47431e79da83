"""One response against the published results of lme4, lmerTest and glmmTMB."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from fitting import fit_formula

from scglmm.engine.laplace import laplace
from scglmm.engine.layout import make_work
from scglmm.formula import build_design, parse_formula
from scglmm.inference.compressed import compress
from scglmm.inference.response_fit import ResponseFit

CROSSED = "~ nutrient + amd + (1|popu) + (1|gen)"
FULL = "~ nutrient + rack + status + amd + reg + (1|popu) + (1|gen)"
PATCHES = "(1|pop/patch)"
FACTORS = ("gen", "Subject", "f1", "g")

# name of the frozen result: data, response, formula, options
PUBLISHED = {
    "arabidopsis_lmer_reml": ("arabidopsis", "total.fruits", CROSSED, {"family": "gaussian", "reml": True}),
    "arabidopsis_glmer_poisson": ("arabidopsis", "total.fruits", CROSSED, {"family": "poisson"}),
    "arabidopsis_glmmTMB_poisson": ("arabidopsis", "total.fruits", CROSSED, {"family": "poisson"}),
    "arabidopsis_glmmTMB_nbinom2": ("arabidopsis", "total.fruits", CROSSED, {}),
    "arabidopsis_glmmTMB_nbinom2_reml": ("arabidopsis", "total.fruits", CROSSED, {"reml": True}),
    "arabidopsis_glmmTMB_nbinom2_slope": ("arabidopsis", "total.fruits", "~ nutrient + amd + (nutrient|popu)", {}),
    "arabidopsis_glmmTMB_nbinom2_dslope": ("arabidopsis", "total.fruits", "~ nutrient + amd + (nutrient||popu)", {}),
    "arabidopsis_glmmTMB_nbinom2_full": ("arabidopsis", "total.fruits", FULL, {}),
    "arabidopsis_glmmTMB_nbinom2_zi1_full": ("arabidopsis", "total.fruits", FULL, {"zi": "~ 1"}),
    "arabidopsis_glmmTMB_poisson_zi1_full": ("arabidopsis", "total.fruits", FULL, {"family": "poisson", "zi": "~ 1"}),
    "sim145_glmmTMB_null": ("sim145", "y", "~ 1 + (1|groupID)", {"family": "gaussian"}),
    "sim145_glmmTMB_x1": ("sim145", "y", "~ x1 + (1|groupID)", {"family": "gaussian"}),
    "sleepstudy_lmer_reml": ("sleepstudy", "Reaction", "~ Days + (Days|Subject)", {"family": "gaussian", "reml": True}),
    "sleepstudy_lmer_ml": ("sleepstudy", "Reaction", "~ Days + (Days|Subject)", {"family": "gaussian"}),
    "sleepstudy_lmer_ml_null": ("sleepstudy", "Reaction", "~ 1 + (Days|Subject)", {"family": "gaussian"}),
    "sleepstudy_lmer_ri_reml": ("sleepstudy", "Reaction", "~ Days + (1|Subject)", {"family": "gaussian", "reml": True}),
    "eulaema_glmmTMB_nbinom2": ("eulaema", "Eulaema_nigrita", "~ MAP + (1|SA)", {}),
    "eulaema_glmmTMB_nbinom2_reml": ("eulaema", "Eulaema_nigrita", "~ MAP + (1|SA)", {"reml": True}),
    "blossoms_glmmTMB_null": ("blossoms", "UBW", f"~ 1 + {PATCHES}", {"family": "gaussian"}),
    "blossoms_glmmTMB_lbw": ("blossoms", "UBW", f"~ LBW + {PATCHES}", {"family": "gaussian"}),
    "nb101_glmmTMB_nbinom2": ("nb101", "y", "~ f1*f2 + (1|g)", {}),
}
# Standard errors that are another definition, or inaccurate: test_eulaema_standard_errors, test_standard_errors_of_lmm
OTHER_ERRORS = ("eulaema_glmmTMB_nbinom2", "blossoms_glmmTMB_null", "blossoms_glmmTMB_lbw")
ON_BOUNDARY = {
    "arabidopsis_lmer_reml": [False, True],
    "arabidopsis_glmmTMB_nbinom2_slope": [True],
    "arabidopsis_glmmTMB_nbinom2_dslope": [False, True],
    "nb101_glmmTMB_nbinom2": [True],
}


def load(folder, data: str, columns: list[str]) -> pd.DataFrame:
    table = pd.read_csv(folder / "published" / f"{data}.csv").dropna(subset=columns)
    return table.assign(**{name: table[name].astype(str) for name in FACTORS if name in table})


@pytest.fixture(scope="module")
def published(reference):
    """Fit and frozen result of a model, each fitted once."""
    fits = {}

    def get(name: str) -> tuple[ResponseFit, dict]:
        if name not in fits:
            data, response, formula, options = PUBLISHED[name]
            columns = [response] + (["LBW"] if "LBW" in formula else [])
            fitted = fit_formula(load(reference, data, columns), response, formula, **options)
            fits[name] = fitted, json.loads((reference / "published" / f"{name}.json").read_text())
        return fits[name]

    return get


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_results(published, name):
    fitted, frozen = published(name)
    assert fitted.loglik == pytest.approx(frozen["logLik"], abs=1e-4)
    assert fitted.n_par == frozen["df"]
    estimate = np.array([row["estimate"] for row in frozen["fixed"]])
    se = np.array([row["se"] for row in frozen["fixed"]])
    assert np.abs(fitted.beta - estimate).max() <= 1e-5 * np.abs(estimate).max()
    assert (np.abs(fitted.beta - estimate) <= 0.001 * se).all()
    if name not in OTHER_ERRORS:
        np.testing.assert_allclose(fitted.se, se, rtol=1e-3)
    family = PUBLISHED[name][3].get("family", "nbinom2")
    if family == "nbinom2":
        assert fitted.theta == pytest.approx(frozen.get("theta", frozen["sigma"]), rel=1e-4)
    if family == "gaussian":
        assert fitted.residual_sd == pytest.approx(frozen["sigma"], rel=1e-5)
    assert fitted.singular == ON_BOUNDARY.get(name, [False] * len(fitted.sigma))
    assert fitted.grad < 1e-6


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_random_effects(published, reference, name):
    fitted, frozen = published(name)
    data, response, formula, _ = PUBLISHED[name]
    table = load(reference, data, [response] + (["LBW"] if "LBW" in formula else []))
    design = build_design(parse_formula(formula), table)
    seen = dict.fromkeys(frozen["varcomp"], 0)  # columns of a group that came in an earlier term
    for term, sigma, u in zip(design.random, fitted.sigma, fitted.ranef, strict=True):
        key = next(k for k in seen if set(k.split(":")) == set(term.group.split(":")))
        at = slice(seen[key], seen[key] + len(term.columns))
        seen[key] = at.stop
        cov = np.atleast_2d(frozen["varcomp"][key]["cov"])[at, at]
        # the packages stop at a log-likelihood, which is flat: 1e-4 of the largest variance of the matrix
        np.testing.assert_allclose(sigma, cov, rtol=1e-4, atol=1e-4 * np.abs(cov).max() + 1e-7)
        if key in frozen.get("blups", {}):
            rows = {str(row["level"]): row for row in frozen["blups"][key]}
            if set(rows) != set(term.levels):
                continue  # nested levels are named in another way
            names = [k for k in next(iter(rows.values())) if k not in ("level", "_row")][at]
            modes = np.array([[rows[level][k] for k in names] for level in term.levels])
            assert np.abs(u - modes).max() <= 2e-5 * max(1.0, np.abs(modes).max())


def test_arabidopsis_as_published(published):
    lmm, _ = published("arabidopsis_lmer_reml")
    assert lmm.status == "singular"
    assert -2 * lmm.loglik == pytest.approx(6245.2, abs=0.05)
    assert lmm.sigma[0][0, 0] == pytest.approx(151.7, abs=0.05)
    assert lmm.sigma[1][0, 0] == 0
    assert lmm.residual_sd**2 == pytest.approx(1264, abs=0.5)
    assert (lmm.beta[1], lmm.se[1], lmm.df[1]) == pytest.approx((4.578, 0.407, 614.9), abs=0.05)
    for name, theta, popu, gen in (
        ("arabidopsis_glmmTMB_poisson", np.inf, 0.25745, 0.06356),
        ("arabidopsis_glmmTMB_nbinom2", 0.536, 0.2478, 0.0459),
    ):
        fitted, _ = published(name)
        assert fitted.status == "ok"
        assert fitted.theta == pytest.approx(theta, abs=5e-4)
        assert fitted.sigma[0][0, 0] == pytest.approx(popu, abs=1e-4)
        assert fitted.sigma[1][0, 0] == pytest.approx(gen, abs=1e-4)
    zip_, frozen = published("arabidopsis_glmmTMB_poisson_zi1_full")
    assert zip_.status == "ok"
    assert zip_.loglik == pytest.approx(-8021.6, abs=0.05)
    assert zip_.zi_beta == pytest.approx([-1.3808], abs=1e-4)
    assert np.sqrt(zip_.zi_vcov[0, 0]) == pytest.approx(frozen["zi"][0]["se"], rel=1e-4)


def test_a_zero_inflation_that_is_not_determined(published):
    fitted, frozen = published("arabidopsis_glmmTMB_nbinom2_zi1_full")
    assert fitted.status == "zi_boundary"
    assert fitted.loglik >= frozen["logLik"] - 1e-6
    assert np.sqrt(fitted.zi_vcov[0, 0]) > 5


def test_satterthwaite_of_lmer(published):
    """lmerTest's own derivatives are numerical, at an optimum found to 1e-5."""
    for name in ("sleepstudy_lmer_reml", "sleepstudy_lmer_ml", "sleepstudy_lmer_ml_null", "sleepstudy_lmer_ri_reml"):
        fitted, frozen = published(name)
        np.testing.assert_allclose(fitted.df, [row["df"] for row in frozen["fixed"]], rtol=1e-4)
    slope, _ = published("sleepstudy_lmer_reml")
    assert slope.df == pytest.approx([17.0, 17.0], abs=1e-3)
    assert slope.df_of([1.0, 5.0]) > 0
    small, large = (published(f"sleepstudy_lmer_{name}")[0].loglik for name in ("ml_null", "ml"))
    assert 2 * (large - small) == pytest.approx(23.54, abs=0.005)
    simple = published("sleepstudy_lmer_ri_reml")[0].loglik
    assert 2 * (slope.loglik - simple) == pytest.approx(42.84, abs=0.005)


def test_conditional_covariance_is_that_of_lme4(published):
    fitted, frozen = published("sleepstudy_lmer_ri_reml")
    np.testing.assert_allclose(fitted.ranef_vcov[0].ravel(), frozen["blup_condvar"]["Subject"], rtol=1e-6)
    # one random intercept, n rows a level: sigma^2 tau^2 / (sigma^2 + n tau^2)
    residual, between = fitted.residual_sd**2, fitted.sigma[0][0, 0]
    np.testing.assert_allclose(fitted.ranef_vcov[0].ravel(), residual * between / (residual + 10 * between))


def test_sim145_as_published(published):
    null, _ = published("sim145_glmmTMB_null")
    assert (null.sigma[0][0, 0], null.residual_sd**2) == pytest.approx((9.205, 11.869), abs=5e-4)
    fitted, frozen = published("sim145_glmmTMB_x1")
    assert fitted.beta[1] == pytest.approx(1.4528, abs=5e-5)
    assert (fitted.sigma[0][0, 0], fitted.residual_sd**2) == pytest.approx((10.576, 4.081), abs=1e-3)
    of_groups = fitted.beta[0] + np.sort(fitted.ranef[0].ravel())
    np.testing.assert_allclose(of_groups, np.sort([r["(Intercept)"] for r in frozen["coef"]["groupID"]]), atol=1e-4)


def test_blossoms_and_eulaema_as_published(published):
    null, lbw = published("blossoms_glmmTMB_null")[0], published("blossoms_glmmTMB_lbw")[0]
    assert [s[0, 0] for s in null.sigma] == pytest.approx([1.143, 3.238], abs=1e-3)
    assert null.residual_sd**2 == pytest.approx(4.463, abs=1e-3)
    assert [s[0, 0] for s in lbw.sigma] == pytest.approx([0.1045, 0.2255], abs=1e-4)
    assert (lbw.residual_sd**2, lbw.beta[1]) == pytest.approx((1.0128, 0.8267), abs=1e-4)
    bees, _ = published("eulaema_glmmTMB_nbinom2")
    assert (bees.sigma[0][0, 0], bees.theta, bees.loglik) == pytest.approx((1.382, 1.868, -891.399), abs=1e-3)
    boundary, _ = published("nb101_glmmTMB_nbinom2")
    assert boundary.status == "singular"
    assert (boundary.theta, boundary.se[0]) == pytest.approx((0.4798, 0.12985), abs=5e-5)


def test_eulaema_standard_errors(published, reference):
    """The frozen standard errors are 3.5% too large: R's `optimHess` steps 1e-3, three standard errors of MAP.

    Repeated with our gradient, such steps give the frozen numbers; smaller ones give ours.
    """
    fitted, frozen = published("eulaema_glmmTMB_nbinom2")
    table = load(reference, "eulaema", ["Eulaema_nigrita"])
    design = build_design(parse_formula("~ MAP + (1|SA)"), table)
    model = compress(design, table["Eulaema_nigrita"].to_numpy(float), "nbinom2", None)
    frame = model.frame
    work, forward = make_work(frame.structure, frame.Q), np.linalg.inv(frame.back)

    def gradient(par: np.ndarray) -> np.ndarray:
        """Gradient in the user's coefficients, log sd and log theta."""
        engine = np.r_[forward @ par[:2], np.exp(par[2]), par[3]]
        result = np.empty(4)
        v = np.zeros(frame.structure.starts.shape[1] - 1)
        laplace(model.data, frame.structure, frame.Q, False, True, engine, np.zeros(2), v, result, work)
        return np.r_[forward.T @ result[:2], result[2] * engine[2], result[3]]

    best = np.r_[fitted.beta, 0.5 * np.log(fitted.sigma[0][0, 0]), np.log(fitted.theta)]
    for step, expected in ((1e-3, [row["se"] for row in frozen["fixed"]]), (1e-6, fitted.se)):
        hessian = [(gradient(best + step * e) - gradient(best - step * e)) / (2 * step) for e in np.eye(4)]
        se = np.sqrt(np.diag(np.linalg.inv(-0.5 * (np.array(hessian) + np.transpose(hessian)))))
        np.testing.assert_allclose(se[:2], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["blossoms_glmmTMB_null", "blossoms_glmmTMB_lbw", "sim145_glmmTMB_x1"])
def test_standard_errors_of_lmm(published, name):
    """By maximum likelihood glmmTMB inverts the whole Hessian; lme4, and we, take the variances as given."""
    fitted, frozen = published(name)
    inner = fitted._inner
    whole = np.linalg.inv(-inner.fitted.hessian)[: fitted.beta.size, : fitted.beta.size]
    scale = fitted.residual_sd / np.exp(0.5 * inner.fitted.log_theta)
    se = scale * np.sqrt(np.diag(inner.frame.back @ whole @ inner.frame.back.T))
    np.testing.assert_allclose(se, [row["se"] for row in frozen["fixed"]], rtol=1e-5)
