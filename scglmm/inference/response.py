"""One response: a vector y instead of the genes of a matrix, for `scglmm.glmm`.

The engine is the one that fits genes; what a gene does not report and a single model does is worked out here: effects
of every level with their conditional covariance, linear predictors of every row, effective degrees of freedom.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scglmm.engine.curvature import hessian
from scglmm.engine.fit import Fit
from scglmm.engine.laplace import laplace
from scglmm.engine.layout import NODE_A, NODE_E, Work, make_work
from scglmm.engine.optimise import LOG_THETA_MIN
from scglmm.engine.posterior import posterior
from scglmm.engine.refit import refit

from .compressed import Compressed, compress, without_separated
from .effects import covariances, effects, on_strata
from .gene import (
    NOT_CONVERGED,
    OK,
    POISSON_LIMIT,
    SEPARATED,
    SINGULAR,
    ZI_BOUNDARY,
    free_by_term,
    inverse_information,
    variances,
)
from .inflation import fit_from_starts, is_determined
from .response_checks import check_response
from .response_fit import Inner, ResponseFit

if TYPE_CHECKING:
    from scglmm.formula import Design

GAUSSIAN, POISSON, NBINOM2 = "gaussian", "poisson", "nbinom2"


def fit_response(
    design: Design,
    y: np.ndarray,
    *,
    family: str = NBINOM2,
    zi_design: Design | None = None,
    reml: bool = False,
    n_quad: int = 1,
) -> ResponseFit:
    """Fit a mixed model to one response.

    Parameters
    ----------
    design
        Fixed effects (`X`), random terms (`random`) and offset (`offset`, None for 0) on the n rows, from
        `scglmm.formula.build_design`.
    y
        (n,) response. Counts for `"poisson"` and `"nbinom2"`, any numbers for `"gaussian"`.
    family
        `"gaussian"` (identity link), `"poisson"` or `"nbinom2"` (log link, variance mu + mu^2/theta).
    zi_design
        Design of the zero inflation, of which only `X` is used; None for no zero inflation. A row is 0 with
        probability p, logit p = X gamma, and follows the family otherwise.
    reml
        Restricted maximum likelihood: fixed effects are integrated out (those of the zero inflation are not).
    n_quad
        Points of adaptive Gauss-Hermite quadrature; 1 is Laplace. More than one needs a single random term with a
        single column, and maximum likelihood.

    Raises
    ------
    ValueError
        y has another length than the design, is not finite, or is not a vector of counts for a count family; the family
        is unknown or does not go with zero inflation; `n_quad` does not fit the model; a Gaussian model has as many
        random effects in a term as there are rows.
    """
    y = check_response(design, y, family, zi_design, reml, n_quad)
    full = compress(design, y, family, zi_design)
    model: Compressed | None = full if family == GAUSSIAN else without_separated(full)
    if model is None:
        return _empty(full, SEPARATED, family, reml, n_quad)
    frame, data = model.frame, model.data
    work = make_work(frame.structure, frame.Q)
    beta = np.zeros(frame.Q.shape[1])
    if family != GAUSSIAN:
        beta = np.log(data.y_sum.sum() / float(data.nodes[NODE_E] @ data.nodes[NODE_A])) * frame.intercept
    fitted = fit_from_starts(data, frame, reml, beta, work)
    if n_quad > 1 and not fitted.failed:
        fitted = refit(data, frame.structure, frame.Q, fitted, n_quad, work)
    if fitted.failed or (family != POISSON and fitted.log_theta <= LOG_THETA_MIN):
        return _empty(full, SEPARATED if model.lost.any() else NOT_CONVERGED, family, reml, n_quad, fitted)
    return _result(model, fitted, work, family, reml, n_quad)


def _result(model: Compressed, fitted: Fit, work: Work, family: str, reml: bool, n_quad: int) -> ResponseFit:
    frame, offset, scale = model.frame, model.offset, model.scale
    p, k = frame.X.shape[1], fitted.zi.size
    singular = [not free.all() for free in free_by_term(frame, fitted)]
    information = inverse_information(fitted.hessian, fitted.free)
    own = np.zeros((0, 0))
    first_zi = 0 if reml else p

    _at_optimum(model, fitted, work, reml)
    trace = float(posterior(frame.structure, frame.Q, work))
    ranef = [scale * u for u in effects(frame, fitted.psi, fitted.v)]
    given_beta, counted = ([scale**2 * c for c in cs] for cs in covariances(frame, fitted.psi, work))
    sigma = [scale**2 * s for s in variances(frame, fitted.psi)]

    fixed = covariance = work.schur[1].copy()
    if reml:
        d_covariance, S = fitted.d_covariance, information
        if family != GAUSSIAN:
            covariance = fixed + fitted.d_beta.T @ S @ fitted.d_beta
    elif family == GAUSSIAN:
        d_covariance, S = _covariance_slopes(model, fitted, work), information[p:, p:]
    else:
        covariance, d_covariance, S = information[:p, :p], np.zeros((0, p, p)), own

    def in_units(engine: np.ndarray) -> np.ndarray:
        return scale**2 * np.einsum("ia,...ab,jb->...ij", frame.back, engine, frame.back)

    vcov_fixed, d_vcov = in_units(fixed), in_units(d_covariance)
    inner = Inner(frame, fitted, model.columns, vcov_fixed, d_vcov, S, contained=family != GAUSSIAN)

    beta = model.beta(fitted.beta)
    full_beta = np.full(model.lost.size, np.nan)
    full_beta[model.columns] = beta
    full_beta[model.lost] = np.nan
    full_vcov = model.spread(in_units(covariance))
    eta_fixed = model.on_rows(frame.X @ beta) + offset
    zi_eta, zi_vcov, determined = np.full(offset.size, -np.inf), own, True
    if k:
        at = slice(first_zi, first_zi + k)
        zi_eta = model.on_rows(model.data.extra.zi @ fitted.zi)
        zi_vcov = model.zi_back @ information[at, at] @ model.zi_back.T
        determined = is_determined(model.data.extra.zi, fitted.zi, information[at, at], fitted.free[at])
        if not fitted.free[at].all():
            zi_vcov = np.full((k, k), np.nan)
    status = SINGULAR if any(singular) else OK
    if fitted.theta_at_limit:
        status = POISSON_LIMIT
    if not determined:
        status = ZI_BOUNDARY
    if model.lost.any():
        status = SEPARATED
    constant = -(offset.size - p * reml) * np.log(scale) - frame.log_det * reml
    theta = {GAUSSIAN: np.nan, POISSON: np.inf}.get(family, np.exp(fitted.log_theta))
    result = ResponseFit(
        status=status,
        family=family,
        reml=reml,
        n_quad=n_quad,
        beta=full_beta,
        se=np.sqrt(np.diag(full_vcov)),
        df=np.full(model.lost.size, np.nan),
        vcov=full_vcov,
        vcov_fixed=model.spread(vcov_fixed),
        d_vcov=model.spread(d_vcov),
        S=S,
        theta=np.inf if fitted.theta_at_limit else float(theta),
        residual_sd=scale * float(np.exp(0.5 * fitted.log_theta)) if family == GAUSSIAN else np.nan,
        sigma=sigma,
        singular=singular,
        loglik=fitted.value + constant,
        n_par=p + fitted.psi.size + k + (family != POISSON),
        n_obs=offset.size,
        ranef=model.on_levels(ranef, [np.zeros(1)] * len(ranef)),
        ranef_vcov=model.on_levels(given_beta, sigma),
        ranef_pev=model.on_levels(counted, sigma),
        eta=eta_fixed + model.on_rows(on_strata(frame, ranef)),
        eta_fixed=eta_fixed,
        zi_beta=model.zi_back @ fitted.zi,
        zi_vcov=zi_vcov,
        zi_eta=zi_eta,
        hat_trace=trace,
        lost=model.lost,
        n_eval=fitted.n_eval,
        grad=fitted.grad,
        quadrature_error=fitted.quadrature_error,
        _inner=inner,
    )
    return replace(result, df=np.array([result.df_of(contrast) for contrast in np.eye(model.lost.size)]))


def _at_optimum(model: Compressed, fitted: Fit, work: Work, reml: bool) -> None:
    """Bring the scratch arrays to the optimum."""
    frame = model.frame
    par = np.concatenate([[] if reml else fitted.beta, fitted.zi, fitted.psi, [fitted.log_theta]])
    beta, v = fitted.beta.copy(), fitted.v.copy()
    laplace(model.data, frame.structure, frame.Q, reml, True, par, beta, v, np.empty(par.size), work)


def _covariance_slopes(model: Compressed, fitted: Fit, work: Work) -> np.ndarray:
    """Differentiate the covariance of beta at fixed variances, for a Gaussian fit by maximum likelihood.

    Fixed effects at given variances are the same for both criteria, so REML's derivatives are what is wanted.
    """
    frame, p = model.frame, model.frame.X.shape[1]
    par = np.concatenate([fitted.psi, [fitted.log_theta]])
    n = par.size
    d_covariance, gradient = np.zeros((n, p, p)), np.empty(n)
    hessian(
        model.data, frame.structure, frame.Q, True, par, fitted.free[p:], True, fitted.beta.copy(), fitted.v.copy(),
        gradient, work, d_covariance, np.zeros((n, p)), np.zeros((n, fitted.v.size)),
    )  # fmt: skip
    return d_covariance


def _empty(
    model: Compressed, status: str, family: str, reml: bool, n_quad: int, fitted: Fit | None = None
) -> ResponseFit:
    """Return a result without estimates."""
    frame, n = model.frame, model.offset.size
    p, k = frame.X.shape[1], model.zi_back.shape[0]
    widths = [(term.n_levels, len(term.columns)) for term in frame.terms]
    missing = np.full(p, np.nan)
    constant = -(n - p * reml) * np.log(model.scale) - frame.log_det * reml
    return ResponseFit(
        status=status,
        family=family,
        reml=reml,
        n_quad=n_quad,
        beta=missing,
        se=missing,
        df=missing,
        vcov=np.full((p, p), np.nan),
        vcov_fixed=np.full((p, p), np.nan),
        d_vcov=np.zeros((0, p, p)),
        S=np.zeros((0, 0)),
        theta=np.nan,
        residual_sd=np.nan,
        sigma=[np.full((c, c), np.nan) for _, c in widths],
        singular=[False for _ in widths],
        loglik=np.nan if fitted is None else fitted.value + constant,
        n_par=p + frame.structure.psi_at.shape[1] + k + (family != POISSON),
        n_obs=n,
        ranef=[np.full(shape, np.nan) for shape in widths],
        ranef_vcov=[np.full((levels, c, c), np.nan) for levels, c in widths],
        ranef_pev=[np.full((levels, c, c), np.nan) for levels, c in widths],
        eta=np.full(n, np.nan),
        eta_fixed=np.full(n, np.nan),
        zi_beta=np.full(k, np.nan),
        zi_vcov=np.full((k, k), np.nan),
        zi_eta=np.full(n, np.nan if k else -np.inf),
        hat_trace=np.nan,
        lost=np.ones(p, np.bool_),
        n_eval=0 if fitted is None else fitted.n_eval,
        grad=np.nan if fitted is None else fitted.grad,
    )
