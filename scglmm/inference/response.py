"""One response: a vector y instead of the genes of a matrix, for `scglmm.glmm`.

The engine is the one that fits genes; what a gene does not report and a single model does is worked out here: effects
of every level with their conditional covariance, linear predictors of every row, effective degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scglmm.compression.nodes import Nodes, make_nodes
from scglmm.compression.tables import accumulate
from scglmm.engine.fit import FAILED, Fit, fit
from scglmm.engine.layout import Data, Work, make_work
from scglmm.engine.optimise import LOG_THETA_MIN
from scglmm.engine.posterior import posterior
from scglmm.engine.responses import Responses

from .containment import find_carrier
from .frame import Frame, RandomTerm, make_frame, restrict, strata_of
from .gene import (
    NOT_CONVERGED,
    OK,
    POISSON_LIMIT,
    SEPARATED,
    SINGULAR,
    contrast_df,
    free_by_term,
    independent,
    inverse_information,
    on_strata,
    variances,
)
from .separation import null_space, separating_direction

if TYPE_CHECKING:
    from scglmm.formula import Design

GAUSSIAN, POISSON, NBINOM2 = "gaussian", "poisson", "nbinom2"
FAMILIES = (GAUSSIAN, POISSON, NBINOM2)
ZI_BOUNDARY = "zi_boundary"


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
        (p, p) covariance of `beta`. Maximum likelihood for counts: from the inverse Hessian in all parameters. REML,
        and Gaussian: at the estimated variances.
    d_vcov
        (m, p, p) derivatives of `vcov` in the covariance parameters; empty (0, p, p) where there is no Satterthwaite.
    S
        (m, m) covariance of those parameters. Satterthwaite for a contrast L of the coefficients: with V = L'vcov L and
        d_j = L'd_vcov[j] L, df = 2 V^2 / d'S d. `df_of` does it, boundaries included; for a joint test it can be
        applied to each eigenvector.
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
        Effective number of parameters of the mean, random effects included: p without random effects.
    lost
        (p,) bool: coefficients without a finite estimate.
    n_eval, grad
        Evaluations of the criterion, and its largest absolute gradient at the end (engine's units).
    """

    status: str
    family: str
    reml: bool
    n_quad: int
    beta: np.ndarray
    se: np.ndarray
    df: np.ndarray
    vcov: np.ndarray
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
    _inner: _Inner | None = field(default=None, repr=False)

    def df_of(self, contrast: np.ndarray) -> float:
        """Degrees of freedom of a contrast (p,) of the coefficients: inf for a z test, NaN for one without estimate."""
        contrast = np.asarray(contrast, float)
        if self._inner is None or (contrast[self.lost] != 0).any():
            return np.nan
        return self._inner.df_of(contrast)


@dataclass(frozen=True)
class _Inner:
    """The optimum of the model that was fitted, which has only the coefficients `columns` when it is separated."""

    frame: Frame
    fitted: Fit
    columns: np.ndarray
    vcov: np.ndarray
    d_vcov: np.ndarray
    S: np.ndarray
    has_df: bool
    contained: bool

    def df_of(self, contrast: np.ndarray) -> float:
        if not self.has_df:
            return np.inf
        contrast = contrast[self.columns]
        carrier = find_carrier(self.frame, contrast) if self.contained and contrast.any() else None
        return contrast_df(self.frame, self.fitted, contrast, carrier, self.vcov, self.d_vcov, self.S)


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
    y = _check(design, y, family, zi_design, reml, n_quad)
    if family != NBINOM2 or zi_design is not None or n_quad != 1:
        raise NotImplementedError
    model: _Model | None = _model(design, y)
    full, separated = model, False
    while (direction := separating_direction(model.frame.Q, model.data.y_sum)) is not None:
        separated = True
        model = _without(model, direction)
        if model is None:
            return _empty(full, SEPARATED, family, reml, n_quad)
    frame, data = model.frame, model.data
    rate = np.log(data.y_sum.sum() / float(data.nodes[0] @ data.nodes[1]))
    work = make_work(frame.structure, frame.Q)
    fitted = fit(data, frame.structure, frame.Q, reml, rate * frame.intercept, work=work)
    if fitted.status == FAILED or fitted.log_theta <= LOG_THETA_MIN:
        return _empty(full, SEPARATED if separated else NOT_CONVERGED, family, reml, n_quad, fitted)
    return _result(model, fitted, work, family, reml, n_quad)


def _check(design: Design, y: np.ndarray, family: str, zi_design: Design | None, reml: bool, n_quad: int) -> np.ndarray:
    """Check what the user gave; returns y as numbers."""
    if family not in FAMILIES:
        msg = f"family={family!r} is not known; it is one of {', '.join(map(repr, FAMILIES))}."
        raise ValueError(msg)
    y = np.asarray(y, float)
    n = design.X.shape[0]
    if y.shape != (n,):
        msg = f"The response has shape {y.shape}, the design {n:,} rows: one number for each row is needed."
        raise ValueError(msg)
    bad = ~np.isfinite(y)
    if bad.any():
        msg = (
            f"The response is missing or infinite in {int(bad.sum()):,} of {n:,} rows, the first of them row "
            f"{int(bad.argmax())}. Leave these rows out."
        )
        raise ValueError(msg)
    if family != GAUSSIAN:
        wrong = (y < 0) | (y != np.round(y))
        if wrong.any():
            first = int(wrong.argmax())
            msg = (
                f"family={family!r} needs counts, and the response is {y[first]:g} in row {first} (negative or "
                f"fractional in {int(wrong.sum()):,} of {n:,} rows). Use raw counts, or family='gaussian'."
            )
            raise ValueError(msg)
    return y


@dataclass(frozen=True)
class _Model:
    """One response compressed, and the way back to its rows."""

    design: Design
    nodes: Nodes
    frame: Frame
    data: Data
    shift: float
    strata: np.ndarray  # (S,) bool: the strata of the frame, all of them unless the response is separated
    columns: np.ndarray  # (p,) bool: the coefficients of the frame
    lost: np.ndarray  # (p,) bool: coefficients without a finite estimate


def _model(design: Design, y: np.ndarray) -> _Model:
    n, p = design.X.shape
    stratum, first = strata_of(design)
    offset = np.zeros(n) if design.offset is None else design.offset
    nodes = make_nodes(stratum, offset)
    frame = make_frame(design, first, nodes.n_cells)
    shift = float(offset.max()) if frame.has_constant else 0.0
    column = sparse.csr_array(y[:, None])
    data = Responses(nodes.grid, accumulate(column, np.arange(n), nodes, np.arange(1)), shift)[0]
    everything = np.ones(nodes.n_strata, np.bool_)
    return _Model(design, nodes, frame, data, shift, everything, np.ones(p, np.bool_), np.zeros(p, np.bool_))


def _without(model: _Model, direction: np.ndarray) -> _Model | None:
    """Leave out strata whose mean goes to 0 along a direction, and the coefficients that lose their estimate by it.

    As in `scglmm.inference.gene`: a coefficient that takes part in a direction that is flat on the other strata has no
    estimate. None when nothing but constants is left.
    """
    frame = model.frame
    strata = ~(frame.Q @ direction < -1e-8)
    flat = frame.back @ null_space(frame.Q[strata])
    moves = np.abs(flat).max(axis=1) * np.abs(frame.X).max(axis=0)
    flat_columns = moves > 1e-6 * moves.max()
    if flat_columns[np.ptp(frame.X, axis=0) > 0].all():
        return None
    kept = ~flat_columns
    flat_at = np.flatnonzero(flat_columns)
    kept[independent(frame.X[np.ix_(strata, flat_columns)], flat_at, flat.shape[1])] = True
    lost, columns, remaining = model.lost.copy(), model.columns.copy(), model.strata.copy()
    at = np.flatnonzero(model.columns)
    lost[at[flat_columns]] = True
    columns[at] = kept
    remaining[np.flatnonzero(model.strata)] = strata
    return replace(
        model,
        frame=restrict(frame, strata, kept),
        data=on_strata(model.data, strata),
        strata=remaining,
        columns=columns,
        lost=lost,
    )


def _result(model: _Model, fitted: Fit, work: Work, family: str, reml: bool, n_quad: int) -> ResponseFit:
    frame, offset = model.frame, model.nodes.offset
    p = frame.X.shape[1]
    singular = [not free.all() for free in free_by_term(frame, fitted)]
    S = inverse_information(fitted.hessian, fitted.free)
    covariance, d_covariance = fitted.covariance, fitted.d_covariance
    if not reml:
        covariance, d_covariance, S = S[:p, :p], np.zeros((0, p, p)), np.zeros((0, 0))
    vcov = frame.back @ covariance @ frame.back.T
    d_vcov = np.einsum("ia,kab,jb->kij", frame.back, d_covariance, frame.back)
    inner = _Inner(frame, fitted, model.columns, vcov, d_vcov, S, has_df=reml, contained=family != GAUSSIAN)
    beta = frame.back @ (fitted.beta - model.shift * frame.intercept)
    ranef, eta_random = _effects(frame, fitted)
    trace = float(posterior(frame.structure, frame.Q, work))
    conditional, pev = _effect_covariances(frame, fitted, work)

    def on_rows(of_strata: np.ndarray) -> np.ndarray:
        everywhere = np.full(model.strata.size, -np.inf)
        everywhere[model.strata] = of_strata
        return everywhere[model.nodes.stratum] + offset

    full_vcov, full_d_vcov = (_spread(model, v) for v in (vcov, d_vcov))
    full_beta = np.full(model.lost.size, np.nan)
    full_beta[model.columns] = beta
    full_beta[model.lost] = np.nan
    status = SINGULAR if any(singular) else OK
    if fitted.theta_at_limit:
        status = POISSON_LIMIT
    if model.lost.any():
        status = SEPARATED
    result = ResponseFit(
        status=status,
        family=family,
        reml=reml,
        n_quad=n_quad,
        beta=full_beta,
        se=np.sqrt(np.diag(full_vcov)),
        df=np.full(model.lost.size, np.nan),
        vcov=full_vcov,
        d_vcov=full_d_vcov,
        S=S,
        theta=np.inf if fitted.theta_at_limit else float(np.exp(fitted.log_theta)),
        residual_sd=np.nan,
        sigma=variances(frame, fitted.psi),
        singular=singular,
        loglik=fitted.value - (frame.log_det if reml else 0.0),
        n_par=p + fitted.psi.size + 1,
        n_obs=offset.size,
        ranef=_on_levels(model, ranef, 0.0),
        ranef_vcov=_on_levels(model, conditional, np.nan),
        ranef_pev=_on_levels(model, pev, np.nan),
        eta=on_rows(frame.X @ beta + eta_random),
        eta_fixed=on_rows(frame.X @ beta),
        zi_beta=np.empty(0),
        zi_vcov=np.empty((0, 0)),
        zi_eta=np.full(offset.size, -np.inf),
        hat_trace=trace,
        lost=model.lost,
        n_eval=fitted.n_eval,
        grad=fitted.grad,
        _inner=inner,
    )
    df = np.array([result.df_of(contrast) for contrast in np.eye(model.lost.size)])
    return replace(result, df=df)


def _spread(model: _Model, values: np.ndarray) -> np.ndarray:
    """Put (..., columns of the frame, columns of the frame) in its place among all coefficients, NaN for lost ones."""
    p = model.lost.size
    full = np.full((*values.shape[:-2], p, p), np.nan)
    at = np.flatnonzero(model.columns)
    full[..., at[:, None], at] = values
    full[..., model.lost, :] = np.nan
    full[..., :, model.lost] = np.nan
    return full


def _on_levels(model: _Model, values: list[np.ndarray], missing: float) -> list[np.ndarray]:
    """Put what is known of the levels of the frame in its place among all levels of the design."""
    result = []
    for term, known in zip(model.design.random, values, strict=True):
        level = term.codes[np.unique(model.nodes.stratum, return_index=True)[1]]
        full = np.full((level.max() + 1, *known.shape[1:]), missing)
        full[np.unique(level[model.strata])] = known
        result.append(full)
    return result


def _slots(term: RandomTerm, first: int) -> tuple[np.ndarray, range]:
    """One stratum of each level of a term, and the slots of its columns."""
    stratum = np.empty(term.n_levels, np.int64)
    stratum[term.codes] = np.arange(term.codes.size)
    return stratum, range(first, first + len(term.columns))


def _roots(frame: Frame, psi: np.ndarray) -> list[np.ndarray]:
    """Lambda of every term in the user's units: u = Lambda v."""
    roots, at = [], 0
    for term in frame.terms:
        c = len(term.columns)
        root = np.zeros((c, c))
        for j in range(c):
            root[j:, j] = psi[at : at + c - j]
            at += c - j
        roots.append(root / term.scale[:, None])
    return roots


def _effects(frame: Frame, fitted: Fit) -> tuple[list[np.ndarray], np.ndarray]:
    """Random effects of every level of every term, and their sum on every stratum."""
    effects, total, first = [], np.zeros(frame.X.shape[0]), 0
    for term, root in zip(frame.terms, _roots(frame, fitted.psi), strict=True):
        stratum, slots = _slots(term, first)
        first += len(slots)
        u = fitted.v[frame.structure.z_column[stratum][:, slots]] @ root.T
        effects.append(u)
        total += np.einsum("sc,sc->s", term.covariates, u[term.codes])
    return effects, total


def _effect_covariances(frame: Frame, fitted: Fit, work: Work) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Covariance of the effects of every level, without and with the estimation of beta; `posterior` came before."""
    conditional, pev, first = [], [], 0
    U, C = work.fixed[1], work.schur[1]
    for term, root in zip(frame.terms, _roots(frame, fitted.psi), strict=True):
        stratum, slots = _slots(term, first)
        first += len(slots)
        c = len(slots)
        inverse = np.empty((term.n_levels, c, c))
        for i, a in enumerate(slots):
            for j, b in enumerate(slots[: i + 1]):
                values = work.inverse[frame.structure.place[stratum, a * (a + 1) // 2 + b]]
                inverse[:, i, j] = inverse[:, j, i] = values
        u = U[frame.structure.z_column[stratum][:, slots]]
        conditional.append(root @ inverse @ root.T)
        pev.append(root @ (inverse + u @ C @ u.transpose(0, 2, 1)) @ root.T)
    return conditional, pev


def _empty(model: _Model, status: str, family: str, reml: bool, n_quad: int, fitted: Fit | None = None) -> ResponseFit:
    """Return a result without estimates."""
    frame, n = model.frame, model.nodes.offset.size
    p = frame.X.shape[1]
    widths = [(term.n_levels, len(term.columns)) for term in frame.terms]
    missing = np.full(p, np.nan)
    return ResponseFit(
        status=status,
        family=family,
        reml=reml,
        n_quad=n_quad,
        beta=missing,
        se=missing,
        df=missing,
        vcov=np.full((p, p), np.nan),
        d_vcov=np.zeros((0, p, p)),
        S=np.zeros((0, 0)),
        theta=np.nan,
        residual_sd=np.nan,
        sigma=[np.full((c, c), np.nan) for _, c in widths],
        singular=[False for _ in widths],
        loglik=np.nan if fitted is None else fitted.value - (frame.log_det if reml else 0.0),
        n_par=p + frame.structure.psi_at.shape[1] + 1,
        n_obs=n,
        ranef=[np.full(shape, np.nan) for shape in widths],
        ranef_vcov=[np.full((levels, c, c), np.nan) for levels, c in widths],
        ranef_pev=[np.full((levels, c, c), np.nan) for levels, c in widths],
        eta=np.full(n, np.nan),
        eta_fixed=np.full(n, np.nan),
        zi_beta=np.empty(0),
        zi_vcov=np.empty((0, 0)),
        zi_eta=np.full(n, -np.inf),
        hat_trace=np.nan,
        lost=np.ones(p, np.bool_),
        n_eval=0 if fitted is None else fitted.n_eval,
        grad=np.nan if fitted is None else fitted.grad,
    )
