"""The penalised Hessian of [v; beta]: assemble it over strata, factor it, solve with it.

    [ M   V ]      M = (Z Lambda)' H Z Lambda + I,  sparse, pattern known      V = (Z Lambda)' H X,  q x p
    [ V'  G ]      G = X' H X                                                   H = diag(h)

Random effects come first and fixed effects last, so the first q pivots give log|M| (maximum likelihood) and all of
them log|Hessian| (REML). The rows of beta are nearly always full, hence stored dense: with W = L^-1 V the Schur
complement G - W' D^-1 W is what is left for beta. Its inverse is the covariance of beta at fixed variances.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .ldl import factor, solve_lower, solve_upper


@njit(cache=True, nogil=True)
def scaled_rows(structure, psi, out):
    """Rows of Z Lambda in slots: out (S, w)."""
    S, w = structure.z.shape
    out[:] = 0.0
    for k in range(psi.size):
        row, col = structure.psi_row[k], structure.psi_col[k]
        for s in range(S):
            out[s, col] += structure.z[s, row] * psi[k]


@njit(cache=True, nogil=True)
def assemble(structure, X, zl, h, joint, values, V, G):
    """Fill M (its lower triangle, in `values`), and V and G when `joint`."""
    S, w = zl.shape
    p = X.shape[1]
    q = structure.order.size
    values[:q] = 1.0
    values[q:] = 0.0
    for s in range(S):
        pair = 0
        for a in range(w):
            scaled = h[s] * zl[s, a]
            for b in range(a + 1):
                values[structure.place[s, pair]] += scaled * zl[s, b]
                pair += 1
    if not joint:
        return
    V[:] = 0.0
    G[:] = 0.0
    for s in range(S):
        for a in range(w):
            scaled = h[s] * zl[s, a]
            row = structure.z_column[s, a]
            for c in range(p):
                V[row, c] += scaled * X[s, c]
        for c in range(p):
            scaled = h[s] * X[s, c]
            for d in range(c + 1):
                G[c, d] += scaled * X[s, d]


@njit(cache=True, nogil=True)
def factor_joint(structure, joint, values, V, G, work):
    """Factor in place: `values` to L and D, V to W = L^-1 V, G to the Cholesky factor of the Schur complement.

    Returns
    -------
    log|M| and log|Schur complement| (0 unless `joint`); NaN where a pivot is not positive.
    """
    log_m = factor(
        values,
        structure.column_start,
        structure.row_index,
        structure.row_start,
        structure.row_column,
        structure.row_place,
        work[0],
    )
    if not joint or not math.isfinite(log_m):
        return log_m, 0.0
    solve_lower(values, structure.column_start, structure.row_index, V)
    p = G.shape[0]
    for i in range(V.shape[0]):
        for c in range(p):
            scaled = V[i, c] / values[i]
            for d in range(c + 1):
                G[c, d] -= scaled * V[i, d]
    return log_m, cholesky(G)


@njit(cache=True, nogil=True)
def solve_joint(structure, joint, values, W, chol, rhs_v, rhs_beta):
    """Overwrite the right-hand side (q, 1), (p,) by the solution; `rhs_beta` is left alone unless `joint`."""
    solve_lower(values, structure.column_start, structure.row_index, rhs_v)
    if joint:
        q, p = W.shape
        for i in range(q):
            scaled = rhs_v[i, 0] / values[i]
            for c in range(p):
                rhs_beta[c] -= W[i, c] * scaled
        cholesky_solve(chol, rhs_beta)
        for i in range(q):
            for c in range(p):
                rhs_v[i, 0] -= W[i, c] * rhs_beta[c]
    solve_upper(values, structure.column_start, structure.row_index, rhs_v)


@njit(cache=True, nogil=True)
def cholesky(a):
    """Overwrite the lower triangle of a by its Cholesky factor; returns log|a|, or NaN when a pivot is not positive."""
    p = a.shape[0]
    log_det = 0.0
    for j in range(p):
        pivot = a[j, j]
        for k in range(j):
            pivot -= a[j, k] * a[j, k]
        if not pivot > 0.0:
            return np.nan
        root = math.sqrt(pivot)
        a[j, j] = root
        log_det += math.log(pivot)
        for i in range(j + 1, p):
            x = a[i, j]
            for k in range(j):
                x -= a[i, k] * a[j, k]
            a[i, j] = x / root
    return log_det


@njit(cache=True, nogil=True)
def cholesky_solve(chol, x):
    """Overwrite x (p,) by the solution of chol chol' y = x."""
    p = x.size
    for i in range(p):
        for k in range(i):
            x[i] -= chol[i, k] * x[k]
        x[i] /= chol[i, i]
    for i in range(p - 1, -1, -1):
        for k in range(i + 1, p):
            x[i] -= chol[k, i] * x[k]
        x[i] /= chol[i, i]


@njit(cache=True, nogil=True)
def cholesky_inverse(chol, out):
    """Inverse of chol chol' into out (p, p)."""
    p = chol.shape[0]
    column = np.empty(p)
    for j in range(p):
        column[:] = 0.0
        column[j] = 1.0
        cholesky_solve(chol, column)
        for i in range(p):
            out[i, j] = column[i]
