"""Laplace approximation of the marginal likelihood (ML) or the restricted likelihood (REML), with its gradient.

    ML    l(beta, psi, theta) = f - v'v/2 - log|M|/2                        at the mode of v
    REML  l(psi, theta)       = f - v'v/2 - log|M_joint|/2 + (p/2) log 2 pi   at the joint mode of (v, beta)

The REML constant is glmmTMB's, which integrates beta over a flat prior. The gradient follows from the implicit function
theorem: with B = Z Lambda (ML) or [Z Lambda, X] (REML), a_s = b_s' M^-1 b_s from the selected inverse and
q = M^-1 B'(a t)/2,

    dl/dbeta  = X'(g - a t/2 + H B q)
    dl/dpsi   = g'delta - tr(M^-1 B'H dB) - (a t)'delta/2 - q'(dB'g - B'H delta),    delta = Z dLambda v
    dl/dtheta = df/dtheta - a'(dh/dtheta)/2 - q'B'(dg/dtheta)

Symbols are those of `scglmm.engine.structure`; theta enters through its logarithm.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from .families import derivatives, log_likelihood
from .histogram import histogram_terms
from .ldl import selected_inverse, solve_upper
from .mode import MAX_ETA, find_mode
from .penalised import assemble, cholesky_inverse, factor_joint, solve_joint


class Data(NamedTuple):
    """One gene on the nodes of `scglmm.compression`."""

    family: int
    start: np.ndarray  # (S + 1,) int64: nodes of stratum s are start[s]:start[s+1]
    E: np.ndarray  # (N,) exp(offset) at the nodes
    A: np.ndarray  # (N,) weights of the cells
    Y: np.ndarray  # (N,) weights of the counts
    y_sum: np.ndarray  # (S,) counts of the stratum
    exceed: np.ndarray  # histogram of the counts, see `scglmm.engine.histogram`
    tail_values: np.ndarray
    tail_times: np.ndarray
    constant: float  # sum_i y_i o_i - lgamma(y_i + 1)


class Work(NamedTuple):
    """Scratch arrays of one model, so that nothing is allocated while it is fitted."""

    eta: np.ndarray  # (S,) linear predictor without the offset
    step: np.ndarray
    g: np.ndarray
    h: np.ndarray
    t: np.ndarray
    g_theta: np.ndarray
    h_theta: np.ndarray
    zl: np.ndarray  # (S, w) rows of Z Lambda
    values: np.ndarray  # (q + nnz,) M, then its factor
    inverse: np.ndarray  # (q + nnz,) selected inverse
    V: np.ndarray  # (q, p)
    U: np.ndarray  # (q, p) M^-1 V
    G: np.ndarray  # (p, p)
    covariance: np.ndarray  # (p, p) inverse of the Schur complement
    rhs_v: np.ndarray  # (q, 1)
    rhs_beta: np.ndarray  # (p,)
    grad_v: np.ndarray  # (q,)
    grad_beta: np.ndarray  # (p,)
    dense: np.ndarray  # (2, q) zeros
    row_v: np.ndarray  # (w,)
    row_beta: np.ndarray  # (p,)


@njit(cache=True, nogil=True)
def make_work(structure, X):
    """Allocate the scratch arrays of a model."""
    S, w = structure.z.shape
    p = X.shape[1]
    q = structure.order.size
    n = q + structure.row_index.size
    return Work(
        np.zeros(S),
        np.zeros(S),
        np.zeros(S),
        np.zeros(S),
        np.zeros(S),
        np.zeros(S),
        np.zeros(S),
        np.zeros((S, w)),
        np.zeros(n),
        np.zeros(n),
        np.zeros((q, p)),
        np.zeros((q, p)),
        np.zeros((p, p)),
        np.zeros((p, p)),
        np.zeros((q, 1)),
        np.zeros(p),
        np.zeros(q),
        np.zeros(p),
        np.zeros((2, q)),
        np.zeros(w),
        np.zeros(p),
    )


@njit(cache=True, nogil=True)
def laplace(data, structure, X, joint, with_theta, beta, psi, log_theta, v, gradient, work):
    """Laplace log-likelihood with all constants, and its gradient.

    Parameters
    ----------
    data, structure, X, work
        The gene, the random effects, the fixed effects (S, p), scratch.
    joint
        REML (True) or maximum likelihood.
    with_theta
        Whether value and derivative in log(theta) are wanted: they are the only ones that need logarithms. Without
        them the value returned is 0.
    beta, v
        Start of the inner iterations, overwritten by the mode; beta only when `joint`.
    psi, log_theta
        Free entries of Lambda, log of the size of the negative binomial.
    gradient
        Result: (beta,) psi, log(theta), beta only for maximum likelihood.

    Returns
    -------
    The value; NaN when the mode was not reached or a Hessian is not positive definite.
    """
    theta = math.exp(log_theta)
    if find_mode(data, structure, X, psi, theta, joint, beta, v, work) < 0:
        return np.nan
    S, w = structure.z.shape
    p = X.shape[1]
    value = data.constant
    value_theta = 0.0
    for s in range(S):
        scale = math.exp(min(work.eta[s], MAX_ETA))
        start, stop = data.start[s], data.start[s + 1]
        g, h, t, g_theta, h_theta = derivatives(data.family, data.E, data.A, data.Y, start, stop, scale, theta)
        work.g[s], work.h[s], work.t[s] = g, h, t
        work.g_theta[s], work.h_theta[s] = g_theta, h_theta
        if with_theta:
            f, f_theta = log_likelihood(data.family, data.E, data.A, data.Y, start, stop, scale, theta)
            value += f + data.y_sum[s] * work.eta[s]
            value_theta += f_theta
    if with_theta:
        f, f_theta = histogram_terms(data.exceed, data.tail_values, data.tail_times, theta)
        value += f
        value_theta += f_theta
        for i in range(v.size):
            value -= 0.5 * v[i] * v[i]
    assemble(structure, X, work.zl, work.h, joint, work.values, work.V, work.G)
    log_m, log_g = factor_joint(structure, joint, work.values, work.V, work.G, work.dense)
    if not (math.isfinite(log_m) and math.isfinite(log_g)):
        return np.nan
    value -= 0.5 * (log_m + log_g)
    if joint:
        value += 0.5 * p * math.log(2.0 * math.pi)
    _gradient(data, structure, X, joint, psi, v, value_theta, gradient, work)
    return value if with_theta else 0.0


@njit(cache=True, nogil=True)
def _gradient(data, structure, X, joint, psi, v, value_theta, gradient, work):
    """Fill `gradient` from the factored Hessian and the derivatives of the strata."""
    S, w = structure.z.shape
    p = X.shape[1]
    q = v.size
    n_psi = psi.size
    first_psi = 0 if joint else p
    zl, zc = work.zl, structure.z_column
    selected_inverse(work.values, structure.column_start, structure.row_index, work.inverse, work.dense)
    if joint:
        work.U[:] = work.V
        solve_upper(work.values, structure.column_start, structure.row_index, work.U)
        cholesky_inverse(work.G, work.covariance)
    gradient[:] = 0.0

    # a_s, the part of tr(M^-1 B'H dB), and the right-hand side of q.
    work.rhs_v[:] = 0.0
    work.rhs_beta[:] = 0.0
    for s in range(S):
        _row_of_inverse(structure, X, joint, s, work)
        a = 0.0
        for i in range(w):
            a += zl[s, i] * work.row_v[i]
        if joint:
            for c in range(p):
                a += X[s, c] * work.row_beta[c]
        for k in range(n_psi):
            i, j = structure.psi_row[k], structure.psi_col[k]
            gradient[first_psi + k] -= work.h[s] * structure.z[s, i] * work.row_v[j]
        value_theta -= 0.5 * a * work.h_theta[s]
        half = 0.5 * a * work.t[s]
        work.step[s] = half
        for i in range(w):
            work.rhs_v[zc[s, i], 0] += zl[s, i] * half
        if joint:
            for c in range(p):
                work.rhs_beta[c] += X[s, c] * half
    solve_joint(structure, joint, work.values, work.V, work.G, work.rhs_v, work.rhs_beta)

    for s in range(S):
        half = work.step[s]
        bq = 0.0
        for i in range(w):
            bq += zl[s, i] * work.rhs_v[zc[s, i], 0]
        if joint:
            for c in range(p):
                bq += X[s, c] * work.rhs_beta[c]
        from_eta = work.g[s] - half + work.h[s] * bq
        for k in range(n_psi):
            i, j = structure.psi_row[k], structure.psi_col[k]
            effect = zc[s, j]
            gradient[first_psi + k] += structure.z[s, i] * (
                from_eta * v[effect] - work.g[s] * work.rhs_v[effect, 0]
            )
        if not joint:
            for c in range(p):
                gradient[c] += X[s, c] * from_eta
        value_theta -= bq * work.g_theta[s]
    gradient[first_psi + n_psi] = value_theta


@njit(cache=True, nogil=True)
def _row_of_inverse(structure, X, joint, s, work):
    """Entries of M^-1 b_s (ML) or M_joint^-1 b_s (REML) at the effects of stratum s: `row_v`, `row_beta`."""
    w = structure.z.shape[1]
    zl, zc = work.zl, structure.z_column
    work.row_v[:] = 0.0
    pair = 0
    for i in range(w):
        for j in range(i + 1):
            entry = work.inverse[structure.place[s, pair]]
            work.row_v[i] += entry * zl[s, j]
            if i != j:
                work.row_v[j] += entry * zl[s, i]
            pair += 1
    if not joint:
        return
    # With x~ = x - U'z: the beta part is C x~ and the random part loses U C x~.
    p = X.shape[1]
    for c in range(p):
        x = X[s, c]
        for i in range(w):
            x -= work.U[zc[s, i], c] * zl[s, i]
        work.grad_beta[c] = x
    for c in range(p):
        total = 0.0
        for d in range(p):
            total += work.covariance[c, d] * work.grad_beta[d]
        work.row_beta[c] = total
    for i in range(w):
        for c in range(p):
            work.row_v[i] -= work.U[zc[s, i], c] * work.row_beta[c]
