"""Arrays of one model and the meaning of their rows.

Kernels take few, packed arrays: numba passes each array as seven numbers, and a signature of forty arrays costs more to
compile and to call than the arithmetic behind it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scglmm._jit import brief, kernel

# Rows of Data.nodes
NODE_E, NODE_A, NODE_Y = 0, 1, 2

# Rows of Work.strata: linear predictor without the offset, scratch, first derivative of the log-likelihood, curvature
# (minus the second), derivative of the curvature, derivatives of the first two in log(theta), scratch
ETA, STEP, G, H, T, G_THETA, H_THETA, FROM_ETA = 0, 1, 2, 3, 4, 5, 6, 7

# Rows of Extra.rows: logit of the zero-inflation probability; derivatives in it of the log-likelihood, of its first
# derivative in eta, of its curvature
ZETA, F_ZETA, G_ZETA, H_ZETA = 0, 1, 2, 3

# Rows of Work.betas: right-hand sides and solutions, gradient
RHS, GRADIENT = 0, 1

ROWS = 256  # strata whose rows of X are multiplied together: they stay in the cache
MAX_ETA = 300.0  # exp(300) squared is still finite


class Extra(NamedTuple):
    """What a response has that is not plain NB2.

    Its presence is part of the type of `Data`, so that the kernels are compiled for plain NB2 alone, with nothing else
    in them, and a second time for all other families together, when one of them is first used.
    """

    zi: np.ndarray  # (S, k) design of the logit of the zero-inflation probability; k = 0 without
    zeros: np.ndarray  # (N,) weights of the cells without counts, empty without zero inflation
    rows: np.ndarray  # (4, S) scratch, see ZETA


class Data(NamedTuple):
    """One gene on the nodes of `scglmm.compression`."""

    family: int  # code, see `scglmm.engine.families`
    start: np.ndarray  # (S + 1,) int64: nodes of stratum s are start[s]:start[s+1]
    nodes: np.ndarray  # (3, N) E = exp(offset), A = weights of the cells, Y = weights of the counts
    y_sum: np.ndarray  # (S,) counts of the stratum
    exceed: np.ndarray  # histogram of the counts, see `scglmm.engine.histogram`
    tail: np.ndarray  # (2, m) counts too large for `exceed`, and how many cells have them
    constant: float  # sum_i y_i o_i - lgamma(y_i + 1); Gaussian: sum of squares within the strata
    extra: Extra | None = None  # None for plain NB2


class Work(NamedTuple):
    """Scratch arrays of one model, so that nothing is allocated while it is fitted."""

    strata: np.ndarray  # (8, S)
    zl: np.ndarray  # (S, w) rows of Z Lambda
    rows: np.ndarray  # (S, w) the same times the inverse of M
    values: np.ndarray  # (q + nnz,) M, then its factor
    inverse: np.ndarray  # (q + nnz,) selected inverse
    fixed: np.ndarray  # (2, q, p) V then W = L^-1 V; U = M^-1 V
    schur: np.ndarray  # (2, p, p) Schur complement of beta then its Cholesky factor; its inverse
    rhs: np.ndarray  # (q, 1)
    effects: np.ndarray  # (3, q) two rows of zeros for the sparse kernels; gradient
    betas: np.ndarray  # (2, p)
    columns: np.ndarray  # (2 + w, p, at most ROWS) some rows of X, column by column, and what they are multiplied with
    slope: np.ndarray  # (2,) derivatives in log(theta) of the log-likelihoods of the nodes, and of all of them


@brief
def make_work(structure, X):
    """Allocate the scratch arrays of a model."""
    S, w = structure.z.shape
    p = X.shape[1]
    q = structure.starts.shape[1] - 1
    n = q + structure.entries.shape[1]
    return Work(
        np.zeros((8, S)),
        np.zeros((S, w)),
        np.zeros((S, w)),
        np.zeros(n),
        np.zeros(n),
        np.zeros((2, q, p)),
        np.zeros((2, p, p)),
        np.zeros((q, 1)),
        np.zeros((3, q)),
        np.zeros((2, p)),
        np.zeros((2 + w, max(1, p), min(S, ROWS))),
        np.zeros(2),
    )


@kernel
def copy_into(target, source):
    """``target[:] = source`` for vectors; slice assignment compiles to far more code."""
    for i in range(target.size):
        target[i] = source[i]


@kernel
def fill(target, value):
    """``target[:] = value`` for vectors."""
    for i in range(target.size):
        target[i] = value
