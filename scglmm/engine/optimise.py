"""Outer problem: maximise the Laplace criterion over (beta, psi, log theta) or (psi, log theta) by BFGS.

A quasi-Newton method started from a good metric needs a dozen gradients; the exact Hessian (differences of the analytic
gradient) is needed once, at the end, for inference, and gives a last Newton step that takes the estimate from the
tolerance of the search to rounding error.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .laplace import laplace

CONVERGED = 0
STOPPED_AT_THETA = 1  # left early: log(theta) passed the caller's stop
NOT_CONVERGED = 2

LOG_THETA_MIN = math.log(1e-8)
LOG_THETA_MAX = math.log(1e8)
DECREMENT = 1e-9  # half of g'B g: what the quadratic model still promises, in log-likelihood
MAX_ITERATIONS = 300
MAX_PSI_STEP = 1.0
MAX_THETA_STEP = 3.0
DIFFERENCE = 1e-4  # step of the central differences: error about 1e-8 relative in smooth directions


@njit(cache=True, nogil=True)
def evaluate(data, structure, X, joint, with_theta, par, beta, v, gradient, work):
    """`laplace` with one parameter vector: (beta, psi, log theta), or (psi, log theta) when `joint`."""
    first = 0 if joint else X.shape[1]
    if not joint:
        beta[:] = par[:first]
    psi = par[first : par.size - 1]
    log_theta = par[par.size - 1]
    return laplace(data, structure, X, joint, with_theta, beta, psi, log_theta, v, gradient, work)


@njit(cache=True, nogil=True)
def maximise(data, structure, X, joint, par, free, metric, theta_stop, beta, v, gradient, work):
    """BFGS with backtracking from `par`, which is overwritten by the best point.

    Parameters
    ----------
    free
        (n,) bool: parameters that may move.
    metric
        (n, n) inverse of minus the Hessian to start with; overwritten.
    theta_stop
        Return `STOPPED_AT_THETA` when log(theta) has passed this value upwards.

    Returns
    -------
    value, number of evaluations, status.
    """
    n = par.size
    value = evaluate(data, structure, X, joint, True, par, beta, v, gradient, work)
    n_eval = 1
    if not math.isfinite(value):
        return value, n_eval, NOT_CONVERGED
    _mask(gradient, free)
    trial, trial_gradient = np.empty(n), np.empty(n)
    trial_beta, trial_v = beta.copy(), v.copy()
    fallbacks = 0
    for _ in range(MAX_ITERATIONS):
        direction = metric @ gradient
        _mask(direction, free)
        _hold_at_bounds(par, direction)
        slope = np.dot(direction, gradient)
        if slope < 0.0:
            slope = 0.0
        if 0.5 * slope < DECREMENT:
            return value, n_eval, CONVERGED
        length = _longest_step(X, joint, par, direction)
        accepted = False
        for _ in range(40):
            for i in range(n):
                trial[i] = par[i] + length * direction[i]
            trial[n - 1] = min(LOG_THETA_MAX, max(LOG_THETA_MIN, trial[n - 1]))
            trial_beta[:] = beta
            trial_v[:] = v
            trial_value = evaluate(
                data, structure, X, joint, True, trial, trial_beta, trial_v, trial_gradient, work
            )
            n_eval += 1
            if math.isfinite(trial_value) and trial_value >= value + 1e-4 * length * slope:
                accepted = True
                break
            if math.isfinite(trial_value):
                # Minimum of the parabola through value, slope and trial value.
                length *= min(
                    0.5, max(0.1, 0.5 * slope * length / (value + slope * length - trial_value))
                )
            else:
                length *= 0.25
            if length * slope < 1e-14 * max(1.0, abs(value)):
                break
        if not accepted:
            # Rounding error hides what is left, or the metric is bad: try the gradient itself once.
            if 0.5 * slope < 1e-6 or fallbacks == 2:
                return value, n_eval, CONVERGED if 0.5 * slope < 1e-6 else NOT_CONVERGED
            fallbacks += 1
            metric[:] = 0.0
            for i in range(n):
                metric[i, i] = 1.0 / max(1.0, abs(gradient[i]))
            continue
        _mask(trial_gradient, free)
        _bfgs_update(metric, trial - par, gradient - trial_gradient)
        value = trial_value
        par[:] = trial
        gradient[:] = trial_gradient
        beta[:] = trial_beta
        v[:] = trial_v
        if par[n - 1] > theta_stop:
            return value, n_eval, STOPPED_AT_THETA
    return value, n_eval, NOT_CONVERGED


@njit(cache=True, nogil=True)
def _mask(x, free):
    for i in range(x.size):
        if not free[i]:
            x[i] = 0.0


@njit(cache=True, nogil=True)
def _hold_at_bounds(par, direction):
    """Do not push log(theta) further than its bounds."""
    last = par.size - 1
    if (par[last] >= LOG_THETA_MAX and direction[last] > 0.0) or (
        par[last] <= LOG_THETA_MIN and direction[last] < 0.0
    ):
        direction[last] = 0.0


@njit(cache=True, nogil=True)
def _longest_step(X, joint, par, direction):
    """Step length 1, or what keeps every parameter within reach of the quadratic model."""
    n = par.size
    first = 0 if joint else X.shape[1]
    largest = abs(direction[n - 1]) / MAX_THETA_STEP
    for i in range(first, n - 1):
        largest = max(largest, abs(direction[i]) / MAX_PSI_STEP)
    for i in range(first):
        largest = max(largest, abs(direction[i]) / 3.0)  # columns of X have mean square 1
    return 1.0 / max(1.0, largest)


@njit(cache=True, nogil=True)
def _bfgs_update(metric, step, change):
    """BFGS update of the inverse Hessian of minus the criterion; skipped where curvature is not positive."""
    n = step.size
    curvature = np.dot(step, change)
    if curvature <= 1e-14 * math.sqrt(np.dot(step, step) * np.dot(change, change)):
        return
    product = metric @ change
    factor = (1.0 + np.dot(change, product) / curvature) / curvature
    for i in range(n):
        for j in range(n):
            metric[i, j] += factor * step[i] * step[j] - (product[i] * step[j] + step[i] * product[j]) / curvature


@njit(cache=True, nogil=True)
def hessian(data, structure, X, joint, par, free, beta, v, work, covariances, betas):
    """Hessian of the criterion by central differences of the analytic gradient, over the free parameters.

    Parameters
    ----------
    covariances, betas
        For REML: (n, p, p) and (n, p), overwritten by the derivatives of the covariance of beta at fixed variances
        and of beta itself with respect to each parameter.

    Returns
    -------
    (n, n); rows and columns of parameters that are not free are 0. NaN where an evaluation failed.
    """
    n = par.size
    result = np.zeros((n, n))
    up, down = np.empty(n), np.empty(n)
    shifted = par.copy()
    beta_up, v_up = beta.copy(), v.copy()
    for i in range(n):
        if not free[i]:
            continue
        with_theta = i == n - 1
        delta = DIFFERENCE * (10.0 if with_theta else 1.0)
        shifted[i] = par[i] + delta
        beta_up[:], v_up[:] = beta, v
        ok = evaluate(data, structure, X, joint, with_theta, shifted, beta_up, v_up, up, work)
        if joint:
            covariances[i] = work.covariance
            betas[i] = beta_up
        shifted[i] = par[i] - delta
        beta_up[:], v_up[:] = beta, v
        ok += evaluate(data, structure, X, joint, with_theta, shifted, beta_up, v_up, down, work)
        if joint:
            covariances[i] = (covariances[i] - work.covariance) / (2.0 * delta)
            betas[i] = (betas[i] - beta_up) / (2.0 * delta)
        shifted[i] = par[i]
        for j in range(n):
            result[i, j] = (up[j] - down[j]) / (2.0 * delta) if math.isfinite(ok) else np.nan
    # The derivative in theta is computed only for displacements of theta: its row serves as its column.
    for i in range(n):
        for j in range(i):
            mean = result[i, j] if i == n - 1 else 0.5 * (result[i, j] + result[j, i])
            if not (free[i] and free[j]):
                mean = 0.0
            result[i, j] = mean
            result[j, i] = mean
    return result
