"""The penalised Hessian of [v; beta]: assemble it over strata, factor it, solve with it.

    [ M   V ]      M = (Z Lambda)' H Z Lambda + I,  sparse, pattern known      V = (Z Lambda)' H X,  q x p
    [ V'  C ]      C = X' H X                                                   H = diag(h)

Random effects come first and fixed effects last, so the first q pivots give log|M| (maximum likelihood) and all of
them log|Hessian| (REML). The rows of beta are nearly always full, hence stored dense: with W = L^-1 V the Schur
complement C - W' D^-1 W is what is left for beta. Its inverse is the covariance of beta at fixed variances.
"""

from __future__ import annotations

import math

import numpy as np

from scglmm._jit import kernel

from .layout import H
from .ldl import factor, solve_lower, solve_upper


@kernel
def scaled_rows(structure, psi, zl):
    """Rows of Z Lambda in slots, into zl (S, w)."""
    S, w = structure.z.shape
    for s in range(S):
        for a in range(w):
            zl[s, a] = 0.0
    for k in range(psi.size):
        row, column = structure.psi_at[0, k], structure.psi_at[1, k]
        for s in range(S):
            zl[s, column] += structure.z[s, row] * psi[k]


@kernel
def assemble(z_column, place, X, zl, strata, joint, values, fixed, schur):
    """Fill M (its lower triangle, in `values`), and V and C when `joint`."""
    S, w = zl.shape
    p = X.shape[1]
    q = fixed.shape[1]
    for i in range(values.size):
        values[i] = 1.0 if i < q else 0.0
    for s in range(S):
        pair = 0
        for a in range(w):
            scaled = strata[H, s] * zl[s, a]
            for b in range(a + 1):
                values[place[s, pair]] += scaled * zl[s, b]
                pair += 1
    if not joint:
        return
    for i in range(q):
        for c in range(p):
            fixed[0, i, c] = 0.0
    for c in range(p):
        for d in range(p):
            schur[0, c, d] = 0.0
    for s in range(S):
        for a in range(w):
            scaled = strata[H, s] * zl[s, a]
            row = z_column[s, a]
            for c in range(p):
                fixed[0, row, c] += scaled * X[s, c]
        for c in range(p):
            scaled = strata[H, s] * X[s, c]
            for d in range(c + 1):
                schur[0, c, d] += scaled * X[s, d]


@kernel
def factor_joint(starts, entries, joint, values, fixed, schur, zeros):
    """Factor in place: `values` to L and D, V to W = L^-1 V, C to the Cholesky factor of the Schur complement.

    Returns
    -------
    log|M|, plus log|Schur complement| when `joint`; NaN where a pivot is not positive.
    """
    log_m = factor(values, starts, entries, zeros)
    if not joint or not math.isfinite(log_m):
        return log_m
    V = fixed[0]
    solve_lower(values, starts, entries, V)
    q, p = V.shape
    for i in range(q):
        for c in range(p):
            scaled = V[i, c] / values[i]
            for d in range(c + 1):
                schur[0, c, d] -= scaled * V[i, d]
    return log_m + cholesky(schur[0])


@kernel
def solve_joint(starts, entries, joint, values, fixed, schur, rhs, rhs_beta):
    """Overwrite the right-hand side (q, 1), (p,) by the solution; `rhs_beta` is left alone unless `joint`."""
    solve_lower(values, starts, entries, rhs)
    if joint:
        W = fixed[0]
        q, p = W.shape
        for i in range(q):
            scaled = rhs[i, 0] / values[i]
            for c in range(p):
                rhs_beta[c] -= W[i, c] * scaled
        cholesky_solve(schur[0], rhs_beta)
        for i in range(q):
            for c in range(p):
                rhs[i, 0] -= W[i, c] * rhs_beta[c]
    solve_upper(values, starts, entries, rhs)


@kernel
def cholesky(a):
    """Overwrite the lower triangle of a by its Cholesky factor; returns log|a|, NaN when a pivot is not positive."""
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


@kernel
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


@kernel
def cholesky_inverse(chol, out):
    """Inverse of chol chol' into out (p, p)."""
    p = chol.shape[0]
    column = np.empty(p)
    for j in range(p):
        for i in range(p):
            column[i] = 1.0 if i == j else 0.0
        cholesky_solve(chol, column)
        for i in range(p):
            out[i, j] = column[i]
