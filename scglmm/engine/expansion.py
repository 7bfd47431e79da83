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
from .layout import G_THETA, H_THETA, RHS, G, H, T, copy_into, fill
from .nb2 import second_order
from .penalised import assemble, factor_joint, scaled_rows, solve_joint

CENTRAL = 1e-4  # step of central differences: relative error about 1e-8
EXPANDED = 1e-5  # forward step: an expansion has no error of an inner search

# Rows of derivatives at the mode: those of layout, then of `scglmm.engine.nb2.second_order`
OF_G, OF_H, OF_T, OF_G_THETA, OF_H_THETA, T_ETA, T_THETA, G_THETA_2, H_THETA_2 = 0, 1, 2, 3, 4, 5, 6, 7, 8


@kernel
def expand(data, structure, X, joint, par, free, delta, central, v, gradient, work, d_v, d_beta, result, d_covariance):
    """Fill the Hessian, not yet symmetric.

    Parameters
    ----------
    free
        (n,) parameters whose rows are wanted.
    delta, central
        Step; whether to both sides or forward.
    v, gradient, work
        The mode at `par`, the gradient, and what the evaluation there has left; `work` is overwritten.
    d_v, d_beta
        Result (n, q) and (n, p): derivatives of v and, when `joint`, beta in every parameter; 0 for one that is not
        free.
    result
        Zeros (n, n).
    d_covariance
        Zeros (n, p, p); when `joint` and `central`, derivatives of the covariance of beta at fixed variances: of
        the block C of beta in the inverse of M = A'HA + [I 0; 0 0], A = [B X], which are those of -U'(dM)U with U the
        columns of beta in that inverse. Differences of C would lose half of its digits.
    """
    n, p, q = par.size, X.shape[1], v.size
    S = structure.z.shape[0]
    n_psi = structure.psi_at.shape[1]
    first_psi = n - 1 - n_psi
    strata = work.strata
    theta = math.exp(par[n - 1])
    there = np.empty((10, S))
    for s in range(S):
        there[OF_G, s], there[OF_H, s], there[OF_T, s] = strata[G, s], strata[H, s], strata[T, s]
        there[OF_G_THETA, s], there[OF_H_THETA, s] = strata[G_THETA, s], strata[H_THETA, s]
    curvature = second_order(data.nodes, data.start, theta, strata, work.slope[0], there[T_ETA:])
    curvature += histogram_curvature(data.exceed, data.tail, theta)
    direction = np.empty(S)
    n_exact = first_psi if not joint and structure.z.shape[1] == 1 and q == S else 0
    bends, moved = np.empty(S), np.zeros((n_exact, S))
    if n_exact > 0:
        _bends(structure, there, work, bends)
    for i in range(n):
        fill(d_v[i], 0.0)
        fill(d_beta[i], 0.0)
        if free[i]:
            _move(structure, X, joint, i, first_psi, v, there, direction, work, d_v[i], d_beta[i])
    with_covariance = joint and central
    U, AU = np.zeros((p, q)), np.zeros((p, S))
    if with_covariance:
        for c in range(p):
            _column_of_beta(structure, X, c, work, U[c], AU[c])

    psi = par[first_psi : n - 1].copy()
    base, moved_gradient, v_there = np.zeros(n), np.empty(n), np.empty(q)
    if not central:
        copy_into(base, gradient)
        base[n - 1] -= work.slope[1]  # a constant, of which a move sees only the change
    for i in range(n):
        if not free[i]:
            continue
        _direction(structure, X, i, first_psi, v, direction)
        scaled_rows(structure, psi, work.zl)
        slope = curvature if i == n - 1 else 0.0
        e = 1.0 if i == n - 1 else 0.0
        _add_move(structure, X, joint, d_v[i], d_beta[i], work.zl, direction)
        if i < n_exact:
            _row_of_beta(X, i, there, direction, bends, moved, result)
            continue
        for s in range(S):
            slope += there[OF_G_THETA, s] * direction[s]
        if with_covariance:
            _differentiate_covariance(structure, i - first_psi, e, there, direction, U, AU, d_covariance[i])
        size = delta
        if first_psi <= i < n - 1:
            size *= max(1.0, abs(par[i]))  # large standard deviations have curvatures near rounding error
        for side in range(2 if central else 1):
            step = size if side == 0 else -size
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
                v_there[k] = v[k] + step * d_v[i, k]
            if first_psi <= i < n - 1:
                psi[i - first_psi] = par[i] + step
                scaled_rows(structure, psi, work.zl)
            finite = _factor(structure, X, joint, work)
            gradient_at(None, structure, X, joint, n_psi, v_there, step * slope, moved_gradient, work)
            for j in range(n):
                result[i, j] += weight * (moved_gradient[j] - base[j]) if finite else np.nan
        if first_psi <= i < n - 1:
            psi[i - first_psi] = par[i]
        for c in range(n_exact):
            result[c, i] = result[i, c]


@kernel
def _bends(structure, there, work, out):
    """Second derivative of -log|M|/2 in the linear predictor of every stratum, each of which is a level of its own.

    With a = b'M^-1 b it is -a (dT/deta)/2 + (a T)^2/2, and the mode that moves with T adds T b'q, q = M^-1 B'(a T)/2;
    inverse and q are those that the gradient has left.
    """
    for s in range(out.size):
        zl, t = work.zl[s, 0], there[OF_T, s]
        a = zl * zl * work.inverse[structure.place[s, 0]]
        out[s] = 0.5 * a * (a * t * t - there[T_ETA, s]) + zl * work.rhs[structure.z_column[s, 0], 0] * t


@kernel
def _row_of_beta(X, i, there, direction, bends, moved, result):
    """Put row i of the block of beta (ML) into the Hessian, and its column: exact, see `_bends`."""
    for s in range(direction.size):
        moved[i, s] = direction[s]
    for c in range(i + 1):
        total = 0.0
        for s in range(direction.size):
            total += direction[s] * (bends[s] * moved[c, s] - there[OF_H, s] * X[s, c])
        result[i, c] = total
        result[c, i] = total


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
def _column_of_beta(structure, X, c, work, U, AU):
    """Column of coefficient c in the inverse of the joint penalised Hessian, and what it does to the predictors."""
    rhs, rhs_beta = work.rhs, work.betas[RHS]
    for k in range(U.size):
        rhs[k, 0] = 0.0
    for d in range(X.shape[1]):
        rhs_beta[d] = 1.0 if d == c else 0.0
    solve_joint(structure.starts, structure.entries, True, work.values, work.fixed, work.schur, rhs, rhs_beta)
    for k in range(U.size):
        U[k] = rhs[k, 0]
    _add_move(structure, X, True, U, rhs_beta, work.zl, AU)


@kernel
def _differentiate_covariance(structure, psi_index, e, there, direction, U, AU, out):
    """Differentiate the covariance of beta in a parameter that moves the predictors by `direction`."""
    p, S = AU.shape
    is_psi = 0 <= psi_index < structure.psi_at.shape[1]
    row, column = 0, 0
    if is_psi:
        row, column = structure.psi_at[0, psi_index], structure.psi_at[1, psi_index]
    for s in range(S):
        change = there[OF_T, s] * direction[s] + there[OF_H_THETA, s] * e
        for c in range(p):
            for d in range(c + 1):
                out[c, d] -= change * AU[c, s] * AU[d, s]
        if is_psi:
            hz, k = there[OF_H, s] * structure.z[s, row], structure.z_column[s, column]
            for c in range(p):
                for d in range(c + 1):
                    out[c, d] -= hz * (U[c, k] * AU[d, s] + AU[c, s] * U[d, k])
    for c in range(p):
        for d in range(c):
            out[d, c] = out[c, d]


@kernel
def _add_move(structure, X, joint, move, move_beta, zl, direction):
    """Add to a direction what the move of the mode adds to the linear predictors."""
    for s in range(direction.size):
        for a in range(zl.shape[1]):
            direction[s] += zl[s, a] * move[structure.z_column[s, a]]
        if joint:
            for c in range(X.shape[1]):
                direction[s] += X[s, c] * move_beta[c]
