"""Numeric sparse LDL' on a fixed pattern: factor, solve, selected inverse (Davis 2006, doi 10.1137/1.9780898718881).

All kernels work on the layout of `scglmm.engine.structure.Structure`: ``values[:q]`` is the diagonal and ``values[q:]``
the strict lower triangle, column by column. For one random intercept there is nothing below the diagonal and
each of them is a loop over the diagonal.
"""

from __future__ import annotations

import math

import numpy as np

from scglmm._jit import entry

TINY, HUGE = 1e-150, 1e150  # products of two numbers between these are finite and not 0


@entry
def factor(values, starts, entries, work):
    """Overwrite M by its factor: D on the diagonal, L below it. Left-looking, column by column.

    Parameters
    ----------
    values
        (q + nnz,) the lower triangle of M; entries of fill are 0. Overwritten.
    starts, entries
        The pattern.
    work
        (q,) zeros; zeros again on return.

    Returns
    -------
    The logarithm of the determinant of M, or NaN when M is not positive definite.
    """
    q = starts.shape[1] - 1
    log_det, product = 0.0, 1.0  # a logarithm of every pivot would cost more than all the rest
    for j in range(q):
        start, stop = starts[0, j], starts[0, j + 1]
        pivot = values[j]
        for t in range(start, stop):
            work[entries[0, t]] = values[q + t]
        for r in range(starts[1, j], starts[1, j + 1]):
            k, place = entries[1, r], entries[2, r]
            scaled = values[q + place] * values[k]
            pivot -= values[q + place] * scaled
            for t in range(place + 1, starts[0, k + 1]):
                work[entries[0, t]] -= values[q + t] * scaled
        if not pivot > 0.0:
            for t in range(start, stop):
                work[entries[0, t]] = 0.0
            return np.nan
        values[j] = pivot
        if TINY < pivot < HUGE:
            product *= pivot
            if not TINY < product < HUGE:
                log_det += math.log(product)
                product = 1.0
        else:
            log_det += math.log(pivot)
        for t in range(start, stop):
            values[q + t] = work[entries[0, t]] / pivot
            work[entries[0, t]] = 0.0
    return log_det + math.log(product)


@entry
def solve_lower(values, starts, entries, x):
    """Overwrite x (q, m) by the solution of L y = x."""
    q = starts.shape[1] - 1
    for c in range(x.shape[1]):
        for j in range(q):
            for t in range(starts[0, j], starts[0, j + 1]):
                x[entries[0, t], c] -= values[q + t] * x[j, c]


@entry
def solve_upper(values, starts, entries, x):
    """Overwrite x (q, m) by the solution of D L' y = x."""
    q = starts.shape[1] - 1
    for c in range(x.shape[1]):
        for j in range(q - 1, -1, -1):
            solved = x[j, c] / values[j]
            for t in range(starts[0, j], starts[0, j + 1]):
                solved -= values[q + t] * x[entries[0, t], c]
            x[j, c] = solved


@entry
def selected_inverse(values, starts, entries, inverse, work):
    """Entries of M^-1 on the pattern of L (Takahashi's equations).

    Column j needs only entries whose two indices both lie in the pattern of column j, and those are on the pattern
    of L because elimination has filled it.

    Parameters
    ----------
    values
        The factor.
    starts, entries
        The pattern.
    inverse
        (q + nnz,) result, laid out as `values`.
    work
        (2, q) zeros; zeros again on return.
    """
    q = starts.shape[1] - 1
    for j in range(q - 1, -1, -1):
        start, stop = starts[0, j], starts[0, j + 1]
        for t in range(start, stop):
            work[0, entries[0, t]] = values[q + t]
        for t in range(start, stop):
            k = entries[0, t]
            l_kj = values[q + t]
            work[1, k] -= inverse[k] * l_kj
            for r in range(starts[0, k], starts[0, k + 1]):
                # L_ij is 0 unless i is in column j's pattern, and what is added to work[1, i] then is never read.
                i = entries[0, r]
                work[1, k] -= inverse[q + r] * work[0, i]
                work[1, i] -= inverse[q + r] * l_kj
        diagonal = 1.0 / values[j]
        for t in range(start, stop):
            i = entries[0, t]
            inverse[q + t] = work[1, i]
            diagonal -= values[q + t] * work[1, i]
        inverse[j] = diagonal
        for t in range(start, stop):
            k = entries[0, t]
            work[0, k] = 0.0
            work[1, k] = 0.0
            for r in range(starts[0, k], starts[0, k + 1]):
                work[1, entries[0, r]] = 0.0
