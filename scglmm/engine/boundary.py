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
from .ldl import solve_lower


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

    # s's / 2, and k'M^-1 k / 2 for every level, k_i the sum of h z_i b over the strata of the level. Half of the
    # solution is enough: k'M^-1 k = y'D^-1 y with L y = k, and y is 0 outside the effects of the level unless L has
    # entries.
    y = np.zeros((q, c))
    y_beta = np.zeros((p, c))
    touched = np.arange(q)
    seen = np.full(q, -1, np.int64)
    dense = structure.entries.shape[1] > 0
    for level in range(q):
        if head[level] < 0:
            continue
        n_touched = 0
        s = head[level]
        while s >= 0:
            for a in range(w):
                effect = z_column[s, a]
                if not dense and seen[effect] != level:
                    seen[effect] = level
                    touched[n_touched] = effect
                    n_touched += 1
                for i in range(c):
                    y[effect, i] += strata[H, s] * z[s, first + i] * zl[s, a]
            if joint:
                for d in range(p):
                    for i in range(c):
                        y_beta[d, i] += strata[H, s] * z[s, first + i] * X[s, d]
            s = following[s]
        if dense:
            n_touched = q
            solve_lower(work.values, structure.starts, structure.entries, y)
        for t in touched[:n_touched]:
            for i in range(c):
                scaled = y[t, i] / work.values[t]
                for j in range(c):
                    result[i, j] += 0.5 * scaled * y[t, j]
                if joint:
                    for d in range(p):
                        y_beta[d, i] -= work.fixed[0, t, d] * scaled
        for i in range(c):
            for j in range(c):
                result[i, j] += 0.5 * score[level, i] * score[level, j]
        if joint:
            for d in range(p):
                for i in range(c):
                    for k in range(d):
                        y_beta[d, i] -= work.schur[0, d, k] * y_beta[k, i]
                    y_beta[d, i] /= work.schur[0, d, d]
            for d in range(p):
                for i in range(c):
                    for j in range(c):
                        result[i, j] += 0.5 * y_beta[d, i] * y_beta[d, j]
        for t in touched[:n_touched]:
            for i in range(c):
                y[t, i] = 0.0
        for d in range(p):
            for i in range(c):
                y_beta[d, i] = 0.0
    for i in range(c):
        for j in range(i):
            mean = 0.5 * (result[i, j] + result[j, i])
            result[i, j] = mean
            result[j, i] = mean
    return result
