"""Second derivatives of the Laplace criterion: differences of its analytic gradient.

Used twice: roughly, at the start, as the metric of the search; exactly, at the optimum, for inference, where they also
give the last Newton step that takes the estimate from the tolerance of the search to rounding error.
"""

from __future__ import annotations

import math

import numpy as np

from scglmm._jit import entry

from .laplace import laplace
from .layout import copy_into

CENTRAL = 1e-4  # step of central differences: relative error about 1e-8
FORWARD = 1e-3


@entry
def hessian(data, structure, X, joint, par, free, central, beta, v, gradient, work, d_covariance, d_beta):
    """Hessian of the criterion over the free parameters.

    Parameters
    ----------
    central
        Central differences for all parameters, or (roughly) forward differences for psi and log(theta), the block of
        beta being that of the penalised Hessian, which `work` holds in its Schur complement.
    gradient
        At `par`; used by forward differences.
    d_covariance, d_beta
        Zeros (n, p, p) and (n, p). For REML the derivatives of the covariance of beta at fixed variances and of beta
        itself with respect to each parameter are added when `central`.

    Returns
    -------
    (n, n); rows and columns of parameters that are not free are 0. NaN where an evaluation failed.
    """
    n = par.size
    p = X.shape[1]
    first = 0 if joint else p
    result = np.zeros((n, n))
    if not (central or joint):
        for i in range(p):
            for j in range(p):
                for k in range(min(i, j) + 1):
                    result[i, j] -= work.schur[0, i, k] * work.schur[0, j, k]
    shifted = par.copy()
    gradient_there, beta_there, v_there = np.empty(n), beta.copy(), v.copy()
    for i in range(0 if central else first, n):
        if not free[i]:
            continue
        # The derivative in theta needs logarithms: it is computed for displacements of theta only, and its row
        # serves as its column.
        with_theta = i == n - 1
        delta = FORWARD
        if central:
            delta = CENTRAL * (10.0 if with_theta else 1.0)
        for side in range(2):
            sign = 1.0 if side == 0 else -1.0
            weight = sign / (2.0 * delta)
            if not central:
                weight = sign / delta
            if central or side == 0:
                shifted[i] = par[i] + sign * delta
                copy_into(beta_there, beta)
                copy_into(v_there, v)
                value = laplace(
                    data, structure, X, joint, with_theta, shifted, beta_there, v_there, gradient_there, work
                )
                for j in range(n):
                    result[i, j] += weight * gradient_there[j] if math.isfinite(value) else np.nan
                if joint and central:
                    for c in range(p):
                        d_beta[i, c] += weight * beta_there[c]
                        for d in range(p):
                            d_covariance[i, c, d] += weight * work.schur[1, c, d]
            else:
                for j in range(n):
                    result[i, j] += weight * gradient[j]
        shifted[i] = par[i]
    for i in range(n):
        for j in range(i):
            one_sided = i == n - 1 or (not central and j < first <= i)
            mean = result[i, j] if one_sided else 0.5 * (result[i, j] + result[j, i])
            if not (free[i] and free[j]):
                mean = 0.0
            result[i, j] = mean
            result[j, i] = mean
    return result


def positive_inverse(a: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Inverse of minus a Hessian, made positive definite; rows of parameters that are not free are 0.

    Eigenvalues of the matrix scaled to unit diagonal are replaced by their absolute values, bounded away from 0.
    """
    result = np.zeros_like(a)
    reduced = a if free.all() else a[free][:, free]
    diagonal = np.abs(reduced.diagonal())
    scale = 1 / np.sqrt(np.where(diagonal > 1e-10, diagonal, 1.0))  # false for NaN as well
    scale = scale[:, None] * scale
    scaled = -reduced * scale
    if not np.isfinite(scaled).all():
        scaled = np.where(np.isfinite(scaled), scaled, np.eye(len(scaled)))
    values, vectors = np.linalg.eigh(scaled)
    inverse = (vectors / np.maximum(0.02, np.abs(values))) @ vectors.T * scale
    result[np.outer(free, free)] = inverse.ravel()
    return result


def negative_definite(a: np.ndarray, free: np.ndarray) -> bool:
    """Whether a Hessian over the free parameters is finite and negative definite."""
    reduced = a[free][:, free]
    diagonal = reduced.diagonal()
    if not (np.isfinite(reduced).all() and (diagonal < 0).all()):
        return False
    scale = 1 / np.sqrt(-diagonal)
    return reduced.size == 0 or bool(np.linalg.eigvalsh(reduced * np.outer(scale, scale))[-1] < -1e-10)
