"""What is known of the random effects at the mode: their conditional covariance, and the trace of the hat matrix.

With H the curvature of the log-likelihood and B = [Z Lambda, X], the penalised Hessian of (v, beta) is

    [ M   V ]^-1     [ M^-1 + U C U'   -U C ]
    [ V'  F ]     =  [     -C U'         C  ],      U = M^-1 V,  C = (F - V'M^-1 V)^-1

M^-1 is the covariance of v given the data at fixed beta, the left upper block the one that counts the estimation of
beta as well. The fit responds to the data as a linear smoother would, with trace tr[(B'HB + P)^-1 B'HB], P the penalty:
the number of effective parameters, random effects included.
"""

from __future__ import annotations

from scglmm._jit import YES, entry

from .ldl import selected_inverse, solve_upper
from .penalised import assemble, cholesky_inverse, factor_joint


@entry
def posterior(structure, X, work):
    """Invert the penalised Hessian where `scglmm.engine.laplace.laplace` left its curvature.

    Parameters
    ----------
    structure, X, work
        As for `laplace`; ``work.strata`` and ``work.zl`` hold the point. On return ``work.inverse`` holds M^-1 on the
        pattern of its factor, ``work.fixed[1]`` U and ``work.schur[1]`` C.

    Returns
    -------
    Trace of the hat matrix; NaN when the Hessian is not positive definite.
    """
    starts, entries = structure.starts, structure.entries
    q, p = work.fixed.shape[1], X.shape[1]
    assemble(structure.z_column, structure.place, X, work.zl, work.strata, YES, work.values, work.fixed, work.schur)
    log_det = factor_joint(starts, entries, YES, work.values, work.fixed, work.schur, work.effects[0])
    selected_inverse(work.values, starts, entries, work.inverse, work.effects)
    U, C = work.fixed[1], work.schur[1]
    for i in range(q):
        for c in range(p):
            U[i, c] = work.fixed[0, i, c]
    solve_upper(work.values, starts, entries, U)
    cholesky_inverse(work.schur[0], C)
    trace = float(p + q) + 0.0 * log_det
    for i in range(q):
        trace -= work.inverse[i]
        for c in range(p):
            for d in range(p):
                trace -= U[i, c] * C[c, d] * U[i, d]
    return trace
