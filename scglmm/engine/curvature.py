"""Second derivatives of the Laplace criterion: differences of its analytic gradient, by expansion where that is exact.

Used twice: roughly, at the start, as the metric of the search; exactly, at the optimum, for inference, where they also
give the last Newton step that takes the estimate from the tolerance of the search to rounding error.
"""

from __future__ import annotations

import math

import numpy as np

from scglmm._jit import brief, entry, kernel

from .expansion import CENTRAL, EXPANDED, expand
from .laplace import laplace
from .layout import Data, copy_into
from .penalised import cholesky, cholesky_inverse

FORWARD = 1e-3
SMALLEST = 0.02  # of the eigenvalues of a Hessian that is used as a metric


@entry
def hessian(data, structure, X, joint, par, free, central, beta, v, gradient, work, d_covariance, d_beta, d_v):
    """Hessian of the criterion over the free parameters.

    Parameters
    ----------
    central
        Central differences, or (roughly) forward ones.
    beta, v, gradient, work
        What an evaluation of the criterion at `par` has left; `work` is overwritten.
    d_covariance, d_beta
        Zeros (n, p, p) and (n, p). For REML the derivatives of the covariance of beta at fixed variances and of beta
        itself with respect to each parameter when `central`.
    d_v
        (n, q). For plain NB2 the derivatives of the mode with respect to each parameter; `d_beta` as well, then.

    Returns
    -------
    (n, n); rows and columns of parameters that are not free are 0. NaN where an evaluation failed.
    """
    n, p = par.size, X.shape[1]
    result = np.zeros((n, n))
    fill_rows(
        data.extra, data, structure, X, joint, par, free, central, beta, v, gradient, work,
        d_covariance, d_beta, d_v, result,
    )  # fmt: skip
    first = 0 if joint else p
    exact = central or data.extra is None
    for i in range(n):
        for j in range(i):
            one_sided = i == n - 1 or (not exact and j < first <= i)
            mean = result[i, j] if one_sided else 0.5 * (result[i, j] + result[j, i])
            if not (free[i] and free[j]):
                mean = 0.0
            result[i, j] = mean
            result[j, i] = mean
    return result


@kernel
def fill_rows(
    extra, data, structure, X, joint, par, free, central, beta, v, gradient, work, d_covariance, d_beta, d_v, result
):
    """Fill the rows of the Hessian: of plain NB2 by expansion, of other families by evaluations."""
    if extra is None:
        delta = CENTRAL if central else EXPANDED
        expand(
            data, structure, X, joint, par, free, delta, central, v, gradient, work, d_v, d_beta, result, d_covariance
        )
    else:
        _differences(
            data, structure, X, joint, par, free, central, beta, v, gradient, work, d_covariance, d_beta, result
        )


@kernel
def _differences(data, structure, X, joint, par, free, central, beta, v, gradient, work, d_covariance, d_beta, result):
    """Differences of evaluations, for families whose strata depend on more than their linear predictor.

    Roughly, the block of beta (ML) is that of the penalised Hessian, which `work` holds in its Schur complement.
    """
    n = par.size
    first = 0 if joint else X.shape[1]
    if not (central or joint):
        for i in range(first):
            for j in range(first):
                for k in range(min(i, j) + 1):
                    result[i, j] -= work.schur[0, i, k] * work.schur[0, j, k]
    beta_there, v_there, gradient_there, shifted = beta.copy(), v.copy(), np.empty(n), par.copy()
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
                    for c in range(X.shape[1]):
                        d_beta[i, c] += weight * beta_there[c]
                        for d in range(X.shape[1]):
                            d_covariance[i, c, d] += weight * work.schur[1, c, d]
            else:
                for j in range(n):
                    result[i, j] += weight * gradient[j]
        shifted[i] = par[i]


def n_evaluations(data: Data, free: np.ndarray, first: int, central: bool) -> int:
    """Count the evaluations that `hessian` makes; `first` is the number of coefficients in front of psi."""
    if data.extra is None:
        return 0
    return (2 if central else 1) * int(free[0 if central else first :].sum())


def positive_inverse(a: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Inverse of minus a Hessian, made positive definite; rows of parameters that are not free are 0.

    Eigenvalues of the matrix scaled to unit diagonal are replaced by their absolute values, bounded away from 0.
    """
    result = np.zeros_like(a)
    if _invert(a, free, 1.0 / SMALLEST, result):
        return result
    reduced = a if free.all() else a[free][:, free]
    diagonal = np.abs(reduced.diagonal())
    scale = 1 / np.sqrt(np.where(diagonal > 1e-10, diagonal, 1.0))  # false for NaN as well
    scale = scale[:, None] * scale
    scaled = -reduced * scale
    if not np.isfinite(scaled).all():
        scaled = np.where(np.isfinite(scaled), scaled, np.eye(len(scaled)))
    values, vectors = np.linalg.eigh(scaled)
    inverse = (vectors / np.maximum(SMALLEST, np.abs(values))) @ vectors.T * scale
    result[:] = 0.0
    result[np.outer(free, free)] = inverse.ravel()
    return result


@brief
def _invert(a, free, largest, result):
    """Invert minus a Hessian over the free parameters, where that is plainly positive definite, into `result`.

    Returns
    -------
    False, and scratch in `result`, unless all eigenvalues of the inverse, scaled as the matrix to unit diagonal, are
    below `largest`: the root of their sum of squares is.
    """
    at = np.flatnonzero(free)
    n = at.size
    scale, scaled, inverse = np.empty(n), np.empty((n, n)), np.empty((n, n))
    for i in range(n):
        if not a[at[i], at[i]] < -1e-10:
            return False
        scale[i] = 1.0 / math.sqrt(-a[at[i], at[i]])
    for i in range(n):
        for j in range(n):
            scaled[i, j] = -a[at[i], at[j]] * scale[i] * scale[j]
    if not math.isfinite(cholesky(scaled)):
        return False
    cholesky_inverse(scaled, inverse)
    squares = 0.0
    for i in range(n):
        for j in range(n):
            squares += inverse[i, j] * inverse[i, j]
            result[at[i], at[j]] = inverse[i, j] * scale[i] * scale[j]
    return math.sqrt(squares) < largest


def negative_definite(a: np.ndarray, free: np.ndarray) -> bool:
    """Whether a Hessian over the free parameters is finite and negative definite."""
    if _invert(a, free, 1.0 / SMALLEST, np.empty_like(a)):
        return True
    reduced = a[free][:, free]
    diagonal = reduced.diagonal()
    if not (np.isfinite(reduced).all() and (diagonal < 0).all()):
        return False
    scale = 1 / np.sqrt(-diagonal)
    return reduced.size == 0 or bool(np.linalg.eigvalsh(reduced * np.outer(scale, scale))[-1] < -1e-10)
