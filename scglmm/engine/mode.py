"""Inner problem: the mode of the penalised log-likelihood f(beta, v) - v'v/2 in (v, beta), or in v alone.

NB2, Poisson and Gaussian log-likelihoods are concave in the linear predictor, so Newton's method with a step control
on the slope along the step is enough: a concave function has passed its maximum on the line when the slope has
changed sign, and no value of the function, hence no logarithm, is needed. Zero-inflated ones are not concave: where the
Hessian is not positive definite, strata with negative curvature are taken as flat.
"""

from __future__ import annotations

import math

from scglmm._jit import YES, kernel

from .families import make_concave, score_curvature
from .layout import ETA, GRADIENT, RHS, STEP, G
from .penalised import assemble, factor_joint, multiply, multiply_transposed, scaled_rows, solve_joint

MAX_NEWTON = 200
MAX_STEP = 4.0  # largest change of a linear predictor in one step: a factor of 55 in the mean
EXACT, NEAR = 1e-11, 1e-2  # squared Newton decrement: the last step then leaves a gradient near rounding error; a start


@kernel
def find_mode(data, structure, X, psi, theta, joint, beta, v, work, tolerance):
    """Newton from (beta, v), both overwritten by the mode; beta only when `joint`.

    `tolerance` is `EXACT` or `NEAR`. Also leaves the linear predictors and the rows of Z Lambda in `work`.

    Returns
    -------
    The number of Newton steps, or -1 when the mode was not reached.
    """
    S, p = X.shape
    z_column, starts, entries = structure.z_column, structure.starts, structure.entries
    zl, strata, values, fixed, schur = work.zl, work.strata, work.values, work.fixed, work.schur
    rhs, grad_v = work.rhs, work.effects[2]
    rhs_beta, grad_beta = work.betas[RHS], work.betas[GRADIENT]
    scaled_rows(structure, psi, zl)
    multiply(z_column, X, zl, YES, v.reshape(v.size, 1), beta, strata[ETA])
    score_curvature(data.extra, data, theta, strata)
    for iteration in range(MAX_NEWTON):
        assemble(z_column, structure.place, X, zl, strata, joint, values, fixed, schur)
        log_det = factor_joint(starts, entries, joint, values, fixed, schur, work.effects[0])
        if not (math.isfinite(log_det) or _factor_concave(data.extra, structure, X, joint, work)):
            return -1
        _gradient(z_column, X, zl, strata, v, joint, rhs, rhs_beta)
        for i in range(v.size):
            grad_v[i] = rhs[i, 0]
        for c in range(p):
            grad_beta[c] = rhs_beta[c]
        solve_joint(starts, entries, joint, values, fixed, schur, rhs, rhs_beta)
        slope = 0.0
        for i in range(v.size):
            slope += grad_v[i] * rhs[i, 0]
        if joint:
            for c in range(p):
                slope += grad_beta[c] * rhs_beta[c]
        if not math.isfinite(slope):
            return -1
        multiply(z_column, X, zl, joint, rhs, rhs_beta, strata[STEP])
        largest = 0.0
        for s in range(S):
            largest = max(largest, abs(strata[STEP, s]))
        length = min(1.0, MAX_STEP / largest) if largest > 0.0 else 1.0
        done = slope < tolerance and length == 1.0
        moved = 0.0
        for _ in range(60):
            for s in range(S):
                strata[ETA, s] += (length - moved) * strata[STEP, s]
            for i in range(v.size):
                v[i] += (length - moved) * rhs[i, 0]
            if joint:
                for c in range(p):
                    beta[c] += (length - moved) * rhs_beta[c]
            moved = length
            if done:
                return iteration + 1
            score_curvature(data.extra, data, theta, strata)
            end_slope = 0.0
            for s in range(S):
                end_slope += strata[G, s] * strata[STEP, s]
            for i in range(v.size):
                end_slope -= v[i] * rhs[i, 0]
            if end_slope >= -0.5 * slope:
                break
            length *= min(0.7, max(0.1, slope / (slope - end_slope)))
    return -1


@kernel
def _factor_concave(extra, structure, X, joint, work):
    """Factor the Hessian without negative curvatures; whether that worked. Plain NB2 has none."""
    if extra is None:
        return False
    make_concave(work.strata)
    assemble(structure.z_column, structure.place, X, work.zl, work.strata, joint, work.values, work.fixed, work.schur)
    starts, entries = structure.starts, structure.entries
    log_det = factor_joint(starts, entries, joint, work.values, work.fixed, work.schur, work.effects[0])
    return math.isfinite(log_det)


@kernel
def _gradient(z_column, X, zl, strata, v, joint, rhs, rhs_beta):
    """Gradient of the penalised log-likelihood: [(Z Lambda)'g - v; X'g]."""
    multiply_transposed(z_column, X, zl, joint, strata[G], rhs, rhs_beta)
    for i in range(v.size):
        rhs[i, 0] -= v[i]
