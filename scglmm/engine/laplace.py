"""Laplace approximation of the marginal likelihood (ML) or the restricted likelihood (REML), with its gradient.

    ML    l(beta, psi, theta) = f - v'v/2 - log|M|/2                        at the mode of v
    REML  l(psi, theta)       = f - v'v/2 - log|M_joint|/2 + (p/2) log 2 pi   at the joint mode of (v, beta)

The REML constant is glmmTMB's, which integrates beta over a flat prior. The gradient follows from the implicit function
theorem: with B = Z Lambda (ML) or [Z Lambda, X] (REML), a_s = b_s' M^-1 b_s from the selected inverse and
q = M^-1 B'(a t)/2,

    dl/dbeta  = X'(g - a t/2 + H B q)
    dl/dpsi   = g'delta - tr(M^-1 B'H dB) - (a t)'delta/2 - q'(dB'g - B'H delta),    delta = Z dLambda v
    dl/dtheta = df/dtheta - a'(dh/dtheta)/2 - q'B'(dg/dtheta)          and so for any other parameter of the strata

Symbols are those of `scglmm.engine.structure`; theta enters through its logarithm.
"""

from __future__ import annotations

import math

import numpy as np

from scglmm._jit import entry, kernel

from .families import add_inflation, derivatives, in_range, inflation_gradient, log_likelihood, set_inflation
from .layout import FROM_ETA, G_THETA, H_THETA, RHS, STEP, G, H, T, fill
from .ldl import selected_inverse, solve_upper
from .mode import EXACT, find_mode
from .penalised import assemble, cholesky_inverse, factor_joint, multiply, multiply_transposed, solve_joint


@entry
def laplace(data, structure, X, joint, with_theta, par, beta, v, gradient, work):
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
    par
        (beta, psi, log theta) for maximum likelihood, (psi, log theta) for REML; the coefficients of a zero inflation
        come before psi. For Gaussian responses theta is the residual variance, for Poisson it has no effect.
    beta, v
        Start of the inner iterations, overwritten by the mode; for maximum likelihood beta is overwritten by `par`.
    gradient
        Result, ordered as `par`.

    Returns
    -------
    The value; NaN when the mode was not reached or a Hessian is not positive definite.
    """
    first = 0 if joint else X.shape[1]
    for c in range(first):
        beta[c] = par[c]
    first_psi = par.size - 1 - structure.psi_at.shape[1]
    set_inflation(data.extra, par, first)
    psi = par[first_psi : par.size - 1]
    theta = math.exp(par[par.size - 1])
    if find_mode(data, structure, X, psi, theta, joint, beta, v, work, EXACT) < 0:
        return np.nan
    # Means are cut off there: what looks like a likelihood that keeps rising is not one.
    if not in_range(data.extra, data, work.strata):
        return np.nan
    derivatives(data.extra, data, theta, work.strata)
    value, slope = 0.0, 0.0
    if with_theta:
        value, slope, work.slope[0] = log_likelihood(data.extra, data, theta, work.strata)
        for i in range(v.size):
            value -= 0.5 * v[i] * v[i]
    starts, entries = structure.starts, structure.entries
    assemble(
        structure.z_column,
        structure.place,
        X,
        work.zl,
        work.strata,
        joint,
        work.values,
        work.fixed,
        work.schur,
    )
    log_det = factor_joint(starts, entries, joint, work.values, work.fixed, work.schur, work.effects[0])
    if not math.isfinite(log_det):
        return np.nan
    work.slope[1] = slope
    value -= 0.5 * log_det
    if joint:
        value += 0.5 * X.shape[1] * math.log(2.0 * math.pi)
    gradient_at(data.extra, structure, X, joint, psi.size, v, slope, gradient, work)
    inflation_gradient(data.extra, gradient, first)
    return value if with_theta else 0.0


@kernel
def gradient_at(extra, structure, X, joint, n_psi, v, slope, gradient, work):
    """Fill `gradient` from the factored Hessian and the derivatives of the strata; `slope` is df/dlog(theta)."""
    S, p = X.shape
    first_psi = gradient.size - 1 - n_psi
    z, zl, z_column, psi_at = structure.z, work.zl, structure.z_column, structure.psi_at
    starts, entries = structure.starts, structure.entries
    strata, rows, rhs = work.strata, work.rows, work.rhs
    g, h, a = strata[G], strata[H], strata[STEP]
    rhs_beta = work.betas[RHS]
    selected_inverse(work.values, starts, entries, work.inverse, work.effects)
    leverages(structure.place, zl, work.inverse, rows, a)
    if joint:
        U, covariance = work.fixed[1], work.schur[1]
        for i in range(v.size):
            for c in range(p):
                U[i, c] = work.fixed[0, i, c]
        solve_upper(work.values, starts, entries, U)
        cholesky_inverse(work.schur[0], covariance)
        _add_fixed(z_column, X, zl, U, covariance, a, rows, work.columns)

    # tr(M^-1 B'H dB)
    for k in range(n_psi):
        row, column = psi_at[0, k], psi_at[1, k]
        total = 0.0
        for s in range(S):
            total -= h[s] * z[s, row] * rows[s, column]
        gradient[first_psi + k] = total
    total = 0.0
    for s in range(S):
        total += a[s] * strata[H_THETA, s]
        add_inflation(extra, s, a[s], 0.0)
        a[s] *= 0.5 * strata[T, s]
    slope -= 0.5 * total

    # q; from here on `a` is a t / 2
    multiply_transposed(z_column, X, zl, joint, a, rhs, rhs_beta)
    solve_joint(starts, entries, joint, work.values, work.fixed, work.schur, rhs, rhs_beta)

    from_eta = strata[FROM_ETA]
    multiply(z_column, X, zl, joint, rhs, rhs_beta, from_eta)  # B q
    total = 0.0
    for s in range(S):
        bq = from_eta[s]
        total += bq * strata[G_THETA, s]
        add_inflation(extra, s, 0.0, bq)
        from_eta[s] = g[s] - a[s] + h[s] * bq
    gradient[first_psi + n_psi] = slope - total
    for k in range(n_psi):
        row, column = psi_at[0, k], psi_at[1, k]
        total = 0.0
        for s in range(S):
            effect = z_column[s, column]
            total += z[s, row] * (from_eta[s] * v[effect] - g[s] * rhs[effect, 0])
        gradient[first_psi + k] += total
    if not joint:
        for c in range(p):
            total = 0.0
            for s in range(S):
                total += X[s, c] * from_eta[s]
            gradient[c] = total


@kernel
def leverages(place, zl, inverse, rows, a):
    """a_s = b_s' M^-1 b_s into `a` (S,), and M^-1 b_s at the effects of stratum s into `rows` (S, w)."""
    S, w = zl.shape
    pair = 0
    for i in range(w):
        for s in range(S):
            rows[s, i] = 0.0
        for j in range(i):
            for s in range(S):
                entry = inverse[place[s, pair]]
                rows[s, i] += entry * zl[s, j]
                rows[s, j] += entry * zl[s, i]
            pair += 1
        for s in range(S):
            rows[s, i] += inverse[place[s, pair]] * zl[s, i]
        pair += 1
    fill(a, 0.0)
    for i in range(w):
        for s in range(S):
            a[s] += zl[s, i] * rows[s, i]


@kernel
def _add_fixed(z_column, X, zl, U, covariance, a, rows, columns):
    """Take a_s and M^-1 b_s to the joint inverse: with x~ = x - U'z they gain x~'C x~ and lose U C x~."""
    S, w = zl.shape
    p = X.shape[1]
    x_left, u, cx = columns[0], columns[2:], columns[1, 0]
    for first in range(0, S, cx.size):
        size = min(cx.size, S - first)
        # Column by column: compilers turn long loops into vector instructions and leave short ones as they are.
        for c in range(p):
            left = x_left[c, :size]
            for k in range(size):
                left[k] = X[first + k, c]
        for i in range(w):
            for c in range(p):
                left, own = x_left[c, :size], u[i, c, :size]
                for k in range(size):
                    own[k] = U[z_column[first + k, i], c]
                for k in range(size):
                    left[k] -= own[k] * zl[first + k, i]
        for c in range(p):
            for k in range(size):
                cx[k] = 0.0
            for d in range(p):
                left, weight = x_left[d, :size], covariance[c, d]
                for k in range(size):
                    cx[k] += weight * left[k]
            left, own = x_left[c, :size], a[first : first + size]
            for k in range(size):
                own[k] += left[k] * cx[k]
            for i in range(w):
                own = u[i, c, :size]
                for k in range(size):
                    rows[first + k, i] -= own[k] * cx[k]
