"""Variances at zero: whether the likelihood is really highest there.

The criterion is even in sigma, so its gradient at sigma = 0 is 0 whatever the data say. What decides is the derivative
in sigma^2, or for a term with several columns the matrix of derivatives in Sigma: the point is a maximum on the
boundary when that matrix has no positive direction within the null space of Sigma (engine symbols as in
`scglmm.engine.laplace`). With s = Z_r'g and P = H - H B M^-1 B'H,

    dl/dsigma^2 = (s's - tr Z_r'P Z_r)/2 - (a t)'Z_r s/2 + q'B'H Z_r s
"""

from __future__ import annotations

import numpy as np

from scglmm._jit import entry

from .layout import RHS, STEP, G, H
from .penalised import solve_joint


@entry
def variance_derivative(structure, X, joint, first, c, work):
    """Matrix of derivatives of the criterion in Sigma of one term, seen as an additional term with Sigma = 0.

    `work` holds the state that `scglmm.engine.laplace.laplace` left behind: factors, g, h, a t / 2 in row STEP, and the
    vector q in the right-hand sides.

    Parameters
    ----------
    first, c
        First slot and number of slots of the term.

    Returns
    -------
    (c, c) symmetric matrix.
    """
    S, w = structure.z.shape
    p = X.shape[1]
    q = structure.starts.shape[1] - 1
    z, zl, z_column, strata = structure.z, work.zl, structure.z_column, work.strata
    result = np.zeros((c, c))

    # A level is known by the position of the effect of its first column; its strata are a linked list.
    score = np.zeros((q, c))
    head = np.full(q, -1, np.int64)
    following = np.empty(S, np.int64)
    for s in range(S):
        level = z_column[s, first]
        following[s] = head[level]
        head[level] = s
        for i in range(c):
            score[level, i] += z[s, first + i] * strata[G, s]
    for s in range(S):
        level = z_column[s, first]
        bq = 0.0
        for a in range(w):
            bq += zl[s, a] * work.rhs[z_column[s, a], 0]
        if joint:
            for d in range(p):
                bq += X[s, d] * work.betas[RHS, d]
        from_curvature = strata[H, s] * bq - strata[STEP, s]
        for i in range(c):
            z_i = z[s, first + i]
            for j in range(c):
                result[i, j] += z_i * from_curvature * score[level, j]
                result[i, j] -= 0.5 * strata[H, s] * z_i * z[s, first + j]

    # s's / 2, and k'M^-1 k / 2 for every level, k_i the sum of h z_i b over the strata of the level.
    column_v = np.zeros((c, q))
    column_beta = np.zeros((c, p))
    solved_v = np.zeros((q, 1))
    solved_beta = np.zeros(p)
    for level in range(q):
        if head[level] < 0:
            continue
        for i in range(c):
            for t in range(q):
                column_v[i, t] = 0.0
            for d in range(p):
                column_beta[i, d] = 0.0
        s = head[level]
        while s >= 0:
            for i in range(c):
                scaled = strata[H, s] * z[s, first + i]
                for a in range(w):
                    column_v[i, z_column[s, a]] += scaled * zl[s, a]
                if joint:
                    for d in range(p):
                        column_beta[i, d] += scaled * X[s, d]
            s = following[s]
        for i in range(c):
            for t in range(q):
                solved_v[t, 0] = column_v[i, t]
            for d in range(p):
                solved_beta[d] = column_beta[i, d]
            solve_joint(
                structure.starts,
                structure.entries,
                joint,
                work.values,
                work.fixed,
                work.schur,
                solved_v,
                solved_beta,
            )
            for j in range(c):
                total = score[level, i] * score[level, j]
                for t in range(q):
                    total += column_v[j, t] * solved_v[t, 0]
                if joint:
                    for d in range(p):
                        total += column_beta[j, d] * solved_beta[d]
                result[i, j] += 0.5 * total
    for i in range(c):
        for j in range(i):
            mean = 0.5 * (result[i, j] + result[j, i])
            result[i, j] = mean
            result[j, i] = mean
    return result
