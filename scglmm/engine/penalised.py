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

from .layout import H, fill
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
    # Strata inside: compilers make a short inner loop slow by preparing it to be a long one.
    pair = 0
    for a in range(w):
        for b in range(a + 1):
            for s in range(S):
                values[place[s, pair]] += strata[H, s] * zl[s, a] * zl[s, b]
            pair += 1
    if not joint:
        return
    for c in range(p):
        for i in range(q):
            fixed[0, i, c] = 0.0
        for a in range(w):
            for s in range(S):
                fixed[0, z_column[s, a], c] += strata[H, s] * zl[s, a] * X[s, c]
    weighted_gram(X, strata[H], schur[0])


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
    solve_lower(values, starts, entries, fixed[0])
    for i in range(zeros.size):
        zeros[i] = -1.0 / values[i]
    add_weighted_gram(fixed[0], zeros, schur[0])
    fill(zeros, 0.0)
    return log_m + cholesky(schur[0])


@kernel
def multiply(z_column, X, zl, joint, rhs, rhs_beta, out):
    """[Z Lambda, X] times the vector (q, 1), (p,), into `out` (S,); without X unless `joint`."""
    S, w = zl.shape
    for s in range(S):
        out[s] = 0.0
    if joint:
        for c in range(X.shape[1]):
            for s in range(S):
                out[s] += X[s, c] * rhs_beta[c]
    for a in range(w):
        for s in range(S):
            out[s] += zl[s, a] * rhs[z_column[s, a], 0]


@kernel
def multiply_transposed(z_column, X, zl, joint, values, rhs, rhs_beta):
    """Transpose of [Z Lambda, X] times `values` (S,), into (q, 1), (p,); the latter 0 unless `joint`."""
    S, w = zl.shape
    for i in range(rhs.shape[0]):
        rhs[i, 0] = 0.0
    fill(rhs_beta, 0.0)
    for a in range(w):
        for s in range(S):
            rhs[z_column[s, a], 0] += zl[s, a] * values[s]
    if joint:
        for c in range(X.shape[1]):
            total = 0.0
            for s in range(S):
                total += X[s, c] * values[s]
            rhs_beta[c] = total


@kernel
def weighted_gram(X, weight, out):
    """Lower triangle of X'WX into `out` (p, p), for X (n, p) and W = diag(weight); the rest becomes 0."""
    for c in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[c, d] = 0.0
    add_weighted_gram(X, weight, out)


@kernel
def add_weighted_gram(X, weight, out):
    """Add the lower triangle of X'WX, in four strands, so that no addition waits for the one before it."""
    n, p = X.shape
    whole = n // 4 * 4
    for c in range(p):
        for d in range(c + 1):
            one, two, three, four = 0.0, 0.0, 0.0, 0.0
            for k in range(0, whole, 4):
                one += weight[k] * X[k, c] * X[k, d]
                two += weight[k + 1] * X[k + 1, c] * X[k + 1, d]
                three += weight[k + 2] * X[k + 2, c] * X[k + 2, d]
                four += weight[k + 3] * X[k + 3, c] * X[k + 3, d]
            for k in range(whole, n):
                one += weight[k] * X[k, c] * X[k, d]
            out[c, d] += (one + two) + (three + four)


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
        for c in range(p):
            for i in range(q):
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
