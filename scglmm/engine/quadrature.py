"""Adaptive Gauss-Hermite quadrature for one random term with one column, with its gradient.

For a level with phi(v) = sum f_s(x_s'beta + sigma z_s v) - v^2/2, its mode v^, curvature M there, and s = M^(-1/2),

    integral of exp(phi) / sqrt(2 pi)  =  s / sqrt(pi)  sum_k w_k exp(x_k^2 + phi(v_k)),     v_k = v^ + sqrt(2) s x_k

(Liu and Pierce 1994, doi 10.1093/biomet/81.3.624; one point is Laplace). The gradient is that of the approximation
itself, whose points move with v^ and s: with pi_k the share of point k in the sum,

    d = sum_k pi_k dphi(v_k) + A dv^ + D dM,     A = sum_k pi_k phi'(v_k),
                                                 D = -(1 + s sum_k pi_k phi'(v_k) sqrt(2) x_k) / (2 M)
    dv^ = dphi'(v^) / M
"""

from __future__ import annotations

import math

import numpy as np

from scglmm._jit import NO, entry, kernel

from .families import (
    constant_terms,
    derivatives,
    in_range,
    inflation_gradient,
    inflation_rows,
    put_inflation_slopes,
    set_inflation,
    stratum_log_likelihood,
)
from .layout import ETA, F_ZETA, G_THETA, G_ZETA, H_THETA, H_ZETA, G, H, T
from .mode import EXACT, find_mode


def rule(n_quad: int) -> tuple[np.ndarray, np.ndarray]:
    """Points x_k of Gauss-Hermite quadrature and log(w_k) + x_k^2, each (n_quad,)."""
    points, weights = np.polynomial.hermite.hermgauss(n_quad)
    return points, np.log(weights) + points**2


@entry
def quadrature(data, structure, X, points, log_weights, par, beta, v, gradient, work):
    """Log-likelihood with all constants, and its gradient.

    Parameters
    ----------
    data, structure, X, work
        As for `scglmm.engine.laplace.laplace`; the structure has one slot.
    points, log_weights
        From `rule`.
    par
        (beta, zi, psi, log theta).
    beta, v
        Overwritten by `par` and by the mode, which is searched from `v`.
    gradient
        Result, ordered as `par`.

    Returns
    -------
    The value; NaN when the mode was not reached.
    """
    S, p = X.shape
    q, K, n = v.size, points.size, par.size
    for c in range(p):
        beta[c] = par[c]
    sigma, theta = par[n - 2], math.exp(par[n - 1])
    set_inflation(data.extra, par, p)
    if find_mode(data, structure, X, par[n - 2 : n - 1], theta, NO, beta, v, work, EXACT) < 0:
        return np.nan
    strata, level = work.strata, structure.z_column[:, 0]
    if not in_range(data.extra, data, strata):
        return np.nan
    derivatives(data.extra, data, theta, strata)
    mode, zeta = strata.copy(), inflation_rows(data.extra, S)
    z = structure.z[:, 0].copy()
    M = np.ones(q)
    for s in range(S):
        M[level[s]] += (sigma * z[s]) ** 2 * mode[H, s]
    if not np.min(M) > 0.0:
        return np.nan

    # phi, and the derivatives at every point
    phi, slope = np.empty((K, q)), np.empty((K, q))
    g, f_theta, f_zeta = np.empty((K, S)), np.empty((K, S)), np.empty((K, S))
    for k in range(K):
        for j in range(q):
            at = v[j] + math.sqrt(2.0 / M[j]) * points[k]
            phi[k, j] = log_weights[k] - 0.5 * at * at
            slope[k, j] = -at
        for s in range(S):
            strata[ETA, s] = mode[ETA, s] + sigma * z[s] * math.sqrt(2.0 / M[level[s]]) * points[k]
        if not in_range(data.extra, data, strata):
            return np.nan
        derivatives(data.extra, data, theta, strata)
        inflation = inflation_rows(data.extra, S)
        for s in range(S):
            value, f_theta[k, s] = stratum_log_likelihood(data.extra, data, theta, strata, s)
            phi[k, level[s]] += value
            slope[k, level[s]] += sigma * z[s] * strata[G, s]
            g[k, s] = strata[G, s]
            f_zeta[k, s] = inflation[F_ZETA, s]

    total, theta_slope = constant_terms(data.extra, data, theta)
    share, A, D = phi, np.zeros(q), np.zeros(q)
    for j in range(q):
        top = np.max(phi[:, j])
        weight = 0.0
        for k in range(K):
            share[k, j] = math.exp(phi[k, j] - top)
            weight += share[k, j]
        total += top + math.log(weight) - 0.5 * math.log(math.pi * M[j])
        for k in range(K):
            share[k, j] /= weight
            A[j] += share[k, j] * slope[k, j]
            D[j] += share[k, j] * slope[k, j] * points[k]
        D[j] = -0.5 * (1.0 + math.sqrt(2.0 / M[j]) * D[j]) / M[j]
    _gradient(X, z, level, sigma, v, mode, zeta, M, share, A, D, g, f_theta, f_zeta, points, theta_slope, gradient)
    put_inflation_slopes(data.extra, zeta)
    inflation_gradient(data.extra, gradient, p)
    return total


@kernel
def _gradient(X, z, level, sigma, v, mode, zeta, M, share, A, D, g, f_theta, f_zeta, points, theta_slope, gradient):
    """Fill `gradient` from the values at the mode and at the points, and row F_ZETA of `zeta`."""
    S, p = X.shape
    K, n = points.size, gradient.size
    for i in range(n):
        gradient[i] = 0.0
    through_mode = A.copy()  # derivative in v^, where M depends on it as well; then divided by M
    for s in range(S):
        through_mode[level[s]] += D[level[s]] * (sigma * z[s]) ** 3 * mode[T, s]
    for j in range(M.size):
        through_mode[j] /= M[j]
    for s in range(S):
        j = level[s]
        zs = sigma * z[s]
        mean_g, mean_gv, mean_theta, mean_zeta = 0.0, 0.0, 0.0, 0.0
        for k in range(K):
            mean_g += share[k, j] * g[k, s]
            mean_gv += share[k, j] * g[k, s] * (v[j] + math.sqrt(2.0 / M[j]) * points[k])
            mean_theta += share[k, j] * f_theta[k, s]
            mean_zeta += share[k, j] * f_zeta[k, s]
        curved, shifted = D[j] * zs * zs, through_mode[j] * zs
        from_eta = mean_g + curved * mode[T, s] - shifted * mode[H, s]
        for c in range(p):
            gradient[c] += X[s, c] * from_eta
        gradient[n - 2] += z[s] * (
            mean_gv
            + D[j] * (2.0 * zs * mode[H, s] + zs * zs * mode[T, s] * v[j])
            + through_mode[j] * (mode[G, s] - zs * mode[H, s] * v[j])
        )
        gradient[n - 1] += mean_theta + curved * mode[H_THETA, s] + shifted * mode[G_THETA, s]
        zeta[F_ZETA, s] = mean_zeta + curved * zeta[H_ZETA, s] + shifted * zeta[G_ZETA, s]
    gradient[n - 1] += theta_slope
