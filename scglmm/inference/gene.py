"""One gene: from the engine's numbers to estimates, standard errors, degrees of freedom and variances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import qr

from scglmm.engine.families import POISSON
from scglmm.engine.fit import Fit, fit
from scglmm.engine.layout import Data, make_work
from scglmm.engine.optimise import LOG_THETA_MIN
from scglmm.engine.refit import refit

from .containment import Carrier, find_carrier
from .frame import Frame, null_frame, restrict, roots
from .inflation import fit_from_starts, is_determined
from .sd_profile import Profile, make_profile
from .separation import loses_rank, null_space, separating_direction
from .wald import satterthwaite

OK, SINGULAR, POISSON_LIMIT, ZI_BOUNDARY, SEPARATED, NOT_CONVERGED = (
    "ok",
    "singular",
    "poisson_limit",
    "zi_boundary",
    "separated",
    "not_converged",
)
BEYOND = "beyond"  # of a fit that needs other nodes: never reported, see `scglmm.inference.cell_level`


@dataclass(frozen=True)
class GeneFit:
    """Estimates of one gene, in the user's units; NaN where there are none.

    Attributes
    ----------
    status
        `ok`, `singular`, `poisson_limit`, `zi_boundary`, `separated` or `not_converged`; with nodes in covariates of
        the cells also `beyond`: fit the gene with nodes for larger effects.
    beta, se, df
        (p,) estimates, standard errors and degrees of freedom (inf for a z test), natural log.
    vcov
        (p, p) covariance of the estimates.
    d_vcov
        (m, p, p) its derivatives D with respect to the m variance parameters, premultiplied by a root of their
        covariance S: a contrast c has ``df = 2 (c'Cc)^2 / sum_k (c'D_k c)^2``, C the covariance at fixed variances
        (`vcov`, unless `adjust_se` was asked for or zeros are inflated). 0 for parameters on a boundary. m is 0 for
        maximum likelihood.
    theta
        Size of the negative binomial, inf at the Poisson limit and for the Poisson family.
    sigma
        For each random term its covariance matrix.
    loglik
        Laplace log-likelihood (maximum likelihood) or restricted log-likelihood (REML), all constants.
    n_eval, grad
        Evaluations of the criterion, and its largest absolute gradient at the end (engine's units).
    var_linpred
        Variance over the cells of the linear predictor without the offset.
    null_intercept, null_var
        Intercept, and mean over the cells of the variance of the random effects, in the model without fixed effects.
    profile
        REML criterion over the standard deviations, for moderation, if it was asked for.
    moderated
        (R,) posterior means of the variances of the random terms, in the user's units, once the fit is moderated.
    zi_beta, zi_se
        (k,) coefficients of the logit of the zero-inflation probability and their standard errors; None without. The
        latter are NaN where the probability has gone to 0 or 1.
    quadrature_error
        What four times as many points of quadrature would add to `loglik` at these estimates; 0 for Laplace.
    """

    status: str
    beta: np.ndarray
    se: np.ndarray
    df: np.ndarray
    vcov: np.ndarray
    d_vcov: np.ndarray
    theta: float
    sigma: list[np.ndarray]
    loglik: float
    n_eval: int
    grad: float
    var_linpred: float
    null_intercept: float
    null_var: float
    profile: Profile | None = None
    moderated: np.ndarray | None = None
    zi_beta: np.ndarray | None = None
    zi_se: np.ndarray | None = None
    quadrature_error: float = 0.0


def fit_gene(
    data: Data,
    frame: Frame,
    carriers: list[Carrier | None],
    shift: float,
    method: str,
    *,
    adjust_se: bool = False,
    null: bool = True,
    with_profile: bool = False,
    limit: bool = False,
    n_quad: int = 1,
    zi_back: np.ndarray | None = None,
) -> GeneFit:
    """Fit one gene and the model without its fixed effects.

    Parameters
    ----------
    data
        The gene.
    frame
        The model.
    carriers
        For every coefficient what carries it.
    shift
        What was subtracted from the offsets; 0 unless the constant is in the span of X.
    method
        `"reml"` (Satterthwaite t) or `"ml"` (Wald z).
    null
        Whether the model without fixed effects, which variance fractions need, is fitted as well.
    adjust_se
        REML: add to the covariance what the estimation of the variances costs, J S J' with J = dbeta/d(psi, theta).
        Always done with zero inflation.
    with_profile
        Whether the profile that moderation needs is wanted (`scglmm.inference.sd_profile.can_profile` holds).
    limit
        Whether a separated gene without a single estimate is fitted for the limit of its log-likelihood.
    n_quad
        Points of adaptive Gauss-Hermite quadrature, 1 for Laplace; more want maximum likelihood and one random term of
        one column. The model without fixed effects is fitted by Laplace's approximation whatever it is.
    zi_back
        (k, k) what takes the engine's coefficients of a zero inflation to the user's.
    """
    p = frame.X.shape[1]
    zi_back = np.empty((0, 0)) if zi_back is None else zi_back
    limits = frame.limits
    if limits is not None and loses_rank(frame.Q, data.y_sum):
        return _empty(frame, BEYOND, method)  # whether it is separated only the cells can tell
    direction = None if limits is not None else separating_direction(frame.Q, data.y_sum)
    if direction is not None:
        return _fit_separated(
            data, frame, direction, shift, method, adjust_se=adjust_se, limit=limit, n_quad=n_quad, zi_back=zi_back
        )
    reml = method == "reml"
    exposure = float(data.nodes[0] @ data.nodes[1])
    rate = np.log(data.y_sum.sum() / exposure)
    work = make_work(frame.structure, frame.Q)
    fitted = fit_from_starts(data, frame, reml, rate * frame.intercept, work)
    if n_quad > 1 and not fitted.failed:
        fitted = refit(data, frame.structure, frame.Q, fitted, n_quad, work)
    if limits is not None and (fitted.failed or not limits.hold(fitted.eta)):
        return _empty(frame, BEYOND, method, fitted)
    # At its lower limit theta says only that one cell has nearly all counts: nothing can be tested there.
    if fitted.failed or (data.family != POISSON and fitted.log_theta <= LOG_THETA_MIN):
        return _empty(frame, NOT_CONVERGED, method, fitted, zi_back.shape[0])
    null = null and not zi_back.size  # variance fractions are not defined with zero inflation
    null_intercept, null_var = _fit_null(data, frame, reml, fitted) if null else (np.nan, np.nan)

    if reml:
        # The zero inflation is estimated with the variances, but unlike these it moves beta to first order.
        vcov, df = _reml_covariance(frame, carriers, fitted, adjust_se or zi_back.size > 0)
        d_vcov = _scaled_derivatives(frame, fitted)
    else:
        vcov, df = _ml_covariance(frame, fitted), np.full(p, np.inf)
        d_vcov = np.empty((0, p, p))
    zero = ~fitted.free[-1 - fitted.psi.size : -1]
    status = SINGULAR if zero.any() else POISSON_LIMIT if fitted.theta_at_limit else OK
    zi_beta, zi_se = None, None
    if zi_back.size:
        zi_beta, zi_se, determined = _inflation(data, fitted, zi_back, reml)
        status = status if determined else ZI_BOUNDARY
    poisson = fitted.theta_at_limit or data.family == POISSON
    return GeneFit(
        status=status,
        beta=frame.back @ (fitted.beta - shift * frame.intercept),
        se=np.sqrt(np.diag(vcov)),
        df=df,
        vcov=vcov,
        d_vcov=d_vcov,
        theta=np.inf if poisson else float(np.exp(fitted.log_theta)),
        sigma=variances(frame, fitted.psi),
        loglik=fitted.value - (frame.log_det if reml else 0.0),
        n_eval=fitted.n_eval,
        grad=fitted.grad,
        var_linpred=_variance(fitted.eta, frame.n_cells),
        null_intercept=null_intercept - shift,
        null_var=null_var,
        profile=make_profile(data, frame, fitted, shift) if with_profile else None,
        zi_beta=zi_beta,
        zi_se=zi_se,
        quadrature_error=fitted.quadrature_error,
    )


def _inflation(data: Data, fitted: Fit, zi_back: np.ndarray, reml: bool) -> tuple[np.ndarray, np.ndarray, bool]:
    """Coefficients of the zero inflation, their standard errors, and whether they can be tested."""
    first = 0 if reml else fitted.beta.size
    at = slice(first, first + fitted.zi.size)
    covariance = inverse_information(fitted.hessian, fitted.free)[at, at]
    se = np.sqrt(np.diag(zi_back @ covariance @ zi_back.T))
    if not fitted.free[at].all():
        se = np.full(se.size, np.nan)
    return zi_back @ fitted.zi, se, is_determined(data.extra.zi, fitted.zi, covariance, fitted.free[at])


def _fit_separated(
    data: Data,
    frame: Frame,
    direction: np.ndarray,
    shift: float,
    method: str,
    *,
    adjust_se: bool,
    limit: bool,
    n_quad: int,
    zi_back: np.ndarray,
) -> GeneFit:
    """Fit what is left of a gene when a direction of the coefficients runs to infinity.

    In the limit the strata on which the direction bites have mean 0 and say nothing more. On the others that direction
    is flat, and so may be more of them: a coefficient that takes part in a flat direction has no estimate, the others
    keep theirs.
    """
    empty = _empty(frame, SEPARATED, method, n_zi=zi_back.shape[0])
    strata = ~(frame.Q @ direction < -1e-8)
    flat = frame.back @ null_space(frame.Q[strata])
    moves = np.abs(flat).max(axis=1) * np.abs(frame.X).max(axis=0)
    lost = moves > 1e-6 * moves.max()
    if lost[np.ptp(frame.X, axis=0) > 0].all() and not limit:
        return empty
    kept = ~lost
    kept[independent(frame.X[np.ix_(strata, lost)], np.flatnonzero(lost), flat.shape[1])] = True
    sub = restrict(frame, strata, kept)
    carriers = [find_carrier(sub, contrast) for contrast in np.eye(sub.X.shape[1])]
    how: dict[str, Any] = {"adjust_se": adjust_se, "limit": limit, "n_quad": n_quad, "zi_back": zi_back}
    fitted = fit_gene(on_strata(data, strata), sub, carriers, shift, method, **how)
    if fitted.status == NOT_CONVERGED:
        return empty

    def spread(values: np.ndarray) -> np.ndarray:
        full = np.full(lost.size, np.nan)
        full[kept] = values
        full[lost] = np.nan
        return full

    def spread_square(values: np.ndarray) -> np.ndarray:
        full = np.full((*values.shape[:-2], *frame.back.shape), np.nan)
        at = np.flatnonzero(kept)
        full[..., at[:, None], at] = values
        full[..., lost, :] = np.nan
        full[..., lost] = np.nan
        return full

    return replace(
        fitted,
        status=SEPARATED,
        beta=spread(fitted.beta),
        se=spread(fitted.se),
        df=spread(fitted.df),
        vcov=spread_square(fitted.vcov),
        d_vcov=spread_square(fitted.d_vcov),
        # The variance that an infinite effect explains is not a number.
        var_linpred=np.nan,
        null_intercept=np.nan,
        null_var=np.nan,
    )


def independent(X: np.ndarray, columns: np.ndarray, n_flat: int) -> np.ndarray:
    """Pick, of columns among which there are `n_flat` linear relations, as many as are independent."""
    length = np.sqrt((X**2).sum(axis=0))
    _, pivots = qr(X / np.where(length > 0, length, 1.0), mode="r", pivoting=True)
    return columns[pivots[: columns.size - n_flat]]


def on_strata(data: Data, strata: np.ndarray) -> Data:
    """Take the data of some strata; the others have no counts, so histogram and constant stay."""
    sizes = np.diff(data.start)
    extra = data.extra
    if extra is not None:
        zeros = extra.zeros[np.repeat(strata, sizes)] if extra.zeros.size else extra.zeros
        zi = np.ascontiguousarray(extra.zi[strata])
        extra = extra._replace(zi=zi, zeros=zeros, rows=np.ascontiguousarray(extra.rows[:, strata]))
    return data._replace(
        extra=extra,
        start=np.concatenate([[0], np.cumsum(sizes[strata])]),
        nodes=np.ascontiguousarray(data.nodes[:, np.repeat(strata, sizes)]),
        y_sum=np.ascontiguousarray(data.y_sum[strata]),
    )


def variances(frame: Frame, psi: np.ndarray) -> list[np.ndarray]:
    """Covariance matrix of every random term from the engine's parameters."""
    return [
        root @ root.T / np.outer(term.scale, term.scale)
        for term, root in zip(frame.terms, roots(frame, psi), strict=True)
    ]


def random_variance(frame: Frame, sigma: list[np.ndarray]) -> list[float]:
    """Variance of every random term: for a slope the mean over the cells of z'Sigma z."""
    return [float(np.sum(s * t.moment)) for s, t in zip(sigma, frame.terms, strict=True)]


def _fit_null(data: Data, frame: Frame, reml: bool, fitted: Fit) -> tuple[float, float]:
    """Intercept and total random variance of the model with an intercept and the same random effects."""
    null = null_frame(frame)
    # From the other model: the mean of its fixed effects, its variances and theta.
    mean = frame.n_cells @ (frame.Q @ fitted.beta) / frame.n_cells.sum()
    start = np.array([mean]), np.abs(fitted.psi), fitted.log_theta
    # Newton's method arrives with rounding error alone; the search for other families would leave what depends on the
    # order of the cells in the seventh digit, without the Newton steps at its end.
    found = fit(data, null.structure, null.Q, reml, *start, curvature=data.extra is not None)
    if found.failed and data.extra is not None:
        found = fit(data, null.structure, null.Q, reml, *start, curvature=False)
    if found.failed:
        return np.nan, np.nan
    return float(found.beta[0]), sum(random_variance(frame, variances(frame, found.psi)))


def _variance(eta: np.ndarray, n_cells: np.ndarray) -> float:
    """Sample variance over the cells of something that is constant within strata."""
    n = n_cells.sum()
    mean = n_cells @ eta / n
    return float(n_cells @ (eta - mean) ** 2 / max(1, n - 1))


def inverse_information(hessian: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Inverse of minus the Hessian over the free parameters, 0 elsewhere."""
    if free.all():
        return np.linalg.inv(-hessian)
    result = np.zeros_like(hessian)
    at = np.ix_(free, free)
    result[at] = np.linalg.inv(-hessian[at])
    return result


def _ml_covariance(frame: Frame, fitted: Fit) -> np.ndarray:
    p = frame.X.shape[1]
    return frame.back @ inverse_information(fitted.hessian, fitted.free)[:p, :p] @ frame.back.T


def _reml_covariance(
    frame: Frame, carriers: list[Carrier | None], fitted: Fit, adjust_se: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of beta, and degrees of freedom of every coefficient."""
    S = inverse_information(fitted.hessian, fitted.free)
    covariance, d_covariance = fitted.covariance, fitted.d_covariance
    reported = covariance + fitted.d_beta.T @ S @ fitted.d_beta if adjust_se else covariance
    df = np.array(
        [
            contrast_df(frame, fitted, contrast, carrier, covariance, d_covariance, S)
            for contrast, carrier in zip(frame.back, carriers, strict=True)
        ]
    )
    return frame.back @ reported @ frame.back.T, df


def _scaled_derivatives(frame: Frame, fitted: Fit) -> np.ndarray:
    """Premultiply the derivatives of the covariance of beta by a root of S, which is 0 on the boundaries."""
    free = fitted.free
    half = np.linalg.cholesky(-fitted.hessian[np.ix_(free, free)])
    scaled = np.zeros_like(fitted.d_covariance)
    # S = (half half')^-1, so d'Sd is the sum of squares of half^-1 d.
    p = fitted.covariance.shape[0]
    scaled[free] = np.linalg.solve(half, fitted.d_covariance[free].reshape(-1, p * p)).reshape(-1, p, p)
    return frame.back @ scaled @ frame.back.T


def free_by_term(frame: Frame, fitted: Fit) -> list[np.ndarray]:
    """Which parameters of each random term are in the interior."""
    free = fitted.free[-1 - fitted.psi.size : -1]
    return [free[frame.structure.psi_at[2] == term] for term in range(len(frame.terms))]


def contrast_df(
    frame: Frame,
    fitted: Fit,
    contrast: np.ndarray,
    carrier: Carrier | None,
    covariance: np.ndarray,
    d_covariance: np.ndarray,
    S: np.ndarray,
) -> float:
    """Satterthwaite, or containment where the variance that carries the contrast is 0.

    A singular covariance matrix of several columns has hardly ever a variance that is exactly 0, but the same 0/0 in
    its null space: there the smaller of the two. `contrast`, `covariance` and its derivatives are in the same units.
    """
    df = satterthwaite(contrast, covariance, d_covariance, S)
    if carrier is None or fitted.free.all() or free_by_term(frame, fitted)[carrier.term].all():
        return df
    term, direction = variances(frame, fitted.psi)[carrier.term], carrier.direction
    contained = carrier.df if carrier.df > 0 else np.nan
    # Rounding: the variance of a combination of columns is seldom exactly 0 where it should be.
    if direction @ term @ direction <= 1e-14 * (np.abs(direction) @ np.sqrt(term.diagonal())) ** 2:
        return contained
    return contained if np.isnan(contained) else min(df, contained)


def _empty(frame: Frame, status: str, method: str, fitted: Fit | None = None, n_zi: int = 0) -> GeneFit:
    p = frame.X.shape[1]
    m = n_zi + frame.structure.psi_at.shape[1] + 1 if method == "reml" else 0
    missing = np.full(p, np.nan)
    return GeneFit(
        status=status,
        beta=missing,
        se=missing,
        df=missing,
        vcov=np.full((p, p), np.nan),
        d_vcov=np.full((m, p, p), np.nan),
        theta=np.nan,
        sigma=[np.full((len(t.columns),) * 2, np.nan) for t in frame.terms],
        loglik=np.nan,
        n_eval=0 if fitted is None else fitted.n_eval,
        grad=np.nan if fitted is None else fitted.grad,
        var_linpred=np.nan,
        null_intercept=np.nan,
        null_var=np.nan,
        zi_beta=np.full(n_zi, np.nan),
        zi_se=np.full(n_zi, np.nan),
    )
