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
from .layout import G_THETA, H_THETA, RHS, SCRATCH, STEP, G, H, T
from .ldl import selected_inverse, solve_upper
from .mode import EXACT, find_mode
from .penalised import assemble, cholesky_inverse, factor_joint, solve_joint


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
    value -= 0.5 * log_det
    if joint:
        value += 0.5 * X.shape[1] * math.log(2.0 * math.pi)
    gradient_at(data.extra, structure, X, joint, psi.size, v, slope, gradient, work)
    inflation_gradient(data.extra, gradient, first)
    return value if with_theta else 0.0


@kernel
def gradient_at(extra, structure, X, joint, n_psi, v, slope, gradient, work):
    """Fill `gradient` from the factored Hessian and the derivatives of the strata; `slope` is df/dlog(theta)."""
    S, w = structure.z.shape
    p = X.shape[1]
    q = v.size
    first_psi = gradient.size - 1 - n_psi
    z, zl, z_column, place, psi_at = (
        structure.z,
        work.zl,
        structure.z_column,
        structure.place,
        structure.psi_at,
    )
    starts, entries = structure.starts, structure.entries
    strata, inverse, rhs = work.strata, work.inverse, work.rhs
    rhs_beta, x_left = work.betas[RHS], work.betas[SCRATCH]
    U, covariance = work.fixed[1], work.schur[1]
    selected_inverse(work.values, starts, entries, inverse, work.effects)
    if joint:
        for i in range(q):
            for c in range(p):
                U[i, c] = work.fixed[0, i, c]
        solve_upper(work.values, starts, entries, U)
        cholesky_inverse(work.schur[0], covariance)
    for i in range(gradient.size):
        gradient[i] = 0.0
    for i in range(q):
        rhs[i, 0] = 0.0
    for c in range(p):
        rhs_beta[c] = 0.0

    # a_s, tr(M^-1 B'H dB), and the right-hand side of q. `row` is M^-1 b_s at the effects of stratum s.
    row = np.empty(w)
    for s in range(S):
        for i in range(w):
            row[i] = 0.0
        pair = 0
        for i in range(w):
            for j in range(i + 1):
                entry = inverse[place[s, pair]]
                row[i] += entry * zl[s, j]
                if i != j:
                    row[j] += entry * zl[s, i]
                pair += 1
        a = 0.0
        if joint:
            # With x~ = x - U'z, the random part of M_joint^-1 b_s loses U C x~, and a_s gains x~'C x~.
            for c in range(p):
                x = X[s, c]
                for i in range(w):
                    x -= U[z_column[s, i], c] * zl[s, i]
                x_left[c] = x
            for c in range(p):
                cx = 0.0
                for d in range(p):
                    cx += covariance[c, d] * x_left[d]
                a += X[s, c] * cx
                for i in range(w):
                    row[i] -= U[z_column[s, i], c] * cx
        for i in range(w):
            a += zl[s, i] * row[i]
        for k in range(n_psi):
            gradient[first_psi + k] -= strata[H, s] * z[s, psi_at[0, k]] * row[psi_at[1, k]]
        slope -= 0.5 * a * strata[H_THETA, s]
        add_inflation(extra, s, a, 0.0)
        half = 0.5 * a * strata[T, s]
        strata[STEP, s] = half
        for i in range(w):
            rhs[z_column[s, i], 0] += zl[s, i] * half
        if joint:
            for c in range(p):
                rhs_beta[c] += X[s, c] * half
    solve_joint(starts, entries, joint, work.values, work.fixed, work.schur, rhs, rhs_beta)

    for s in range(S):
        half = strata[STEP, s]
        bq = 0.0
        for i in range(w):
            bq += zl[s, i] * rhs[z_column[s, i], 0]
        if joint:
            for c in range(p):
                bq += X[s, c] * rhs_beta[c]
        from_eta = strata[G, s] - half + strata[H, s] * bq
        for k in range(n_psi):
            effect = z_column[s, psi_at[1, k]]
            gradient[first_psi + k] += z[s, psi_at[0, k]] * (from_eta * v[effect] - strata[G, s] * rhs[effect, 0])
        if not joint:
            for c in range(p):
                gradient[c] += X[s, c] * from_eta
        slope -= bq * strata[G_THETA, s]
        add_inflation(extra, s, 0.0, bq)
    gradient[first_psi + n_psi] = slope
