"""Starting values: close enough that the quasi-Newton search needs about ten gradients.

beta and v start at the joint mode for guessed variances, theta from the moments of the counts around that mode, and each
variance from one step of the EM algorithm.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .ldl import selected_inverse
from .mode import MAX_ETA, find_mode
from .optimise import evaluate

SIGMA = 0.5
SIGMA_RANGE = (0.05, 3.0)
THETA_RANGE = (0.02, 200.0)


@njit(cache=True, nogil=True)
def starting_point(data, structure, X, beta, v, psi, work):
    """Fill beta, v, psi with starting values and return the one of log(theta); NaN when no mode is found.

    beta comes with a first guess: the pooled rate.
    """
    n_psi = psi.size
    for k in range(n_psi):
        psi[k] = SIGMA if structure.psi_row[k] == structure.psi_col[k] else 0.0
    theta = 1.0
    if find_mode(data, structure, X, psi, theta, True, beta, v, work) < 0:
        return np.nan
    theta = _moment_theta(data, work.eta)
    if find_mode(data, structure, X, psi, theta, True, beta, v, work) < 0:
        return np.nan
    _em_step(structure, psi, v, work)
    return math.log(theta)


@njit(cache=True, nogil=True)
def _moment_theta(data, eta):
    """Size that makes the sum of (y - mu)^2 what NB2 expects; the sums over cells are taken on the nodes."""
    squares = 0.0  # sum of y^2 = sum_j (2j + 1) N(y > j)
    for j in range(data.exceed.size):
        squares += (2 * j + 1) * data.exceed[j]
    for i in range(data.tail_values.size):
        top = float(data.exceed.size)
        squares += data.tail_times[i] * (data.tail_values[i] ** 2 - top * top)
    cross = 0.0
    mu_sum = 0.0
    mu_squares = 0.0
    for s in range(eta.size):
        scale = math.exp(min(eta[s], MAX_ETA))
        for k in range(data.start[s], data.start[s + 1]):
            mu = data.E[k] * scale
            cross += data.Y[k] * mu
            mu_sum += data.A[k] * mu
            mu_squares += data.A[k] * mu * mu
    excess = squares - 2.0 * cross + mu_squares - mu_sum
    if not excess > 0.0:
        return THETA_RANGE[1]
    return min(THETA_RANGE[1], max(THETA_RANGE[0], mu_squares / excess))


@njit(cache=True, nogil=True)
def _em_step(structure, psi, v, work):
    """Scale each column of Lambda by the root mean square of its effects: posterior mean squared plus variance."""
    selected_inverse(work.values, structure.column_start, structure.row_index, work.inverse, work.dense)
    S, w = structure.z.shape
    seen = np.zeros(v.size, np.bool_)
    for k in range(psi.size):
        if structure.psi_row[k] != structure.psi_col[k]:
            continue
        slot = structure.psi_col[k]
        total = 0.0
        count = 0
        for s in range(S):
            effect = structure.z_column[s, slot]
            if not seen[effect]:
                seen[effect] = True
                total += v[effect] * v[effect] + work.inverse[effect]
                count += 1
        factor = math.sqrt(total / max(1, count))
        # The effects stay what they were: u = psi v.
        new = min(SIGMA_RANGE[1], max(SIGMA_RANGE[0], psi[k] * factor))
        seen[:] = False
        for s in range(S):
            effect = structure.z_column[s, slot]
            if not seen[effect]:
                seen[effect] = True
                v[effect] *= psi[k] / new
        psi[k] = new
        seen[:] = False


@njit(cache=True, nogil=True)
def starting_metric(data, structure, X, joint, par, free, beta, v, gradient, work):
    """Inverse of minus an approximate Hessian at the start, made positive definite.

    The block of beta is the one of the penalised Hessian (a by-product of the joint mode); rows of psi and log(theta) are
    forward differences of the gradient.
    """
    n = par.size
    p = X.shape[1]
    first = 0 if joint else p
    negative = np.zeros((n, n))
    if not joint:
        for i in range(p):
            for j in range(p):
                total = 0.0
                for k in range(min(i, j) + 1):
                    total += work.G[i, k] * work.G[j, k]
                negative[i, j] = total
    evaluate(data, structure, X, joint, True, par, beta, v, gradient, work)
    base = gradient.copy()
    shifted = par.copy()
    beta_shifted, v_shifted = beta.copy(), v.copy()
    for i in range(first, n):
        if not free[i]:
            continue
        delta = 1e-3
        shifted[i] += delta
        beta_shifted[:], v_shifted[:] = beta, v
        evaluate(data, structure, X, joint, True, shifted, beta_shifted, v_shifted, gradient, work)
        for j in range(n):
            negative[i, j] = (base[j] - gradient[j]) / delta
        shifted[i] = par[i]
    for i in range(n):
        for j in range(i):
            mean = negative[i, j] if i >= first > j else 0.5 * (negative[i, j] + negative[j, i])
            if not (free[i] and free[j]):
                mean = 0.0
            negative[i, j] = mean
            negative[j, i] = mean
    return positive_inverse(negative)


@njit(cache=True, nogil=True)
def positive_inverse(a):
    """Inverse of the nearest thing to `a` that is positive definite: absolute eigenvalues of `a` scaled to unit diagonal."""
    n = a.shape[0]
    scale = np.empty(n)
    scaled = np.empty((n, n))
    for i in range(n):
        scale[i] = 1.0 / math.sqrt(abs(a[i, i])) if abs(a[i, i]) > 1e-10 and math.isfinite(a[i, i]) else 1.0
    for i in range(n):
        for j in range(n):
            x = a[i, j] * scale[i] * scale[j]
            scaled[i, j] = x if math.isfinite(x) else (1.0 if i == j else 0.0)
    eigenvalues, vectors = np.linalg.eigh(scaled)
    result = np.zeros((n, n))
    for k in range(n):
        weight = 1.0 / max(0.02, abs(eigenvalues[k]))
        for i in range(n):
            for j in range(n):
                result[i, j] += weight * vectors[i, k] * vectors[j, k]
    for i in range(n):
        for j in range(n):
            result[i, j] *= scale[i] * scale[j]
    return result
