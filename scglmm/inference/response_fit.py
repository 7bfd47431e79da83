"""The fit of one response: everything that is known of it, in the user's units."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scglmm.engine.fit import Fit

from .containment import find_carrier
from .frame import Frame
from .gene import contrast_df


@dataclass(frozen=True)
class ResponseFit:
    """The fit of one response, in the user's units; NaN where there is no estimate.

    n rows, p fixed effects, k columns of the zero-inflation design, m covariance parameters in the interior.

    Attributes
    ----------
    status
        `ok`; `singular` (a variance, or a direction of a covariance matrix, at 0: a valid fit, to be said);
        `poisson_limit` (theta at infinity: a valid fit); `zi_boundary` (a zero-inflation probability below 1e-4, or a
        standard error of its logit above 5: a valid fit whose zero-inflation coefficients cannot be tested);
        `separated` (some coefficients have no finite estimate and are NaN, `lost` says which); `not_converged`
        (nothing but `loglik`, `n_eval` and `grad` is to be believed, all else is NaN). When several hold, the last of
        them in the order singular, poisson_limit, zi_boundary, separated, not_converged; see also `singular` and
        `theta`.
    family
        `"gaussian"`, `"poisson"` or `"nbinom2"`.
    reml, n_quad
        As asked for.
    beta, se, df
        (p,) fixed effects (natural log scale for counts), standard errors, degrees of freedom: inf for a z test, which
        is what counts by maximum likelihood have. Gaussian: Satterthwaite's for REML and for maximum likelihood, as
        lmerTest reports them, also when singular. Counts by REML: Satterthwaite's, or containment degrees of freedom
        where the variance that carries the coefficient is 0.
    vcov
        (p, p) covariance of `beta`. Counts, as in glmmTMB: from the inverse Hessian in all parameters, which for REML
        is `vcov_fixed` plus what the estimation of the variances adds. Gaussian, as in lme4: `vcov_fixed` (by maximum
        likelihood glmmTMB inverts the whole Hessian, which differs where the random effects absorb what the fixed
        effects leave out).
    vcov_fixed
        (p, p) covariance of `beta` at the estimated variances.
    d_vcov
        (m, p, p) derivatives of `vcov_fixed` in the covariance parameters; empty (0, p, p) where there is no
        Satterthwaite.
    S
        (m, m) covariance of those parameters. Satterthwaite for a contrast L of the coefficients: with
        V = L'vcov_fixed L and d_j = L'd_vcov[j] L, df = 2 V^2 / d'S d. `df_of` does it, boundaries included; for a
        joint test it can be applied to each eigenvector of L vcov L'.
    theta
        Size of the negative binomial, inf at its Poisson limit and for the Poisson family; NaN for Gaussian.
    residual_sd
        Residual standard deviation, NaN for counts.
    sigma
        For each random term its covariance matrix (columns, columns), in the order of ``design.random``.
    singular
        For each random term whether its covariance matrix is singular.
    loglik
        Log-likelihood with all constants, by Laplace (exact for Gaussian) or adaptive Gauss-Hermite; for REML the
        restricted log-likelihood with the constant of lme4 and glmmTMB, ``-REMLcrit / 2``.
    n_par
        Number of parameters for AIC and BIC: fixed effects, (co)variances, theta or residual variance, zero inflation.
    n_obs
        Rows.
    ranef
        For each random term (levels, columns): modes of the effects given the data, rows in the order of
        ``design.random[term].levels``.
    ranef_vcov
        For each random term (levels, columns, columns): their conditional covariance at the estimated parameters (the
        `condVar` of lme4).
    ranef_pev
        The same with the estimation of beta counted in: the prediction error variance.
    eta, eta_fixed
        (n,) linear predictor with and without the random effects; both include the offset. -inf where a separated fit
        has mean 0.
    zi_beta, zi_vcov
        (k,), (k, k) coefficients of the logit of the zero-inflation probability; empty without zero inflation.
    zi_eta
        (n,) logit of the zero-inflation probability; -inf without zero inflation.
    hat_trace
        Effective number of parameters of the mean, random effects included (p without): the trace of the
        hat matrix, with the observed curvature of the log-likelihood as weights.
    lost
        (p,) bool: coefficients without a finite estimate.
    n_eval, grad
        Evaluations of the criterion, and its largest absolute gradient at the end (engine's units).
    quadrature_error
        What four times as many points of quadrature would add to `loglik` at these estimates; 0 for Laplace.
    """

    status: str
    family: str
    reml: bool
    n_quad: int
    beta: np.ndarray
    se: np.ndarray
    df: np.ndarray
    vcov: np.ndarray
    vcov_fixed: np.ndarray
    d_vcov: np.ndarray
    S: np.ndarray
    theta: float
    residual_sd: float
    sigma: list[np.ndarray]
    singular: list[bool]
    loglik: float
    n_par: int
    n_obs: int
    ranef: list[np.ndarray]
    ranef_vcov: list[np.ndarray]
    ranef_pev: list[np.ndarray]
    eta: np.ndarray
    eta_fixed: np.ndarray
    zi_beta: np.ndarray
    zi_vcov: np.ndarray
    zi_eta: np.ndarray
    hat_trace: float
    lost: np.ndarray
    n_eval: int
    grad: float
    quadrature_error: float = 0.0
    _inner: Inner | None = field(default=None, repr=False)

    def df_of(self, contrast: np.ndarray) -> float:
        """Degrees of freedom of a contrast (p,) of the coefficients: inf for a z test, NaN for one without estimate."""
        contrast = np.asarray(contrast, float)
        if self._inner is None or (contrast[self.lost] != 0).any():
            return np.nan
        return self._inner.df_of(contrast)


@dataclass(frozen=True)
class Inner:
    """The optimum of the model that was fitted, which has only the coefficients `columns` when it is separated."""

    frame: Frame
    fitted: Fit
    columns: np.ndarray
    vcov_fixed: np.ndarray
    d_vcov: np.ndarray
    S: np.ndarray
    contained: bool

    def df_of(self, contrast: np.ndarray) -> float:
        """As `ResponseFit.df_of`, for a contrast without coefficients that are lost."""
        if not self.S.size:
            return np.inf
        contrast = contrast[self.columns]
        carrier = find_carrier(self.frame, contrast) if self.contained and contrast.any() else None
        return contrast_df(self.frame, self.fitted, contrast, carrier, self.vcov_fixed, self.d_vcov, self.S)
