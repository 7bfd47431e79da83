"""REML criterion at given standard deviations of the random effects, maximised over theta.

What moderation across genes needs of a gene: how well its counts fit with donors that differ by sigma, for any sigma,
and what the fixed effects and their covariance would be there.
"""

from __future__ import annotations

import math

import numpy as np

from scglmm._jit import NO, YES, entry, kernel

from .laplace import laplace, leverages
from .layout import FROM_ETA, G_THETA, GRADIENT, RHS, STEP, G, H, T
from .optimise import LOG_THETA_MAX, LOG_THETA_MIN
from .penalised import multiply, multiply_transposed, solve_joint

MAX_STEPS = 8
CURVATURE_STEP = 0.02
MAX_THETA_STEP = 1.5


@entry
def profile(
    data, structure, X, psi, before, noise, log_theta, curvature, theta_is_free, promise, least, beta, v, work, value,
    betas, covariances,
):  # fmt: skip
    """Criterion, fixed effects and their covariance at each row of `psi`.

    Parameters
    ----------
    data, structure, X, work
        The gene, the random effects, the fixed effects (S, p), scratch.
    psi
        (K, n_psi) entries of Lambda; neighbours next to each other, since each search begins where the last ended.
    before
        (n_psi,) entries of Lambda to which `v` belongs; overwritten.
    noise
        (n_psi,) sampling variance of a level, roughly: from it follows how effects shrink from row to row.
    log_theta
        (K,) start for each row, to which is added what the last row has moved from its own.
    curvature
        Second derivative of the criterion in log(theta), roughly; 0 when it is not known.
    theta_is_free
        False holds theta where it starts, at its Poisson limit.
    promise
        Rise of the log-likelihood by another Newton step in log(theta) that is added without taking it.
    least
        Rows after one with a lower criterion than this are not evaluated; -inf for all rows.
    beta, v
        Start of the inner iterations at the first row; overwritten.
    value, betas, covariances
        Results: (K,) criterion with all constants, NaN where it could not be evaluated; (K, p), at the maximum of the
        Laplace likelihood; (K, p, p) of beta at fixed variances.
    """
    p, n_psi = X.shape[1], psi.shape[1]
    par, gradient = np.empty(n_psi + 1), np.empty(n_psi + 1)
    off = 0.0
    for k in range(psi.shape[0]):
        _shrink(structure, before, psi[k], noise, v)
        for i in range(n_psi):
            par[i] = psi[k, i]
            before[i] = psi[k, i]
        start = min(LOG_THETA_MAX, max(LOG_THETA_MIN, log_theta[k] + off))
        par[n_psi] = start
        here = laplace(data, structure, X, YES, YES, par, beta, v, gradient, work)
        if not math.isfinite(here):
            # What the last row left behind may be a bad start.
            for i in range(v.size):
                v[i] = 0.0
            here = laplace(data, structure, X, YES, YES, par, beta, v, gradient, work)
        if theta_is_free and math.isfinite(here):
            here = _maximise_theta(data, structure, X, par, here, curvature, promise, beta, v, gradient, work)
            off += par[n_psi] - start
        value[k] = here
        _laplace_beta(structure, X, beta, work, betas[k])
        for c in range(p):
            for d in range(p):
                covariances[k, c, d] = work.schur[1, c, d]
        if here < least:
            value[k + 1 :] = np.nan
            return


@kernel
def _shrink(structure, before, psi, noise, v):
    """Take spherical effects to where other standard deviations put them: to d psi / (psi^2 + noise) for some d."""
    seen = np.zeros(v.size, np.bool_)
    for k in range(psi.size):
        if before[k] == psi[k] or before[k] == 0.0:
            continue
        ratio = psi[k] / before[k] * (before[k] ** 2 + noise[k]) / (psi[k] ** 2 + noise[k])
        slot = structure.psi_at[1, k]
        for s in range(structure.z_column.shape[0]):
            effect = structure.z_column[s, slot]
            if not seen[effect]:
                seen[effect] = True
                v[effect] *= ratio


@kernel
def _laplace_beta(structure, X, beta, work, found):
    """Maximum of the Laplace likelihood in beta near the joint mode: one Newton step.

    The joint mode of (v, beta) lies too close to 0 where donors differ much and have few counts. The gradient of the
    Laplace likelihood there needs nothing that the REML criterion has not left in `work`:
    X'(g - a t/2) + X'H Z Lambda q with a_s = z_s' M^-1 z_s and q = M^-1 Lambda'Z'(a t)/2 (see `scglmm.engine.laplace`).
    """
    S, p = X.shape
    zl, rows, z_column = work.zl, work.rows, structure.z_column
    strata, rhs, gradient = work.strata, work.rhs, work.betas[GRADIENT]
    half, from_eta = strata[STEP], strata[FROM_ETA]
    leverages(structure.place, zl, work.inverse, rows, half)
    for s in range(S):
        half[s] *= 0.5 * strata[T, s]
    multiply_transposed(z_column, X, zl, NO, half, rhs, gradient)
    solve_joint(structure.starts, structure.entries, NO, work.values, work.fixed, work.schur, rhs, gradient)
    multiply(z_column, X, zl, NO, rhs, gradient, from_eta)
    for s in range(S):
        from_eta[s] = strata[G, s] - half[s] + strata[H, s] * from_eta[s]
    for c in range(p):
        gradient[c] = 0.0
        for s in range(S):
            gradient[c] += X[s, c] * from_eta[s]
    for c in range(p):
        found[c] = beta[c]
        for d in range(p):
            found[c] += work.schur[1, c, d] * gradient[d]


@entry
def _maximise_theta(data, structure, X, par, value, curvature, promise, beta, v, gradient, work):
    """Newton in log(theta) with a secant for the curvature; returns the value.

    Leaves `par`, `beta`, `v` and `work` at the last evaluation, whose `promise` is added to the value.
    """
    last = par.size - 1
    for _ in range(MAX_STEPS):
        slope = gradient[last]
        if not curvature < 0.0:
            at = par[last]
            par[last] = at - CURVATURE_STEP if at > 0.0 else at + CURVATURE_STEP
            _move_mode(structure, X, par[last] - at, beta, v, work)
            there = laplace(data, structure, X, YES, YES, par, beta, v, gradient, work)
            if not math.isfinite(there):
                return value
            curvature = (gradient[last] - slope) / (par[last] - at)
            value, slope = there, gradient[last]
        if curvature < 0.0 and 0.5 * slope * slope < -promise * curvature:
            return value - 0.5 * slope * slope / curvature
        # Where the criterion is not concave in log(theta), uphill.
        step = -slope / curvature if curvature < 0.0 else math.copysign(MAX_THETA_STEP, slope)
        step = min(MAX_THETA_STEP, max(-MAX_THETA_STEP, step))
        before = par[last]
        _move_mode(structure, X, step, beta, v, work)
        for _ in range(6):
            par[last] = min(LOG_THETA_MAX, max(LOG_THETA_MIN, before + step))
            trial = laplace(data, structure, X, YES, YES, par, beta, v, gradient, work)
            if math.isfinite(trial) and trial >= value - 1e-9 * abs(value):
                break
            step *= 0.25
        if not math.isfinite(trial) or par[last] == before:
            return value
        curvature = (gradient[last] - slope) / (par[last] - before)
        value = trial
    return value


@kernel
def _move_mode(structure, X, step, beta, v, work):
    """Take (v, beta) from the mode to where it will be after a step in log(theta): M_joint^-1 A'g_theta each.

    `work` is what the criterion has left at the mode.
    """
    rhs, rhs_beta = work.rhs, work.betas[RHS]
    multiply_transposed(structure.z_column, X, work.zl, YES, work.strata[G_THETA], rhs, rhs_beta)
    solve_joint(structure.starts, structure.entries, YES, work.values, work.fixed, work.schur, rhs, rhs_beta)
    for k in range(v.size):
        v[k] += step * rhs[k, 0]
    for c in range(beta.size):
        beta[c] += step * rhs_beta[c]
