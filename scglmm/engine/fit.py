"""Fit one gene: start, search, boundaries, curvature, and a record of how it went.

Boundaries are decided, never assumed (`scglmm.engine.boundary`): a variance is put to exactly 0 when the criterion
falls in every direction away from 0, and theta to its upper limit when the criterion does not rise with 1/theta there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from scglmm._jit import NO, YES, entry, kernel

from .boundary import variance_derivative
from .curvature import hessian, negative_definite, positive_inverse
from .laplace import laplace
from .layout import ETA, copy_into, fill, make_work
from .optimise import LOG_THETA_MAX, NOT_CONVERGED, STOPPED_AT_THETA, maximise
from .start import starting_point

OK, FAILED = 0, 1

SMALL_PSI = 0.03  # a standard deviation below this is tested against 0
RESTART_PSI = 0.1  # where the search starts again when 0 turns out to be a saddle
WEAK = 4.0  # a standard deviation within this many standard errors of 0 may have a better optimum at 0
NEAR = 20.0  # but not where the log-likelihood at 0 is lower by more than this, the other parameters unchanged
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


@entry
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
    n_psi = structure.psi_at.shape[1]
    first = 0 if joint else p
    n = first + n_psi + 1
    work = make_work(structure, X)
    beta, v = beta_guess.copy(), np.zeros(structure.starts.shape[1] - 1)
    par, gradient = np.zeros(n), np.zeros(n)
    psi = par[first : n - 1]
    free = np.ones(n, np.bool_)
    d_covariance, d_beta = np.zeros((n, p, p)), np.zeros((n, p))
    curved = np.zeros((n, n))

    log_theta = starting_point(data, structure, X, beta, v, psi, work)
    if not math.isfinite(log_theta):
        return Fit(
            FAILED, np.nan, 0, np.nan, beta, psi, np.nan, False, free, curved, work.schur[1], d_covariance,
            d_beta, v, work.strata[ETA],
        )  # fmt: skip
    if psi_guess.size == n_psi and math.isfinite(log_theta_guess):
        for k in range(n_psi):
            psi[k] = psi_guess[k]
        log_theta = log_theta_guess
    par[n - 1] = log_theta
    for c in range(first):
        par[c] = beta[c]

    theta_stop = THETA_STOP
    at_limit = False
    refused = np.zeros(n, np.bool_)  # variances found to rise from 0: not to be put to 0 again
    tried = np.zeros(_n_terms(structure) + 1, np.bool_)  # terms whose variances were tried at 0
    before, before_beta, before_v, before_gradient = par.copy(), beta.copy(), v.copy(), gradient.copy()
    log_theta_before = log_theta
    value, status, n_eval = np.nan, NOT_CONVERGED, 0
    for _ in range(8):
        value = laplace(data, structure, X, joint, YES, par, beta, v, gradient, work)
        curved = hessian(data, structure, X, joint, par, free, NO, beta, v, gradient, work, d_covariance, d_beta)
        metric = positive_inverse(curved, free)
        value, spent, status = maximise(data, structure, X, joint, par, metric, theta_stop, beta, v, gradient, work)
        n_eval += spent + n - first + 1
        if not math.isfinite(value):
            break
        if status == STOPPED_AT_THETA:
            log_theta_before = par[n - 1]
            par[n - 1] = LOG_THETA_MAX
            free[n - 1] = False
            at_limit = True
            theta_stop = np.inf
            continue
        copy_into(before, par)
        copy_into(before_beta, beta)
        copy_into(before_v, v)
        candidates = _small_variances(structure, par, free, refused)
        if np.any(candidates):
            copy_into(before_gradient, gradient)
            fill(v, 0.0)  # the effects mean something else after a change of Lambda: start their mode afresh
            zero_value = laplace(data, structure, X, joint, YES, par, beta, v, gradient, work)
            n_eval += 1
            finite = math.isfinite(zero_value)
            if _settle(structure, X, joint, par, before, before_gradient, candidates, free, refused, finite, work):
                fill(v, 0.0)
                continue
            copy_into(par, before)
            copy_into(beta, before_beta)
            copy_into(v, before_v)
            laplace(data, structure, X, joint, YES, par, beta, v, gradient, work)
            n_eval += 1
        if at_limit and -math.exp(LOG_THETA_MAX) * gradient[n - 1] > RISES * max(1.0, -value):
            par[n - 1] = log_theta_before
            free[n - 1] = True
            at_limit = False
            continue
        # The criterion can have a second maximum where a variance that is hardly different from 0 is 0 (a grouping
        # factor with two levels often does): look there before giving up.
        moved = False
        n_terms = _n_terms(structure)
        for drop in range(n_terms + 1):
            weak = _weak_terms(structure, drop, psi, free, metric, tried)
            if not np.any(weak):
                continue
            copy_into(before, par)
            copy_into(before_beta, beta)
            copy_into(before_v, v)
            copy_into(before_gradient, gradient)
            for i in range(n):
                if weak[i]:
                    par[i] = 0.0
                    for j in range(n):
                        metric[i, j] = 0.0
                        metric[j, i] = 0.0
            fill(v, 0.0)
            value_there = laplace(data, structure, X, joint, YES, par, beta, v, gradient, work)
            spent = 1
            if value_there > value - NEAR:
                value_there, spent, status_there = maximise(
                    data, structure, X, joint, par, metric, np.inf, beta, v, gradient, work
                )
            n_eval += spent
            if value_there > value + 1e-7:
                value, status, moved = value_there, status_there, True
                for i in range(n):
                    free[i] = free[i] and not weak[i]
            else:
                copy_into(par, before)
                copy_into(beta, before_beta)
                copy_into(v, before_v)
                copy_into(gradient, before_gradient)
        if not moved:
            break

    done = status != NOT_CONVERGED and math.isfinite(value)
    if curvature and math.isfinite(value):
        curved = hessian(data, structure, X, joint, par, free, YES, beta, v, gradient, work, d_covariance, d_beta)
        _newton_step(par, free, curved, gradient)
        value = laplace(data, structure, X, joint, YES, par, beta, v, gradient, work)
        n_eval += 2 * int(np.sum(free)) + 1
        done = done and math.isfinite(value) and negative_definite(curved, free)
    grad = 0.0
    for i in range(n):
        if free[i]:
            grad = max(grad, abs(gradient[i]))
    return Fit(
        OK if done else FAILED, value, n_eval, grad, beta, par[first : n - 1].copy(), par[n - 1], at_limit, free,
        curved, work.schur[1], d_covariance, d_beta, v, work.strata[ETA],
    )  # fmt: skip


@kernel
def _newton_step(par, free, curved, gradient):
    """One Newton step with the exact Hessian from the end of the search, taken only when it is a small ascent."""
    n = par.size
    inverse = positive_inverse(curved, free)
    direction = np.zeros(n)
    ascent = 0.0
    small = True
    for i in range(n):
        for j in range(n):
            direction[i] += inverse[i, j] * gradient[j]
        ascent += direction[i] * gradient[i]
        small = small and abs(direction[i]) < 0.01
    if small and ascent >= 0.0:
        for i in range(n):
            par[i] += direction[i]


@kernel
def _small_variances(structure, par, free, refused):
    """Rewrite every Lambda that is nearly singular in canonical form, its small columns at 0, and mark those."""
    n = par.size
    n_psi = structure.psi_at.shape[1]
    first = n - 1 - n_psi
    candidates = np.zeros(n, np.bool_)
    for term in range(_n_terms(structure)):
        _canonical(
            structure,
            term,
            par[first : n - 1],
            free[first : n - 1],
            refused[first : n - 1],
            candidates[first : n - 1],
        )
    return candidates


@kernel
def _settle(structure, X, joint, par, before, before_gradient, candidates, free, refused, finite, work):
    """Keep small standard deviations at 0 where the criterion does not rise from there, put the others back.

    `par` has the candidates at 0 and `work` the state of the criterion there; `before` is the point they came from,
    with its gradient.

    Returns
    -------
    Whether the search has to go on.
    """
    n_psi = structure.psi_at.shape[1]
    first = par.size - 1 - n_psi
    changed = False
    for term in range(_n_terms(structure)):
        start, c = _term(structure, term)
        entries = c * (c + 1) // 2
        involved = False
        for k in range(start, start + entries):
            involved = involved or candidates[first + k]
        if not involved:
            continue
        rise = _steepest_rise(structure, X, joint, term, par[first : first + n_psi], work) if finite else np.inf
        rises = rise > RISES
        for k in range(start, start + entries):
            i = first + k
            if not rises:
                if candidates[i]:
                    free[i] = False
                    changed = True
                continue
            par[i] = before[i]
            if candidates[i]:
                refused[i] = True
                # At an optimum the derivative in sigma^2, gradient / (2 sigma), has fallen to 0. Where it is still
                # what it is at 0, the search has stopped on the flat top of the saddle at sigma = 0.
                diagonal = structure.psi_at[0, k] == structure.psi_at[1, k]
                if diagonal and not abs(before_gradient[i]) < 0.2 * rise * abs(before[i]):
                    par[i] = RESTART_PSI
                    changed = True
    return changed


@kernel
def _weak_terms(structure, drop, psi, free, metric, tried):
    """Mark the free parameters of term `drop`, or of all terms at once, if each is within a few standard errors of 0.

    Every term is marked once, and all at once only where there are two to mark.
    """
    n_terms = _n_terms(structure)
    n_psi = psi.size
    first = free.size - 1 - n_psi
    marked = np.zeros(free.size, np.bool_)
    if tried[drop]:
        return marked
    tried[drop] = True
    n_weak = 0
    for term in range(n_terms):
        if drop not in (term, n_terms):
            continue
        start, c = _term(structure, term)
        weak = True
        any_free = False
        for k in range(start, start + c * (c + 1) // 2):
            i = first + k
            any_free = any_free or free[i]
            if structure.psi_at[0, k] == structure.psi_at[1, k] and free[i]:
                weak = weak and abs(psi[k]) < WEAK * math.sqrt(max(0.0, metric[i, i]))
        if not (weak and any_free):
            continue
        n_weak += 1
        for k in range(start, start + c * (c + 1) // 2):
            marked[first + k] = free[first + k]
    if drop == n_terms and n_weak < 2:
        fill(marked, False)
    return marked


@kernel
def _n_terms(structure):
    n_psi = structure.psi_at.shape[1]
    return 0 if n_psi == 0 else structure.psi_at[2, n_psi - 1] + 1


@kernel
def _canonical(structure, term, psi, free, refused, candidates):
    """Rewrite Lambda of a term so that a zero variance is a zero column, and mark columns that are small.

    A singular Sigma has many roots Lambda; the one whose column is 0 wherever the pivot of the Cholesky factorisation
    is 0 has no free direction left.
    """
    start, c = _term(structure, term)
    low = structure.psi_at[0, start]
    stop = start + c * (c + 1) // 2
    fixed = False
    for k in range(start, stop):
        fixed = fixed or refused[k]
    sigma = _sigma(structure, psi, start, c)
    small = np.zeros(c, np.bool_)
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
        if small[structure.psi_at[1, k] - low] and free[k]:
            any_free = True
    if not any_free:
        return
    for k in range(start, stop):
        psi[k] = root[structure.psi_at[0, k] - low, structure.psi_at[1, k] - low]
        if small[structure.psi_at[1, k] - low]:
            candidates[k] = True


@kernel
def _term(structure, term):
    """First entry of psi that belongs to a term, and the number of columns of the term."""
    start = 0
    while structure.psi_at[2, start] != term:
        start += 1
    c = 0
    for k in range(start, structure.psi_at.shape[1]):
        if structure.psi_at[2, k] == term and structure.psi_at[0, k] == structure.psi_at[1, k]:
            c += 1
    return start, c


@kernel
def _sigma(structure, psi, start, c):
    """Sigma = Lambda Lambda' of a term."""
    low = structure.psi_at[0, start]
    lam = np.zeros((c, c))
    for k in range(start, start + c * (c + 1) // 2):
        lam[structure.psi_at[0, k] - low, structure.psi_at[1, k] - low] = psi[k]
    sigma = np.zeros((c, c))
    for i in range(c):
        for j in range(c):
            for m in range(c):
                sigma[i, j] += lam[i, m] * lam[j, m]
    return sigma


@kernel
def _steepest_rise(structure, X, joint, term, psi, work):
    """Find the largest derivative of the criterion over directions within the null space of Sigma of a term."""
    start, c = _term(structure, term)
    low = structure.psi_at[0, start]
    derivative = variance_derivative(structure, X, joint, low, c, work)
    if c == 1:
        return derivative[0, 0]
    values, vectors = np.linalg.eigh(_sigma(structure, psi, start, c))
    n_null = 0
    for i in range(c):
        if values[i] <= 1e-12 * max(1.0, values[c - 1]):
            n_null += 1
    if n_null == 0:
        return -np.inf
    projected = np.zeros((n_null, n_null))
    for a in range(n_null):
        for b in range(n_null):
            for i in range(c):
                for j in range(c):
                    projected[a, b] += vectors[i, a] * derivative[i, j] * vectors[j, b]
    return np.linalg.eigh(projected)[0][n_null - 1]
