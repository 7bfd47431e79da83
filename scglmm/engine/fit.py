"""Fit one gene: start, search, boundaries, curvature, and a record of how it went.

Boundaries are decided, never assumed (`scglmm.engine.boundary`): a variance is put to exactly 0 when the criterion
falls in every direction away from 0, and theta to its upper limit when the criterion does not rise with 1/theta there.

This file, `search` and `zero_variances` are Python: they call a handful of kernels for each gene and decide between
them. What costs time is in the kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .families import GAUSSIAN, NB2
from .layout import ETA, Data, H, Work, make_work
from .optimise import NOT_CONVERGED
from .search import SMALL_ASCENT, Search
from .structure import Structure
from .zero_variances import release_variances, settle_variances, try_zero_variances

OK, FAILED, RUNAWAY = 0, 1, 2

MAX_ROUNDS = 12
FAR_SD, NEAR_SD = 4.0, 0.1  # standard deviations of other starts, natural log
NOISE, CALM = -2.5, 3.0  # log(theta) below the first says that nearly all counts are in few cells,
LARGE_SD = 2.0  # a standard deviation above this that they are in few levels
HIGHER = 1e-6  # difference of log-likelihoods from which on one is the higher
RUNAWAY_SD = 20.0  # of a random effect on the log scale: where counts put it, its criterion has no end


@dataclass(frozen=True)
class Fit:
    """What is known about one gene after its fit (symbols as in `scglmm.engine.structure`).

    Parameters are ordered (beta, zi, psi, log theta) for maximum likelihood and (zi, psi, log theta) for REML, zi being
    the coefficients of a zero inflation, if there is one.
    """

    status: int  # OK, FAILED, or RUNAWAY: a maximum that is as good as at infinity
    value: float  # Laplace (restricted) log-likelihood, all constants
    n_eval: int  # evaluations of the criterion with its gradient
    grad: float  # largest absolute gradient over the free parameters at the end
    beta: np.ndarray  # (p,)
    psi: np.ndarray  # (n_psi,) columns with a zero diagonal are variances at 0
    log_theta: float
    theta_at_limit: bool
    free: np.ndarray  # (n,) bool: parameters in the interior
    hessian: np.ndarray  # (n, n) of the criterion, rows of parameters that are not free are 0
    covariance: np.ndarray  # (p, p) of beta at fixed variances (REML)
    d_covariance: np.ndarray  # (n, p, p) its derivatives (REML)
    d_beta: np.ndarray  # (n, p) derivatives of beta (REML)
    v: np.ndarray  # (q,) spherical random effects, reordered
    h: np.ndarray  # (S,) minus the second derivative of the log-likelihood of every stratum in eta
    eta: np.ndarray  # (S,) linear predictors without the offset
    zi: np.ndarray  # (k,) coefficients of the logit of the zero-inflation probability
    quadrature_error: float = 0.0  # what more points of quadrature would add to the value

    @property
    def failed(self) -> bool:
        """Whether no maximum was found that says anything."""
        return self.status != OK


def fit(
    data: Data,
    structure: Structure,
    X: np.ndarray,
    joint: bool,
    beta_guess: np.ndarray,
    psi_guess: np.ndarray | None = None,
    log_theta_guess: float = 0.0,
    curvature: bool = True,
    work: Work | None = None,
    zi_guess: np.ndarray | None = None,
) -> Fit:
    """Maximise the Laplace criterion of one gene.

    Parameters
    ----------
    data, structure, X
        The gene, the random effects, the fixed effects (S, p), columns of mean square near 1.
    joint
        REML (True) or maximum likelihood.
    beta_guess
        (p,) first guess of beta.
    psi_guess, log_theta_guess
        A start for the variances, for instance from a neighbouring model; by default one is found.
    curvature
        Whether the Hessian and the derivatives for inference are wanted.
    work
        Scratch arrays of this structure and X, from `scglmm.engine.layout.make_work`.
    zi_guess
        (k,) start of the zero inflation, needed where there is one.
    """
    work = make_work(structure, X) if work is None else work
    found = _fit(data, structure, X, joint, beta_guess, psi_guess, log_theta_guess, zi_guess, curvature, work)
    for psi, log_theta in [] if psi_guess is not None else _other_starts(data, structure, found):
        other = _fit(data, structure, X, joint, found.beta, psi, log_theta, zi_guess, curvature, work)
        n_eval = found.n_eval + other.n_eval
        if other.value > found.value + HIGHER:
            found = other  # whether or not it has arrived: the first was no maximum
        found = replace(found, n_eval=n_eval)
    return found


def _other_starts(data: Data, structure: Structure, found: Fit) -> list[tuple[np.ndarray, float]]:
    """List starts (psi, log theta) that are worth their time: the first search may have ended in a lower maximum.

    The same counts can be noise within the levels (small theta, no variance) or differences between them (large theta,
    large variance).
    """
    if data.family == GAUSSIAN or found.status != OK:
        return []
    row, column, term = structure.psi_at
    several = np.bincount(term) > 1
    zero = np.bincount(term, np.abs(found.psi)) == 0.0
    starts = []
    noise = data.family == NB2 and found.log_theta < NOISE
    if (zero & several).any() or (zero.any() and noise):
        starts.append((np.where(row == column, FAR_SD, 0.0), max(found.log_theta, 0.0)))
    if noise or (data.family == NB2 and np.abs(found.psi).max(initial=0.0) > LARGE_SD):
        starts.append((np.where(row == column, NEAR_SD, 0.0), CALM if noise else NOISE))
    return starts


def _fit(
    data: Data,
    structure: Structure,
    X: np.ndarray,
    joint: bool,
    beta_guess: np.ndarray,
    psi_guess: np.ndarray | None,
    log_theta_guess: float,
    zi_guess: np.ndarray | None,
    curvature: bool,
    work: Work,
) -> Fit:
    """Fit from one start."""
    search = Search(data, structure, X, joint, work)
    search.start_inflation(zi_guess)
    if not search.start(beta_guess, psi_guess, log_theta_guess):
        return _result(search, FAILED)
    for _ in range(MAX_ROUNDS):
        search.climb()
        if not math.isfinite(search.value):
            # A move has led to where the criterion has no value: what was found before it stands, if it may.
            search.step_back()
            break
        search.remember()
        if (
            search.go_to_poisson_limit()
            or settle_variances(search)
            or search.leave_poisson_limit()
            or search.settle_inflation()
            or try_zero_variances(search)
            or release_variances(search)
        ):
            continue
        break
    arrived = search.status != NOT_CONVERGED and math.isfinite(search.value)
    if curvature:
        done = math.isfinite(search.value) and _is_maximum(search, data, arrived)
    else:
        if arrived:
            search.finish()
        done = arrived and math.isfinite(search.value)
    if data.family != GAUSSIAN and search.largest_sd() > RUNAWAY_SD:
        # As good as separated: levels with counts and levels without, told apart by their random effects.
        return _result(search, RUNAWAY if arrived else FAILED)
    return _result(search, OK if done else FAILED)


def _is_maximum(search: Search, data: Data, arrived: bool) -> bool:
    """Polish, and decide whether that has led to a maximum."""
    before = search.save()
    is_maximum = search.polish()
    if not math.isfinite(search.value):
        search.restore(before)  # how high the search has come
    if data.extra is not None:
        # Residuals near 0 make the search give up where it has arrived, and the criterion of zero-inflated counts has
        # poles, where the curvature of an inner mode vanishes, that look like maxima.
        arrived = is_maximum and search.promise() < SMALL_ASCENT
    # Newton's steps lead downwards where the search has stopped on the slope of a pole.
    fell = search.value < before["value"] - SMALL_ASCENT * max(1.0, abs(search.value))
    return is_maximum and arrived and not fell


def _result(search: Search, status: int) -> Fit:
    """Package what is known."""
    gradient = np.abs(search.gradient[search.free])
    return Fit(
        status=status,
        value=search.value,
        n_eval=search.n_eval,
        grad=float(gradient.max()) if gradient.size else 0.0,
        beta=search.beta,
        psi=search.par[search.first : -1].copy(),
        log_theta=float(search.par[-1]),
        theta_at_limit=search.at_limit,
        free=search.free,
        hessian=search.hessian,
        covariance=search.work.schur[1].copy(),
        d_covariance=search.d_covariance,
        d_beta=search.d_beta,
        v=search.v,
        h=search.work.strata[H].copy(),
        eta=search.work.strata[ETA].copy(),
        zi=search.par[search.first_zi : search.first].copy(),
    )
