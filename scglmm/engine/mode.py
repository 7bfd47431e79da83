"""Inner problem: the mode of the penalised log-likelihood f(beta, v) - v'v/2 in (v, beta), or in v alone.

NB2, Poisson and Gaussian log-likelihoods are concave in the linear predictor, so Newton's method with a step control
on the slope along the step is enough: a concave function has passed its maximum on the line when the slope has
changed sign, and no value of the function, hence no logarithm, is needed.
"""

from __future__ import annotations

import math

from numba import njit

from .families import score_curvature
from .penalised import assemble, factor_joint, scaled_rows, solve_joint

MAX_NEWTON = 200
MAX_STEP = 4.0  # largest change of a linear predictor in one step: a factor of 55 in the mean
MAX_ETA = 300.0  # exp(300) squared is still finite
TOLERANCE = 1e-11  # squared Newton decrement; the last step then leaves a gradient near rounding error


@njit(cache=True, nogil=True)
def find_mode(data, structure, X, psi, theta, joint, beta, v, work):
    """Newton from (beta, v), both overwritten by the mode; beta only when `joint`.

    Also leaves the linear predictors in ``work.eta`` and the rows of Z Lambda in ``work.zl``.

    Returns
    -------
    The number of Newton steps, or -1 when the mode was not reached.
    """
    S, w = structure.z.shape
    p = X.shape[1]
    scaled_rows(structure, psi, work.zl)
    zl, eta, step = work.zl, work.eta, work.step
    g, h = work.g, work.h
    _linear_predictor(structure, X, zl, beta, v, eta)
    _pass(data, eta, theta, g, h)
    for iteration in range(MAX_NEWTON):
        assemble(structure, X, zl, h, joint, work.values, work.V, work.G)
        log_m, log_g = factor_joint(structure, joint, work.values, work.V, work.G, work.dense)
        if not (math.isfinite(log_m) and math.isfinite(log_g)):
            return -1
        _gradient(structure, X, zl, g, v, joint, work.rhs_v, work.rhs_beta)
        work.grad_v[:] = work.rhs_v[:, 0]
        work.grad_beta[:] = work.rhs_beta
        solve_joint(structure, joint, work.values, work.V, work.G, work.rhs_v, work.rhs_beta)
        slope = 0.0
        for i in range(v.size):
            slope += work.grad_v[i] * work.rhs_v[i, 0]
        if joint:
            for c in range(p):
                slope += work.grad_beta[c] * work.rhs_beta[c]
        if not math.isfinite(slope):
            return -1
        largest = 0.0
        for s in range(S):
            change = 0.0
            if joint:
                for c in range(p):
                    change += X[s, c] * work.rhs_beta[c]
            for a in range(w):
                change += zl[s, a] * work.rhs_v[structure.z_column[s, a], 0]
            step[s] = change
            largest = max(largest, abs(change))
        if largest == 0.0 and slope == 0.0:
            return iteration
        length = min(1.0, MAX_STEP / largest) if largest > 0.0 else 1.0
        done = slope < TOLERANCE and length == 1.0
        moved = 0.0
        for _ in range(60):
            for s in range(S):
                eta[s] += (length - moved) * step[s]
            for i in range(v.size):
                v[i] += (length - moved) * work.rhs_v[i, 0]
            if joint:
                for c in range(p):
                    beta[c] += (length - moved) * work.rhs_beta[c]
            moved = length
            if done:
                return iteration + 1
            _pass(data, eta, theta, g, h)
            end_slope = 0.0
            for s in range(S):
                end_slope += g[s] * step[s]
            for i in range(v.size):
                end_slope -= v[i] * work.rhs_v[i, 0]
            if end_slope >= -0.5 * slope:
                break
            length *= min(0.7, max(0.1, slope / (slope - end_slope)))
    return -1


@njit(cache=True, nogil=True)
def _linear_predictor(structure, X, zl, beta, v, eta):
    """Linear predictor of every stratum, without the offset."""
    S, w = zl.shape
    for s in range(S):
        total = 0.0
        for c in range(X.shape[1]):
            total += X[s, c] * beta[c]
        for a in range(w):
            total += zl[s, a] * v[structure.z_column[s, a]]
        eta[s] = total


@njit(cache=True, nogil=True)
def _pass(data, eta, theta, g, h):
    """First derivative and curvature of every stratum."""
    for s in range(eta.size):
        scale = math.exp(min(eta[s], MAX_ETA))
        g[s], h[s] = score_curvature(
            data.family, data.E, data.A, data.Y, data.start[s], data.start[s + 1], scale, theta
        )


@njit(cache=True, nogil=True)
def _gradient(structure, X, zl, g, v, joint, rhs_v, rhs_beta):
    """Gradient of the penalised log-likelihood: [(Z Lambda)'g - v; X'g]."""
    S, w = zl.shape
    for i in range(v.size):
        rhs_v[i, 0] = -v[i]
    rhs_beta[:] = 0.0
    for s in range(S):
        for a in range(w):
            rhs_v[structure.z_column[s, a], 0] += zl[s, a] * g[s]
        if joint:
            for c in range(X.shape[1]):
                rhs_beta[c] += X[s, c] * g[s]


