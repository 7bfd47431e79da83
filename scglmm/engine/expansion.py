"""Second derivatives of the Laplace criterion of plain NB2 by expansion of the strata around the mode.

The gradient (`scglmm.engine.laplace`) needs of the counts only a few numbers for each stratum, functions of its linear
predictor eta and of lambda = log(theta): f, g, h, t and the derivatives of f, g, h in lambda. A displacement of one
parameter moves the mode by what the implicit function theorem says,

    M_joint [dv; dbeta] = [dB'g - B'H d + e B'g_l; -X'H d + e X'g_l],      B = Z Lambda

with d = x (a coefficient), dB v (an entry of Lambda) or 0, and e = 1 for lambda and 0 otherwise, and every linear
predictor by eta' = d + B dv + X dbeta (without dbeta for maximum likelihood). To first order g becomes
g - h eta' + e g_l, h becomes h + t eta' + e h_l and so on, and the gradient is evaluated with those, a small step
away: no node is visited and no mode is searched for.
"""

from __future__ import annotations

import math

import numpy as np

from scglmm._jit import kernel

from .histogram import histogram_curvature
from .laplace import gradient_at
from .layout import G_THETA, H_THETA, RHS, G, H, T, copy_into
from .nb2 import second_order
from .penalised import assemble, factor_joint, scaled_rows, solve_joint

CENTRAL = 1e-4  # step of central differences: relative error about 1e-8
EXPANDED = 1e-5  # forward step: an expansion has no error of an inner search

# Rows of derivatives at the mode: those of layout, then of `scglmm.engine.nb2.second_order`
OF_G, OF_H, OF_T, OF_G_THETA, OF_H_THETA, T_ETA, T_THETA, G_THETA_2, H_THETA_2 = 0, 1, 2, 3, 4, 5, 6, 7, 8


@kernel
def expand(data, structure, X, joint, par, free, delta, central, v, work, moves, moves_beta, result, d_covariance):
    """Fill the Hessian, not yet symmetric.

    Parameters
    ----------
    free
        (n,) parameters whose rows are wanted.
    delta, central
        Step; whether to both sides or forward.
    v, work
        The mode at `par`, and what the evaluation there has left; `work` is overwritten.
    moves, moves_beta
        Result (n, q) and (n, p): derivatives of v and, when `joint`, beta in every parameter.
    result
        Zeros (n, n).
    d_covariance
        Zeros (n, p, p); when `joint` and `central`, derivatives of the covariance of beta at fixed variances.
    """
    n, p, q = par.size, X.shape[1], v.size
    S = structure.z.shape[0]
    n_psi = structure.psi_at.shape[1]
    first_psi = n - 1 - n_psi
    strata = work.strata
    theta = math.exp(par[n - 1])
    there = np.empty((9, S))
    for s in range(S):
        there[OF_G, s], there[OF_H, s], there[OF_T, s] = strata[G, s], strata[H, s], strata[T, s]
        there[OF_G_THETA, s], there[OF_H_THETA, s] = strata[G_THETA, s], strata[H_THETA, s]
    curvature = second_order(data.nodes, data.start, theta, strata, there[T_ETA:])
    curvature += histogram_curvature(data.exceed, data.tail, theta)
    direction = np.empty(S)
    for i in range(n):
        if free[i]:
            _move(structure, X, joint, i, first_psi, v, there, direction, work, moves[i], moves_beta[i])

    psi = par[first_psi : n - 1].copy()
    base, gradient, v_there = np.zeros(n), np.empty(n), np.empty(q)
    if not central:
        _restore(structure, X, joint, psi, there, work)
        gradient_at(None, structure, X, joint, n_psi, v, 0.0, base, work)
    for i in range(n):
        if not free[i]:
            continue
        _direction(structure, X, i, first_psi, v, direction)
        scaled_rows(structure, psi, work.zl)
        slope = curvature if i == n - 1 else 0.0
        e = 1.0 if i == n - 1 else 0.0
        _add_move(structure, X, joint, moves[i], moves_beta[i], work.zl, direction)
        for s in range(S):
            slope += there[OF_G_THETA, s] * direction[s]
        for side in range(2 if central else 1):
            step = delta if side == 0 else -delta
            weight = 0.5 / step if central else 1.0 / step
            for s in range(S):
                by = step * direction[s]
                to = step * e
                strata[G, s] = there[OF_G, s] - there[OF_H, s] * by + there[OF_G_THETA, s] * to
                strata[H, s] = there[OF_H, s] + there[OF_T, s] * by + there[OF_H_THETA, s] * to
                strata[T, s] = there[OF_T, s] + there[T_ETA, s] * by + there[T_THETA, s] * to
                strata[G_THETA, s] = there[OF_G_THETA, s] - there[OF_H_THETA, s] * by + there[G_THETA_2, s] * to
                strata[H_THETA, s] = there[OF_H_THETA, s] + there[T_THETA, s] * by + there[H_THETA_2, s] * to
            for k in range(q):
                v_there[k] = v[k] + step * moves[i, k]
            if first_psi <= i < n - 1:
                psi[i - first_psi] = par[i] + step
                scaled_rows(structure, psi, work.zl)
            finite = _factor(structure, X, joint, work)
            gradient_at(None, structure, X, joint, n_psi, v_there, step * slope, gradient, work)
            for j in range(n):
                result[i, j] += weight * (gradient[j] - base[j]) if finite else np.nan
            if joint and central:
                for c in range(p):
                    for d in range(p):
                        d_covariance[i, c, d] += weight * work.schur[1, c, d]
        if first_psi <= i < n - 1:
            psi[i - first_psi] = par[i]


@kernel
def _restore(structure, X, joint, psi, there, work):
    """Bring `work` back to the mode: the strata that the gradient uses as scratch, and the factor."""
    strata = work.strata
    for s in range(structure.z.shape[0]):
        strata[G, s], strata[H, s], strata[T, s] = there[OF_G, s], there[OF_H, s], there[OF_T, s]
        strata[G_THETA, s], strata[H_THETA, s] = there[OF_G_THETA, s], there[OF_H_THETA, s]
    scaled_rows(structure, psi, work.zl)
    _factor(structure, X, joint, work)


@kernel
def _factor(structure, X, joint, work):
    """Assemble and factor the penalised Hessian from the strata; whether it is positive definite."""
    assemble(structure.z_column, structure.place, X, work.zl, work.strata, joint, work.values, work.fixed, work.schur)
    log_det = factor_joint(
        structure.starts, structure.entries, joint, work.values, work.fixed, work.schur, work.effects[0]
    )
    return math.isfinite(log_det)


@kernel
def _direction(structure, X, i, first_psi, v, out):
    """Change of the linear predictors with parameter i where v and beta stay: a column of X, dB v, or none."""
    if i < first_psi:
        for s in range(out.size):
            out[s] = X[s, i]
    elif i < first_psi + structure.psi_at.shape[1]:
        row, column = structure.psi_at[0, i - first_psi], structure.psi_at[1, i - first_psi]
        for s in range(out.size):
            out[s] = structure.z[s, row] * v[structure.z_column[s, column]]
    else:
        for s in range(out.size):
            out[s] = 0.0


@kernel
def _move(structure, X, joint, i, first_psi, v, there, direction, work, move, move_beta):
    """Differentiate the mode in parameter i, into `move` and `move_beta`; `work` holds the factor at the mode."""
    S, w = structure.z.shape
    p = X.shape[1]
    n_psi = structure.psi_at.shape[1]
    rhs, rhs_beta = work.rhs, work.betas[RHS]
    _direction(structure, X, i, first_psi, v, direction)
    for k in range(v.size):
        rhs[k, 0] = 0.0
    for c in range(p):
        rhs_beta[c] = 0.0
    is_theta = i == first_psi + n_psi
    for s in range(S):
        push = there[OF_G_THETA, s] if is_theta else -there[OF_H, s] * direction[s]
        for a in range(w):
            rhs[structure.z_column[s, a], 0] += work.zl[s, a] * push
        if joint:
            for c in range(p):
                rhs_beta[c] += X[s, c] * push
    if i >= first_psi and not is_theta:
        row, column = structure.psi_at[0, i - first_psi], structure.psi_at[1, i - first_psi]
        for s in range(S):
            rhs[structure.z_column[s, column], 0] += structure.z[s, row] * there[OF_G, s]
    solve_joint(structure.starts, structure.entries, joint, work.values, work.fixed, work.schur, rhs, rhs_beta)
    for k in range(v.size):
        move[k] = rhs[k, 0]
    if joint:
        copy_into(move_beta, rhs_beta)


@kernel
def _add_move(structure, X, joint, move, move_beta, zl, direction):
    """Add to a direction what the move of the mode adds to the linear predictors."""
    for s in range(direction.size):
        for a in range(zl.shape[1]):
            direction[s] += zl[s, a] * move[structure.z_column[s, a]]
        if joint:
            for c in range(X.shape[1]):
                direction[s] += X[s, c] * move_beta[c]
