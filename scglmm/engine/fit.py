"""Fit one gene: start, search, boundaries, curvature, and a record of how it went.

Boundaries are decided, never assumed (`scglmm.engine.boundary`): a variance is put to exactly 0 when the criterion falls
in every direction away from 0, and theta to its upper limit when the criterion does not rise with 1/theta there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from .boundary import variance_derivative
from .laplace import make_work
from .optimise import (
    LOG_THETA_MAX,
    NOT_CONVERGED,
    STOPPED_AT_THETA,
    evaluate,
    hessian,
    maximise,
)
from .start import positive_inverse, starting_metric, starting_point

OK, FAILED = 0, 1

SMALL_PSI = 0.03  # a standard deviation below this is tested against 0
THETA_STOP = math.log(1e4)  # above this the Poisson limit is tried
RISES = 1e-6  # a derivative in sigma^2 (or 1/theta) above this is a rise


class Fit(NamedTuple):
    """What is known about one gene after its fit (symbols as in `scglmm.engine.structure`).

    Parameters are ordered (beta, psi, log theta) for maximum likelihood and (psi, log theta) for REML.
    """

    status: int  # OK or FAILED
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
    eta: np.ndarray  # (S,) linear predictors without the offset


@njit(cache=True, nogil=True)
def fit(data, structure, X, joint, beta_guess, psi_guess, log_theta_guess, curvature):
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
        A start for the variances, for instance from a neighbouring model; an empty array to find one.
    curvature
        Whether the Hessian and the derivatives for inference are wanted.
    """
    p = X.shape[1]
    n_psi = structure.psi_row.size
    first = 0 if joint else p
    n = first + n_psi + 1
    work = make_work(structure, X)
    beta, v = beta_guess.copy(), np.zeros(structure.order.size)
    par, gradient = np.zeros(n), np.zeros(n)
    psi = par[first : n - 1]
    free = np.ones(n, np.bool_)
    covariances, betas = np.zeros((n, p, p)), np.zeros((n, p))
    no_hessian = np.zeros((n, n))

    log_theta = starting_point(data, structure, X, beta, v, psi, work)
    if not math.isfinite(log_theta):
        return Fit(
            FAILED, np.nan, 0, np.nan, beta, psi, np.nan, False, free, no_hessian, work.covariance, covariances,
            betas, v, work.eta,
        )  # fmt: skip
    if psi_guess.size == n_psi and math.isfinite(log_theta_guess):
        for k in range(n_psi):
            psi[k] = psi_guess[k]
        log_theta = log_theta_guess
    par[n - 1] = log_theta
    par[:first] = beta[:first]

    metric = starting_metric(data, structure, X, joint, par, free, beta, v, gradient, work)
    n_eval = n - first + 1
    theta_stop = THETA_STOP
    at_limit = False
    refused = np.zeros(n, np.bool_)  # variances found to rise from 0: not to be put to 0 again
    log_theta_before = log_theta
    value, status = np.nan, NOT_CONVERGED
    for _ in range(8):
        value, spent, status = maximise(
            data, structure, X, joint, par, free, metric, theta_stop, beta, v, gradient, work
        )
        n_eval += spent
        if not math.isfinite(value):
            break
        again = False
        if status == STOPPED_AT_THETA:
            log_theta_before = par[n - 1]
            par[n - 1] = LOG_THETA_MAX
            free[n - 1] = False
            at_limit = True
            theta_stop = np.inf
            again = True
        elif _settle_variances(data, structure, X, joint, par, free, refused, beta, v, gradient, work):
            again = True
            n_eval += 1
        elif at_limit:
            evaluate(data, structure, X, joint, True, par, beta, v, gradient, work)
            n_eval += 1
            if -math.exp(LOG_THETA_MAX) * gradient[n - 1] > RISES * max(1.0, -value):
                par[n - 1] = log_theta_before
                free[n - 1] = True
                at_limit = False
                again = True
        if not again:
            break
        metric = starting_metric(data, structure, X, joint, par, free, beta, v, gradient, work)
        n_eval += n - first + 1

    curved = no_hessian
    if math.isfinite(value) and curvature:
        curved = hessian(data, structure, X, joint, par, free, beta, v, work, covariances, betas)
        n_eval += 2 * int(np.sum(free))
        _newton_step(data, structure, X, joint, par, free, curved, beta, v, gradient, work)
    if math.isfinite(value):
        value = evaluate(data, structure, X, joint, True, par, beta, v, gradient, work)
        n_eval += 1
    grad = 0.0
    for i in range(n):
        if free[i]:
            grad = max(grad, abs(gradient[i]))
    done = status != NOT_CONVERGED and math.isfinite(value)
    if done and curvature:
        done = _negative_definite(curved, free)
    return Fit(
        OK if done else FAILED, value, n_eval, grad, beta, par[first : n - 1].copy(), par[n - 1], at_limit, free,
        curved, work.covariance, covariances, betas, v, work.eta,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _settle_variances(data, structure, X, joint, par, free, refused, beta, v, gradient, work):
    """Put small standard deviations to 0 where the criterion does not rise from there.

    Returns
    -------
    Whether anything changed, so that the search has to go on.
    """
    n_psi = structure.psi_row.size
    n = par.size
    first = n - 1 - n_psi
    before, before_beta, before_v = par.copy(), beta.copy(), v.copy()
    candidates = np.zeros(n, np.bool_)
    n_terms = 0 if n_psi == 0 else structure.slot_term[structure.slot_term.size - 1] + 1
    for term in range(n_terms):
        _canonical(structure, term, par[first : n - 1], free[first : n - 1], refused[first : n - 1],
                   candidates[first : n - 1])  # fmt: skip
    if not np.any(candidates):
        par[:] = before
        return False
    for i in range(n):
        if candidates[i]:
            par[i] = 0.0
    v[:] = 0.0  # effects of different meaning after the change of Lambda: start the mode afresh
    value = evaluate(data, structure, X, joint, True, par, beta, v, gradient, work)
    changed = False
    risen = not math.isfinite(value)
    for term in range(n_terms):
        involved = False
        for k in range(n_psi):
            if structure.slot_term[structure.psi_row[k]] == term and candidates[first + k]:
                involved = True
        if not involved:
            continue
        rises = risen
        if not risen:
            rises = _rises(structure, X, joint, term, par[first : n - 1], work)
        for k in range(n_psi):
            if structure.slot_term[structure.psi_row[k]] != term:
                continue
            i = first + k
            if not rises:
                if candidates[i]:
                    free[i] = False
                    changed = True
            elif candidates[i]:
                refused[i] = True
                diagonal = structure.psi_row[k] == structure.psi_col[k]
                par[i] = before[i]
                if diagonal and abs(before[i]) < 1e-3:
                    # It had collapsed to the stationary point at 0 although the criterion rises from there.
                    par[i] = 0.1
                    changed = True
            else:
                par[i] = before[i]
    if not changed:
        par[:] = before
        beta[:] = before_beta
        v[:] = before_v
    else:
        v[:] = 0.0
    return changed


@njit(cache=True, nogil=True)
def _canonical(structure, term, psi, free, refused, candidates):
    """Rewrite Lambda of a term so that a zero variance is a zero column, and mark columns that are small.

    A singular Sigma has many roots Lambda; the one whose column is 0 wherever the pivot of the Cholesky factorisation
    is 0 has no free direction left.
    """
    n_psi = psi.size
    start = 0
    while structure.slot_term[structure.psi_row[start]] != term:
        start += 1
    low = structure.psi_row[start]
    c = 0
    for k in range(start, n_psi):
        if structure.slot_term[structure.psi_row[k]] == term and structure.psi_row[k] == structure.psi_col[k]:
            c += 1
    lam = np.zeros((c, c))
    stop = start + c * (c + 1) // 2
    fixed = False
    for k in range(start, stop):
        lam[structure.psi_row[k] - low, structure.psi_col[k] - low] = psi[k]
        fixed = fixed or refused[k]
    sigma = lam @ lam.T
    small = np.zeros(c, np.bool_)
    for j in range(c):
        pivot = sigma[j, j]
        if pivot < SMALL_PSI * SMALL_PSI:
            small[j] = True
    root = np.zeros((c, c))
    for j in range(c):
        pivot = sigma[j, j]
        if pivot <= SMALL_PSI * SMALL_PSI:
            small[j] = True
            continue
        root[j, j] = math.sqrt(pivot)
        for i in range(j + 1, c):
            root[i, j] = sigma[i, j] / root[j, j]
        for i in range(j + 1, c):
            for m in range(j + 1, c):
                sigma[i, m] -= root[i, j] * root[m, j]
    if fixed or not np.any(small):
        return
    any_free = False
    for k in range(start, stop):
        if small[structure.psi_col[k] - low] and free[k]:
            any_free = True
    if not any_free:
        return
    for k in range(start, stop):
        psi[k] = root[structure.psi_row[k] - low, structure.psi_col[k] - low]
        if small[structure.psi_col[k] - low]:
            candidates[k] = True


@njit(cache=True, nogil=True)
def _rises(structure, X, joint, term, psi, work):
    """Whether the criterion rises in some direction within the null space of Sigma of a term."""
    derivative = variance_derivative(structure, X, joint, term, work)
    c = derivative.shape[0]
    start = 0
    while structure.slot_term[structure.psi_row[start]] != term:
        start += 1
    low = structure.psi_row[start]
    lam = np.zeros((c, c))
    for k in range(start, start + c * (c + 1) // 2):
        lam[structure.psi_row[k] - low, structure.psi_col[k] - low] = psi[k]
    values, vectors = np.linalg.eigh(lam @ lam.T)
    n_null = 0
    for i in range(c):
        if values[i] <= 1e-12 * max(1.0, values[c - 1]):
            n_null += 1
    null = np.ascontiguousarray(vectors[:, :n_null])
    if n_null == 0:
        return False
    projected = null.T @ derivative @ null
    return np.linalg.eigvalsh(projected)[n_null - 1] > RISES


@njit(cache=True, nogil=True)
def _newton_step(data, structure, X, joint, par, free, curved, beta, v, gradient, work):
    """One Newton step with the exact Hessian from the end of the search, taken only when it is a small ascent."""
    n = par.size
    evaluate(data, structure, X, joint, True, par, beta, v, gradient, work)
    for i in range(n):
        if not free[i]:
            gradient[i] = 0.0
    direction = positive_inverse(-curved) @ gradient
    small = True
    for i in range(n):
        if not free[i]:
            direction[i] = 0.0
        if not abs(direction[i]) < 0.01:
            small = False
    if small and np.dot(direction, gradient) >= 0.0:
        par[:] += direction


@njit(cache=True, nogil=True)
def _negative_definite(curved, free):
    """Whether the Hessian over the free parameters is negative definite."""
    n = 0
    for i in range(free.size):
        if free[i]:
            n += 1
    reduced = np.zeros((n, n))
    a = 0
    for i in range(free.size):
        if not free[i]:
            continue
        b = 0
        for j in range(free.size):
            if free[j]:
                reduced[a, b] = curved[i, j]
                if not math.isfinite(reduced[a, b]):
                    return False
                b += 1
        a += 1
    scale = np.empty(n)
    for i in range(n):
        if not reduced[i, i] < 0.0:
            return False
        scale[i] = 1.0 / math.sqrt(-reduced[i, i])
    for i in range(n):
        for j in range(n):
            reduced[i, j] *= scale[i] * scale[j]
    return np.linalg.eigvalsh(reduced)[n - 1] < -1e-10
