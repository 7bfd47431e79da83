"""Variances at zero: is the likelihood really highest there?

The criterion is even in sigma, so its gradient at sigma = 0 is 0 whatever the data say. What decides is the derivative
in sigma^2, or for a term with several columns the matrix of derivatives in Sigma: the point is a maximum on the
boundary when that matrix has no positive direction within the null space of Sigma (engine symbols as in
`scglmm.engine.laplace`). With s = Z_r'g and P = H - H B M^-1 B'H,

    dl/dsigma^2 = (s's - tr Z_r'P Z_r)/2 - (a t)'Z_r s/2 + q'B'H Z_r s
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .penalised import solve_joint


@njit(cache=True, nogil=True)
def variance_derivative(structure, X, joint, term, work):
    """Matrix of derivatives of the criterion in Sigma of one term, seen as an additional term with Sigma = 0.

    `work` holds the state that `scglmm.engine.laplace.laplace` left behind: factors, g, h, and in ``work.step`` a t / 2
    and in ``work.rhs_v``, ``work.rhs_beta`` the vector q.

    Returns
    -------
    (c, c) symmetric matrix, c the number of columns of the term.
    """
    S, w = structure.z.shape
    p = X.shape[1]
    q = structure.order.size
    first = 0
    while structure.slot_term[first] != term:
        first += 1
    c = 0
    while first + c < w and structure.slot_term[first + c] == term:
        c += 1
    zl, zc = work.zl, structure.z_column
    result = np.zeros((c, c))

    # Scores of the levels, kept at the position of the effect of the level's first column.
    score = np.zeros((q, c))
    for s in range(S):
        level = zc[s, first]
        for i in range(c):
            score[level, i] += structure.z[s, first + i] * work.g[s]
    for s in range(S):
        level = zc[s, first]
        bq = 0.0
        for a in range(w):
            bq += zl[s, a] * work.rhs_v[zc[s, a], 0]
        if joint:
            for d in range(p):
                bq += X[s, d] * work.rhs_beta[d]
        from_curvature = work.h[s] * bq - work.step[s]
        for i in range(c):
            z = structure.z[s, first + i]
            for j in range(c):
                result[i, j] += z * from_curvature * score[level, j]
                result[i, j] -= 0.5 * work.h[s] * z * structure.z[s, first + j]
    for level in range(q):
        for i in range(c):
            for j in range(c):
                result[i, j] += 0.5 * score[level, i] * score[level, j]

    # + k'M^-1 k / 2 for every level, k_i the sum of h z_i b over the strata of the level.
    order = np.argsort(zc[:, first], kind="mergesort")
    columns_v = np.zeros((c, q, 1))
    columns_beta = np.zeros((c, p))
    solved_v = np.zeros((q, 1))
    solved_beta = np.zeros(p)
    begin = 0
    while begin < S:
        level = zc[order[begin], first]
        end = begin
        columns_v[:] = 0.0
        columns_beta[:] = 0.0
        while end < S and zc[order[end], first] == level:
            s = order[end]
            for i in range(c):
                scaled = work.h[s] * structure.z[s, first + i]
                for a in range(w):
                    columns_v[i, zc[s, a], 0] += scaled * zl[s, a]
                if joint:
                    for d in range(p):
                        columns_beta[i, d] += scaled * X[s, d]
            end += 1
        for i in range(c):
            solved_v[:] = columns_v[i]
            solved_beta[:] = columns_beta[i]
            solve_joint(structure, joint, work.values, work.V, work.G, solved_v, solved_beta)
            for j in range(c):
                total = 0.0
                for t in range(q):
                    total += columns_v[j, t, 0] * solved_v[t, 0]
                if joint:
                    for d in range(p):
                        total += columns_beta[j, d] * solved_beta[d]
                result[i, j] += 0.5 * total
        begin = end
    return 0.5 * (result + result.T)
