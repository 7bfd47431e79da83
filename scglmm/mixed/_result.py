"""The fit of one response: what a user holds in the hand. What its methods do is in the files they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from scglmm.inference.gene import ZI_BOUNDARY
from scglmm.inference.response_fit import ResponseFit
from scglmm.inference.wald import two_sided

from . import _checks, _confint, _effects, _predict, _residuals, _simulate, _summary, _tests, _tidy, _variance
from ._data import ModelData
from ._distribution import Distribution
from ._joint import Joint

LINKS = {"gaussian": "identity", "poisson": "log", "nbinom2": "log"}


class GLMMResult:
    """A fitted mixed model of one response, made by :func:`scglmm.glmm`.

    ``print(fit)`` shows the summary. Coefficients of counts are on the natural log scale.

    Parameters
    ----------
    model
        The data and designs.
    family, reml, n_quad
        What was fitted.
    estimates
        The engine's estimates, in the user's units.

    Examples
    --------
    >>> import scglmm
    >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
    >>> fit.coef_table[["estimate", "se", "df"]].round(2)
                 estimate    se    df
    (Intercept)    251.41  6.82  17.0
    Days            10.47  1.55  17.0
    >>> fit.status, fit.singular, fit.n_groups
    ('ok', False, {'Subject': 18})
    >>> print(f"{fit.loglik:.1f} {fit.aic:.1f} {fit.sigma:.2f}")
    -871.8 1755.6 25.59
    """

    def __init__(self, model: ModelData, family: str, reml: bool, n_quad: int, estimates: ResponseFit) -> None:
        self.model = model
        self.family = family
        self.reml = reml
        self.n_quad = n_quad
        self.estimates = estimates

    # What was fitted

    @property
    def formula(self) -> str:
        """The formula, as the user wrote it."""
        return self.model.formula.text.strip()

    @property
    def ziformula(self) -> str | None:
        """The formula of the zero inflation, None without."""
        return None if self.model.zi_design is None else self.model.zi_design.formula.text.strip()

    @property
    def link(self) -> str:
        """`"identity"` or `"log"`."""
        return LINKS[self.family]

    @property
    def nobs(self) -> int:
        """Number of observations."""
        return self.model.n

    @property
    def n_groups(self) -> dict[str, int]:
        """Number of levels of every grouping factor."""
        return {term.group: len(term.levels) for term in self.model.design.random}

    # How it went

    @property
    def status(self) -> str:
        """Tell how the fit ended.

        `ok`; `singular` (a variance or a direction of a covariance matrix is 0); `poisson_limit` (theta at infinity);
        `zi_boundary` (zero inflation cannot be told from none); `separated` (coefficients at infinity);
        `not_converged`. The last of them where several hold.
        """
        return self.estimates.status

    @property
    def singular(self) -> bool:
        """Whether a covariance matrix of random effects has a variance of 0 or a correlation of -1 or 1."""
        return any(self.estimates.singular)

    @property
    def converged(self) -> bool:
        """Whether a maximum was found."""
        return self.estimates.status != "not_converged"

    # Estimates

    @property
    def coef_table(self) -> pd.DataFrame:
        """Fixed effects.

        DataFrame, coefficients × (`estimate`, `se`, `statistic`, `df`, `p`): z tests have df = inf, t tests finite df
        (Satterthwaite; containment where the variance that carries a coefficient of a count model is 0).
        """
        fit = self.estimates
        with np.errstate(invalid="ignore", divide="ignore"):
            statistic = fit.beta / fit.se
        columns = [fit.beta, fit.se, statistic, fit.df, two_sided(statistic, fit.df)]
        return _table(columns, self.model.design.columns)

    @property
    def zi_table(self) -> pd.DataFrame:
        """Coefficients of the zero inflation (logit scale), as `coef_table`; no rows without zero inflation.

        With status `zi_boundary` statistic and p are NaN: the estimate is at or near minus infinity.
        """
        fit, zi = self.estimates, self.model.zi_design
        se = np.sqrt(np.diag(fit.zi_vcov))
        with np.errstate(invalid="ignore", divide="ignore"):
            statistic = fit.zi_beta / se
        if fit.status == ZI_BOUNDARY:
            statistic = np.full_like(statistic, np.nan)
        df = np.full(se.size, np.inf)
        return _table([fit.zi_beta, se, statistic, df, two_sided(statistic, df)], [] if zi is None else zi.columns)

    @property
    def vcov(self) -> pd.DataFrame:
        """Covariance of the fixed effects."""
        names = self.model.design.columns
        return pd.DataFrame(self.estimates.vcov, names, names)

    @property
    def zi_vcov(self) -> pd.DataFrame:
        """Covariance of the coefficients of the zero inflation."""
        names = [] if self.model.zi_design is None else self.model.zi_design.columns
        return pd.DataFrame(self.estimates.zi_vcov, names, names)

    @property
    def theta(self) -> float:
        """Size of the negative binomial, Var = mu + mu^2/theta; inf for Poisson, NaN for Gaussian."""
        return self.estimates.theta

    @property
    def sigma(self) -> float:
        """Residual standard deviation; NaN for counts."""
        return self.estimates.residual_sd

    def varcorr(self) -> pd.DataFrame:
        """Variances and correlations of the random effects, and the residual variance.

        Returns
        -------
        One row per variance and covariance, in the columns of R's ``as.data.frame(VarCorr(fit))``: `grp`, `var1`,
        `var2` (missing for a variance), `vcov` (variance or covariance), `sdcor` (standard deviation or correlation).

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.varcorr()[["grp", "vcov", "sdcor"]].round(2)
                grp    vcov  sdcor
        0   Subject  612.09  24.74
        1   Subject   35.07   5.92
        2   Subject    9.60   0.07
        3  Residual  654.94  25.59
        """
        return _effects.varcorr(self)

    def ranef(self) -> pd.DataFrame:
        """Predicted random effects (conditional modes) with their conditional standard deviations.

        Returns
        -------
        One row per effect and level: `group`, `level`, `term`, `estimate`, `sd` (given the data and the estimated
        parameters, lme4's `condVar`), `pred_sd` (with the uncertainty of the fixed effects, as glmmTMB reports it).

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.ranef().head(2).round(1)
             group level         term  estimate    sd  pred_sd
        0  Subject   308  (Intercept)       2.3  12.1     13.1
        1  Subject   309  (Intercept)     -40.4  12.1     13.1
        """
        return _effects.ranef(self)

    def coef(self, group: str | None = None) -> pd.DataFrame:
        """Coefficients of every level: fixed effects plus random effects.

        Parameters
        ----------
        group
            The grouping factor; may be left out when there is one.

        Returns
        -------
        Levels × coefficients; a random effect without a fixed effect of the same name is a column of its own.

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.coef("Subject").head(2).round(2)
                 (Intercept)   Days
        Subject
        308           253.66  19.67
        309           211.01   1.85
        """
        return _effects.coef(self, group)

    def confint(
        self, level: float = 0.95, method: str = "wald", parm: str | Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Confidence intervals of the fixed effects, and by profile of the variance parameters.

        Parameters
        ----------
        level
            Coverage.
        method
            `"wald"`: estimate ± quantile of t (of the normal where df is inf) × se. `"profile"`: profile likelihood,
            all other parameters at their optimum; a REML fit is profiled by maximum likelihood, as lme4 does.
        parm
            Names of coefficients, all by default; by profile also standard deviations of random effects, ``"sd[g]"``
            for an intercept and ``"sd[g:x]"`` for a slope, and ``"sigma"`` (gaussian) or ``"theta"`` (nbinom2).

        Returns
        -------
        Coefficients × (`estimate`, `low`, `high`).

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.confint().round(2)
                     estimate     low    high
        (Intercept)    251.41  237.01  265.80
        Days            10.47    7.21   13.73
        >>> fit.confint(method="profile", parm=["Days", "sd[Subject:Days]"]).round(2)
                          estimate   low   high
        Days                 10.47  7.36  13.58
        sd[Subject:Days]      5.72  3.80   8.75
        """
        return _confint.confint(self, level, method, parm)

    def to_frame(self, effects: str | Sequence[str] = ("fixed", "ran_pars"), conf_int: bool = False) -> pd.DataFrame:
        """Estimates in the columns of R's broom.mixed.

        Parameters
        ----------
        effects
            `"fixed"`, `"ran_pars"` (standard deviations and correlations), `"ran_vals"` (effects of the levels), or
            several.
        conf_int
            Add Wald intervals (95%).

        Returns
        -------
        `effect`, `component`, `group`, `level` (for `ran_vals`), `term`, `estimate`, `std.error`, `statistic`, `df`,
        `p.value` (and `conf.low`, `conf.high`).

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.to_frame("ran_pars")[["term", "estimate"]].round(2)
                            term  estimate
        0        sd__(Intercept)     24.74
        1               sd__Days      5.92
        2  cor__(Intercept).Days      0.07
        3        sd__Observation     25.59
        """
        return _tidy.to_frame(self, effects, conf_int)

    def glance(self) -> pd.Series:
        """One-line summary in broom's names: `nobs`, `sigma`, `logLik`, `AIC`, `BIC`, `df`, `df.residual`.

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.glance()[["logLik", "AIC", "df"]].round(1).to_dict()
        {'logLik': -871.8, 'AIC': 1755.6, 'df': 6.0}
        """
        return _tidy.glance(self)

    # Quality of the fit

    @property
    def loglik(self) -> float:
        """Log-likelihood with all constants; the restricted one for REML."""
        return self.estimates.loglik

    @property
    def n_params(self) -> int:
        """Number of parameters, which are fixed effects, variances and covariances, theta or residual variance."""
        return self.estimates.n_par

    @property
    def aic(self) -> float:
        """Akaike's information criterion."""
        return -2 * self.loglik + 2 * self.n_params

    @property
    def bic(self) -> float:
        """Bayesian information criterion, with the number of observations."""
        return -2 * self.loglik + np.log(self.nobs) * self.n_params

    @property
    def df_residual(self) -> float:
        """Observations minus the trace of the hat matrix, random effects included."""
        return self.nobs - self.estimates.hat_trace

    @property
    def dispersion(self) -> float:
        """Sum of squared Pearson residuals over `df_residual`; near 1 where the variance is right."""
        return float(np.sum(self.residuals("pearson") ** 2) / self.df_residual)

    # Prediction

    def distribution(self, eta: np.ndarray | None = None, zi_eta: np.ndarray | None = None) -> Distribution:
        """Distribution of the response at linear predictors, by default those of the rows of the fit.

        Parameters
        ----------
        eta
            (n,) linear predictor of the mean, offset included.
        zi_eta
            (n,) logit of the probability of a structural zero.

        Returns
        -------
        An object with `mean`, `variance` and `zero` (probability of a 0), each (n,), and the functions of n responses
        `log_prob`, `cdf`, `sf` and `sample`.

        Examples
        --------
        >>> import scglmm
        >>> plants = scglmm.datasets.arabidopsis()
        >>> fit = scglmm.glmm("`total.fruits` ~ nutrient + amd + (1|popu)", plants, family="nbinom2")
        >>> expected = fit.distribution().zero.sum()  # zeros among the counts
        >>> round(float(expected)), int((plants["total.fruits"] == 0).sum())
        (94, 126)
        """
        eta = self.estimates.eta if eta is None else eta
        zi_eta = self.estimates.zi_eta if zi_eta is None else zi_eta
        mu = eta if self.link == "identity" else np.exp(eta)
        theta = self.theta if self.family == "nbinom2" else np.inf
        return Distribution(self.family, mu, theta, self.sigma, expit(zi_eta))

    def predict(
        self,
        newdata: pd.DataFrame | Mapping[str, Any] | None = None,
        type: str = "link",
        re_form: str | bool | None = None,
        se: bool = False,
    ) -> pd.Series | pd.DataFrame:
        """Predictions.

        Parameters
        ----------
        newdata
            Rows to predict, with the columns that the formula uses; the rows of the fit by default.
        type
            `"link"` (linear predictor, offset included), `"response"` (expected response, zero inflation included),
            `"conditional"` (expected response of the family, zero inflation aside), `"zprob"` (probability of a
            structural zero).
        re_form
            Which random effects: None for all, False or ``"~ 0"`` for none (the population level), or some of the
            terms, such as ``"~ (1|Subject)"``. Levels that the model has not seen get effects of 0, and it is said so.
        se
            Standard errors as well, for `"link"`, `"response"` and `"conditional"` (delta method), given the estimated
            variances.

        Returns
        -------
        Series with the index of the rows; with `se` a DataFrame with the columns `fit` and `se`.

        Raises
        ------
        ValueError, KeyError
            A column is missing, or a fixed effect has a level that the model does not know.

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.predict({"Days": [9], "Subject": ["308"]}).round(1).to_list()
        [430.7]
        >>> fit.predict({"Days": [9]}, re_form=False, se=True).round(1)  # the population
             fit    se
        0  345.6  14.6
        """
        return _predict.predict(self, newdata, type, re_form, se)

    def fitted(self) -> pd.Series:
        """Fitted values on the scale of the response, random effects included.

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.fitted().head(3).round(1).to_list()
        [253.7, 273.3, 293.0]
        """
        return _predict.predict(self, None, "response", None, False)

    def residuals(self, type: str = "deviance", rng: np.random.Generator | int | None = 0) -> pd.Series:
        """Residuals, random effects included in the fitted values.

        Parameters
        ----------
        type
            `"response"` (observed minus fitted), `"pearson"` (divided by the standard deviation), `"deviance"` (not
            with zero inflation), `"quantile"` (Dunn and Smyth 1996, doi 10.1080/10618600.1996.10474708: standard normal
            under the model, randomised for counts).
        rng
            For `"quantile"` of counts: a generator or a seed.

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.residuals("pearson").head(3).round(2).to_list()
        [-0.16, -0.57, -1.65]
        """
        return _residuals.residuals(self, type, rng)

    def simulate(
        self, n: int = 1, rng: np.random.Generator | int | None = None, re_form: bool | None = False
    ) -> pd.DataFrame:
        """Draw responses from the fitted model.

        Parameters
        ----------
        n
            Number of data sets.
        rng
            A generator or a seed.
        re_form
            False draws new random effects in every data set, None keeps the predicted ones.

        Returns
        -------
        Rows of the fit × data sets.

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.simulate(2, rng=1).shape
        (180, 2)
        """
        return _simulate.simulate(self, n, rng, re_form)

    # Shares of variance

    def varpart(self, method: str = "trigamma") -> pd.Series:
        """Fractions of variance on the link scale; they sum to 1. See :func:`scglmm.tl.varpart`.

        Parameters
        ----------
        method
            `"trigamma"`, `"lognormal"` or `"delta"`; all the same for Gaussian.

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.varpart().round(3).to_dict()
        {'Days': 0.274, 'Subject': 0.513, 'Residuals': 0.213}
        """
        return _variance.varpart(self, method)

    def r2(self) -> _variance.R2:
        """R² of Nakagawa, Johnson and Schielzeth (2017, doi 10.1098/rsif.2017.0213): `conditional` and `marginal`.

        As R's `performance`: the distribution-specific variance of counts is log(1 + 1/mu + 1/theta), with mu from the
        intercept of the model without fixed effects. Zero inflation takes no part.

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> r2 = fit.r2()
        >>> round(r2.conditional, 3), round(r2.marginal, 3)
        (0.799, 0.279)
        """
        return _variance.r2(self)

    def icc(self) -> _variance.ICC:
        """Intraclass correlation: `adjusted`, `unadjusted`, and `by_group` (adjusted, for every random term).

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> round(fit.icc().adjusted, 3)
        0.722
        """
        return _variance.icc(self)

    def cv2(self) -> pd.DataFrame:
        """Variance components as squared coefficients of variation and percent.

        Returns
        -------
        Components × (`variance`, `cv2`, `percent`). Gaussian: variance over the squared mean of the response. Counts,
        on the log scale: exp(variance) - 1 for random terms, 1/theta for overdispersion, 1/mean for counting noise.
        Percent are of the sum of the variances (Gaussian) or of the cv2 (counts).

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.cv2().round(3)
                   variance    cv2  percent
        component
        Subject    1698.071  0.019   72.166
        Residual    654.941  0.007   27.834
        """
        return _variance.cv2(self)

    # Tests of hypotheses

    def cond(self, **values: Any) -> np.ndarray:
        """Row of the design with the given values, for contrasts: ``fit.cond(Dx="AD") - fit.cond(Dx="Control")``.

        Parameters
        ----------
        **values
            Columns of the fixed effects. Those not named are at their reference level, or at their mean over the rows.

        Returns
        -------
        (p,) weights of the coefficients.

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.cond(Days=9) - fit.cond(Days=0)
        array([0., 9.])
        """
        return _tests.condition(self, values)

    def contrast(
        self,
        contrasts: str | np.ndarray | Sequence[Any] | Mapping[str, Any],
        level: float = 0.95,
    ) -> pd.DataFrame:
        """Test linear combinations of the coefficients, each by itself.

        Parameters
        ----------
        contrasts
            Text such as ``"Dx[T.AD] - Dx[T.MCI]"``, ``"Days = 10"`` or
            ``'cond(Dx="AD", Age=80) - cond(Dx="Control", Age=80)'``; a vector of p weights; or several of them, in a
            list or as a dictionary of names.
        level
            Coverage of the intervals.

        Returns
        -------
        Contrasts × (`estimate`, `se`, `statistic`, `df`, `p`, `low`, `high`); statistic and p are for the value after
        ``=``, else for 0. P-values are not adjusted for the number of contrasts.

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> fit.contrast("Days = 10")[["estimate", "se", "df", "p"]].round(3)
                   estimate     se    df      p
        contrast
        Days = 10    10.467  1.546  17.0  0.766
        >>> fit.contrast({"9 days": fit.cond(Days=9) - fit.cond(Days=0)})[["estimate", "low", "high"]].round(1)
                  estimate   low   high
        contrast
        9 days        94.2  64.9  123.6
        """
        return _tests.contrast(self, contrasts, level)

    def joint_test(self, contrasts: str | np.ndarray | Sequence[Any] | Mapping[str, Any]) -> pd.Series:
        """Test several linear combinations at once, by F or chi-square.

        Parameters
        ----------
        contrasts
            As for `contrast`; or the name of a term, for all its coefficients.

        Returns
        -------
        `statistic`, `num_df`, `den_df` (inf: `statistic` is the chi-square), `p`.

        Examples
        --------
        >>> import scglmm
        >>> plants = scglmm.datasets.arabidopsis()
        >>> fit = scglmm.glmm("`total.fruits` ~ nutrient + amd + (1|popu)", plants, family="nbinom2")
        >>> fit.joint_test(["nutrient", "amd[T.unclipped]"]).round(2).to_dict()
        {'statistic': 113.21, 'num_df': 2.0, 'den_df': inf, 'p': 0.0}
        """
        return _tests.joint_test(self, contrasts)

    def anova(self, type: int = 3) -> pd.DataFrame:
        """Test every term of the fixed effects.

        Parameters
        ----------
        type
            3: each term after all others, factors coded to sum to zero (what lmerTest's `anova` and
            ``car::Anova(type=3)`` mean). 2: each term after all others that do not contain it.

        Returns
        -------
        Terms × (`statistic`, `num_df`, `den_df`, `p`): F with Satterthwaite's df (Fai and Cornelius 1996), or Wald's
        chi-square (den_df = inf).

        Examples
        --------
        >>> import scglmm
        >>> plants = scglmm.datasets.arabidopsis()
        >>> fit = scglmm.glmm("`total.fruits` ~ nutrient + amd + (1|popu)", plants, family="nbinom2")
        >>> fit.anova().round(3)
                  statistic  num_df  den_df      p
        term
        nutrient    112.191       1     inf  0.000
        amd           6.350       1     inf  0.012
        """
        return _tests.anova(self, type)

    # Checks

    def check(self) -> list[_checks.Check]:
        """Run all checks that apply; each says in a sentence what it found and what to do.

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> for check in fit.check():
        ...     print(check.name, check.ok)
        convergence True
        singularity True
        """
        return _checks.check(self)

    def vif(self) -> pd.DataFrame:
        """Variance inflation of every term, see :func:`scglmm.mixed.vif`.

        Examples
        --------
        >>> import scglmm
        >>> plants = scglmm.datasets.arabidopsis()
        >>> fit = scglmm.glmm("`total.fruits` ~ nutrient + amd + (1|popu)", plants, family="nbinom2")
        >>> fit.vif().round(2)
                   vif  df  se_factor
        term
        nutrient  1.02   1       1.01
        amd       1.02   1       1.01
        """
        return _checks.vif(self)

    # Showing

    def summary(self) -> str:
        """Summary as text, in the layout of R's `summary()`.

        Examples
        --------
        >>> import scglmm
        >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
        >>> print(fit.summary()[:32])
        Linear mixed model fit by REML
        """
        return _summary.summary(self)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return _summary.html(self)

    @cached_property
    def joint(self) -> Joint:
        """The joint precision of random and fixed effects."""
        return Joint(self)

    def __getstate__(self) -> dict[str, Any]:
        # the factor of the joint precision cannot be pickled; it is made again when it is needed
        return {name: value for name, value in self.__dict__.items() if name != "joint"}


def _table(columns: list[np.ndarray], names: list[str]) -> pd.DataFrame:
    return pd.DataFrame(dict(zip(("estimate", "se", "statistic", "df", "p"), columns, strict=True)), index=names)
