"""Derivatives of the gradient of the Laplace criterion in beta and psi, by expansion of the strata around the mode.

The gradient (`scglmm.engine.laplace`) needs of the counts only g, h and t of every stratum, functions of its linear
predictor. A displacement of one parameter moves the mode by what the implicit function theorem says,

    M_joint [dv; dbeta] = [dB'g - B'H d; -X'H d],    d = x (a coefficient) or dB v (an entry of Lambda), B = Z Lambda

and every linear predictor by eta' = d + B dv + X dbeta (without dbeta for maximum likelihood), so that g, h, t become
g - h eta', h + t eta', t + (dt/deta) eta'. The gradient is evaluated with those, a small step to either side: no node
is visited and no mode is searched for.
"""

from __future__ import annotations

import math

import numpy as np

from scglmm._jit import kernel

from .laplace import gradient_at
from .layout import G_THETA, H_THETA, RHS, G, H, T, copy_into
from .nb2 import third_derivative
from .penalised import assemble, factor_joint, scaled_rows, solve_joint


@kernel
def expand(data, structure, X, joint, par, free, delta, central, v, gradient, work, result, d_covariance, d_beta):
    """Add the rows of beta (ML) and psi to `result`, but for the column of theta.

    Parameters
    ----------
    delta, central
        Step; whether to both sides, or forward from `gradient`, that at `par`.
    v
        Mode at `par`; `work` is what the evaluation there has left.
    result, d_covariance, d_beta
        See `scglmm.engine.curvature.hessian`.
    """
    n, p, q = par.size, X.shape[1], v.size
    S = structure.z.shape[0]
    n_psi = structure.psi_at.shape[1]
    first_psi = n - 1 - n_psi
    strata = work.strata
    theta = math.exp(par[n - 1])
    there = np.empty((4, S))  # g, h, t and dt/deta at the mode
    for s in range(S):
        there[0, s], there[1, s], there[2, s] = strata[G, s], strata[H, s], strata[T, s]
    third_derivative(data.nodes, data.start, theta, strata, there[3])
    moves, moves_beta = np.zeros((n, q)), np.zeros((n, p))
    direction = np.empty(S)
    for i in range(n - 1):
        if free[i]:
            _move(structure, X, joint, i, first_psi, v, there, direction, work, moves[i], moves_beta[i])

    psi = par[first_psi : n - 1].copy()
    gradient_there, v_there = np.empty(n), np.empty(q)
    for i in range(n - 1):
        if not free[i]:
            continue
        _direction(structure, X, i, first_psi, v, direction)
        scaled_rows(structure, psi, work.zl)
        _add_move(structure, X, joint, moves[i], moves_beta[i], work.zl, direction)
        for side in range(2 if central else 1):
            step = delta if side == 0 else -delta
            weight = 0.5 / step if central else 1.0 / step
            for s in range(S):
                change = step * direction[s]
                strata[G, s] = there[0, s] - there[1, s] * change
                strata[H, s] = there[1, s] + there[2, s] * change
                strata[T, s] = there[2, s] + there[3, s] * change
                strata[G_THETA, s] = 0.0
                strata[H_THETA, s] = 0.0
            for k in range(q):
                v_there[k] = v[k] + step * moves[i, k]
            if i >= first_psi:
                psi[i - first_psi] = par[i] + step
                scaled_rows(structure, psi, work.zl)
            assemble(
                structure.z_column, structure.place, X, work.zl, strata, joint, work.values, work.fixed, work.schur
            )
            log_det = factor_joint(
                structure.starts, structure.entries, joint, work.values, work.fixed, work.schur, work.effects[0]
            )
            gradient_at(None, structure, X, joint, n_psi, v_there, 0.0, gradient_there, work)
            for j in range(n - 1):
                result[i, j] += weight * gradient_there[j] if math.isfinite(log_det) else np.nan
            if joint and central:
                for c in range(p):
                    for d in range(p):
                        d_covariance[i, c, d] += weight * work.schur[1, c, d]
        if i >= first_psi:
            psi[i - first_psi] = par[i]
        if not central:
            for j in range(n - 1):
                result[i, j] -= gradient[j] / delta
        elif joint:
            copy_into(d_beta[i], moves_beta[i])


@kernel
def _direction(structure, X, i, first_psi, v, out):
    """Change of the linear predictors with parameter i where v and beta stay: a column of X, or dB v."""
    if i < first_psi:
        for s in range(out.size):
            out[s] = X[s, i]
        return
    row, column = structure.psi_at[0, i - first_psi], structure.psi_at[1, i - first_psi]
    for s in range(out.size):
        out[s] = structure.z[s, row] * v[structure.z_column[s, column]]


@kernel
def _move(structure, X, joint, i, first_psi, v, there, direction, work, move, move_beta):
    """Derivative of the mode in parameter i, into `move` and `move_beta`; `work` holds the factor at the mode."""
    S, w = structure.z.shape
    rhs, rhs_beta = work.rhs, work.betas[RHS]
    _direction(structure, X, i, first_psi, v, direction)
    for k in range(v.size):
        rhs[k, 0] = 0.0
    for c in range(X.shape[1]):
        rhs_beta[c] = 0.0
    for s in range(S):
        pulled = there[1, s] * direction[s]
        for a in range(w):
            rhs[structure.z_column[s, a], 0] -= work.zl[s, a] * pulled
        if joint:
            for c in range(X.shape[1]):
                rhs_beta[c] -= X[s, c] * pulled
    if i >= first_psi:
        row, column = structure.psi_at[0, i - first_psi], structure.psi_at[1, i - first_psi]
        for s in range(S):
            rhs[structure.z_column[s, column], 0] += structure.z[s, row] * there[0, s]
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
