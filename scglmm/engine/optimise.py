"""Outer problem: maximise the Laplace criterion over (beta, psi, log theta) or (psi, log theta).

Newton's method where the Hessian costs little (`scglmm.engine.expansion`), which needs about five gradients; elsewhere
a quasi-Newton method (BFGS) started from a good metric (`scglmm.engine.curvature`), which needs about ten.
"""

from __future__ import annotations

import math

import numpy as np

from scglmm._jit import YES, entry, kernel

from .expansion import EXPANDED, expand
from .laplace import laplace
from .layout import copy_into
from .penalised import cholesky, cholesky_inverse

CONVERGED = 0
STOPPED_AT_THETA = 1  # left early: log(theta) passed the caller's stop
NOT_CONVERGED = 2

LOG_THETA_MIN = math.log(1e-8)
LOG_THETA_MAX = math.log(1e8)
DECREMENT = 1e-9  # half of g'B g: what the quadratic model still promises, in log-likelihood
MAX_ITERATIONS = 300
FAR = 1e-3  # twice the rise that the last step had promised: below this the Hessian is good enough for the last steps
SINGULAR = 1e-3  # square root of a pivot of the Hessian, scaled to unit diagonal, below which Newton's step is not made
MAX_PSI_STEP = 1.0
MAX_THETA_STEP = 3.0


@entry
def maximise(data, structure, X, joint, par, value, metric, theta_stop, beta, v, gradient, work, d_v, d_beta):
    """Climb with backtracking from `par`, which is overwritten by the best point.

    Parameters
    ----------
    value, beta, v, gradient
        What an evaluation at `par` has left.
    metric
        (n, n) inverse of minus the Hessian to start with; overwritten. Parameters with a zero row stay where they are.
    d_v, d_beta
        (n, q) and (n, p) derivatives of the mode at `par` in every parameter, 0 where they are not known: from them
        the mode of the next point is foretold. Overwritten.
    theta_stop
        Return `STOPPED_AT_THETA` when log(theta) has passed this value upwards.

    Returns
    -------
    value, number of evaluations, status.
    """
    n, p, q = par.size, X.shape[1], v.size
    n_eval = 0
    if not math.isfinite(value):
        return value, n_eval, NOT_CONVERGED
    free = np.empty(n, np.bool_)
    for i in range(n):
        free[i] = metric[i, i] > 0.0
    newton = is_cheap(data.extra, data, n)
    direction, trial, trial_gradient = np.empty(n), np.empty(n), np.empty(n)
    step, change = np.empty(n), np.empty(n)
    trial_beta, trial_v = beta.copy(), v.copy()
    fallbacks = 0
    for _ in range(MAX_ITERATIONS):
        _times(metric, gradient, direction)
        _hold_at_bounds(par, direction)
        slope = max(0.0, _inner(direction, gradient))
        if 0.5 * slope < DECREMENT:
            return value, n_eval, CONVERGED
        length = _longest_step(X, joint, par, direction)
        accepted = False
        for _ in range(40):
            for i in range(n):
                trial[i] = par[i] + length * direction[i]
            trial[n - 1] = min(LOG_THETA_MAX, max(LOG_THETA_MIN, trial[n - 1]))
            copy_into(trial_beta, beta)
            copy_into(trial_v, v)
            for i in range(n):
                by = trial[i] - par[i]
                for k in range(q):
                    trial_v[k] += by * d_v[i, k]
                if joint:
                    for c in range(p):
                        trial_beta[c] += by * d_beta[i, c]
            trial_value = laplace(data, structure, X, joint, YES, trial, trial_beta, trial_v, trial_gradient, work)
            n_eval += 1
            if math.isfinite(trial_value) and trial_value >= value + 1e-4 * length * slope:
                accepted = True
                break
            if math.isfinite(trial_value):
                # Minimum of the parabola through value, slope and trial value.
                length *= min(0.5, max(0.1, 0.5 * slope * length / (value + slope * length - trial_value)))
            else:
                length *= 0.25
            if length * slope < 1e-14 * max(1.0, abs(value)):
                break
        if not accepted:
            # Rounding error hides what is left, or the metric is bad: try the gradient itself once.
            if 0.5 * slope < 1e-6 or fallbacks == 2:
                return value, n_eval, CONVERGED if 0.5 * slope < 1e-6 else NOT_CONVERGED
            fallbacks += 1
            for i in range(n):
                for j in range(n):
                    if i == j and metric[i, i] > 0.0:
                        metric[i, i] = 1.0 / max(1.0, abs(gradient[i]))
                    else:
                        metric[i, j] = 0.0
            continue
        for i in range(n):
            step[i] = trial[i] - par[i]
            change[i] = gradient[i] - trial_gradient[i]
        value = trial_value
        copy_into(par, trial)
        copy_into(gradient, trial_gradient)
        copy_into(beta, trial_beta)
        copy_into(v, trial_v)
        if par[n - 1] > theta_stop:
            return value, n_eval, STOPPED_AT_THETA
        exact = False
        if newton and slope > FAR:
            exact = newton_metric(
                data.extra, data, structure, X, joint, par, free, v, gradient, work, d_v, d_beta, metric
            )
        if not exact:
            _bfgs_update(metric, step, change)
    return value, n_eval, NOT_CONVERGED


@kernel
def is_cheap(extra, data, n):
    """Whether Hessians by expansion, which visit every stratum n times, cost little beside the nodes."""
    return extra is None and n * (data.start.size - 1) <= data.nodes.shape[1]


@kernel
def newton_metric(extra, data, structure, X, joint, par, free, v, gradient, work, d_v, d_beta, metric):
    """Put the inverse of minus the Hessian into `metric`; False, and nothing done, when it is not positive definite.

    An infinite mean of the counts or a variance near 0 may leave a Hessian that is nearly singular: then the update
    of the metric that has been is the better guide.
    """
    if extra is not None:
        return False
    n = par.size
    hessian = np.zeros((n, n))
    expand(
        data, structure, X, joint, par, free, EXPANDED, False, v, gradient, work, d_v, d_beta, hessian,
        np.zeros((0, 0, 0)),
    )  # fmt: skip
    scale = np.ones(n)
    for i in range(n):
        if free[i]:
            if not hessian[i, i] < 0.0:
                return False
            scale[i] = 1.0 / math.sqrt(-hessian[i, i])
    scaled, inverse = np.zeros((n, n)), np.empty((n, n))
    for i in range(n):
        scaled[i, i] = 1.0
        for j in range(i):
            if free[i] and free[j]:
                scaled[i, j] = -0.5 * (hessian[i, j] + hessian[j, i]) * scale[i] * scale[j]
    if not math.isfinite(cholesky(scaled)):
        return False
    for i in range(n):
        if not scaled[i, i] > SINGULAR:
            return False
    cholesky_inverse(scaled, inverse)
    for i in range(n):
        for j in range(n):
            metric[i, j] = inverse[i, j] * scale[i] * scale[j] if free[i] and free[j] else 0.0
    return True


@kernel
def _inner(x, y):
    total = 0.0
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@kernel
def _times(matrix, x, out):
    for i in range(x.size):
        out[i] = 0.0
        for j in range(x.size):
            out[i] += matrix[i, j] * x[j]


@kernel
def _hold_at_bounds(par, direction):
    """Do not push log(theta) further than its bounds."""
    last = par.size - 1
    if (par[last] >= LOG_THETA_MAX and direction[last] > 0.0) or (par[last] <= LOG_THETA_MIN and direction[last] < 0.0):
        direction[last] = 0.0


@kernel
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


@kernel
def _bfgs_update(metric, step, change):
    """BFGS update of the inverse Hessian of minus the criterion; skipped where curvature is not positive."""
    n = step.size
    curvature = _inner(step, change)
    if curvature <= 1e-14 * math.sqrt(_inner(step, step) * _inner(change, change)):
        return
    product = np.empty(n)
    _times(metric, change, product)
    factor = (1.0 + _inner(change, product) / curvature) / curvature
    for i in range(n):
        for j in range(n):
            metric[i, j] += factor * step[i] * step[j] - (product[i] * step[j] + step[i] * product[j]) / curvature
