"""Numeric sparse LDL' on a fixed pattern: factor, solve, selected inverse (Davis 2006, doi 10.1137/1.9780898718881).

All kernels work on the layout of `scglmm.engine.structure.Structure`: ``values[:q]`` is the diagonal and ``values[q:]``
the strict lower triangle, column by column. For one random intercept there is nothing below the diagonal and
each of them is a loop over the diagonal.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def factor(values, column_start, row_index, row_start, row_column, row_place, work):
    """Overwrite M by its factor: D on the diagonal, L below it. Left-looking, column by column.

    Parameters
    ----------
    values
        (q + nnz,) the lower triangle of M; entries of fill are 0. Overwritten.
    column_start, row_index, row_start, row_column, row_place
        The pattern.
    work
        (q,) zeros; zeros again on return.

    Returns
    -------
    The logarithm of the determinant of M, or NaN when M is not positive definite.
    """
    q = column_start.size - 1
    log_det = 0.0
    for j in range(q):
        start, stop = column_start[j], column_start[j + 1]
        pivot = values[j]
        for t in range(start, stop):
            work[row_index[t]] = values[q + t]
        for r in range(row_start[j], row_start[j + 1]):
            k, place = row_column[r], row_place[r]
            scaled = values[q + place] * values[k]
            pivot -= values[q + place] * scaled
            for t in range(place + 1, column_start[k + 1]):
                work[row_index[t]] -= values[q + t] * scaled
        if not pivot > 0.0:
            for t in range(start, stop):
                work[row_index[t]] = 0.0
            return np.nan
        values[j] = pivot
        log_det += np.log(pivot)
        for t in range(start, stop):
            values[q + t] = work[row_index[t]] / pivot
            work[row_index[t]] = 0.0
    return log_det


@njit(cache=True, nogil=True)
def solve_lower(values, column_start, row_index, x):
    """Overwrite x (q, m) by the solution of L y = x."""
    q = column_start.size - 1
    for j in range(q):
        for t in range(column_start[j], column_start[j + 1]):
            for c in range(x.shape[1]):
                x[row_index[t], c] -= values[q + t] * x[j, c]


@njit(cache=True, nogil=True)
def solve_upper(values, column_start, row_index, x):
    """Overwrite x (q, m) by the solution of D L' y = x."""
    q = column_start.size - 1
    for j in range(q - 1, -1, -1):
        for c in range(x.shape[1]):
            x[j, c] /= values[j]
        for t in range(column_start[j], column_start[j + 1]):
            for c in range(x.shape[1]):
                x[j, c] -= values[q + t] * x[row_index[t], c]


@njit(cache=True, nogil=True)
def selected_inverse(values, column_start, row_index, inverse, work):
    """Entries of M^-1 on the pattern of L (Takahashi's equations).

    Column j needs only entries whose two indices both lie in the pattern of column j, and those are on the pattern
    of L because elimination has filled it.

    Parameters
    ----------
    values
        The factor.
    column_start, row_index
        The pattern of L by columns.
    inverse
        (q + nnz,) result, laid out as `values`.
    work
        (2, q) zeros; zeros again on return.
    """
    q = column_start.size - 1
    for j in range(q - 1, -1, -1):
        start, stop = column_start[j], column_start[j + 1]
        for t in range(start, stop):
            work[0, row_index[t]] = values[q + t]
        for t in range(start, stop):
            k = row_index[t]
            l_kj = values[q + t]
            work[1, k] -= inverse[k] * l_kj
            for r in range(column_start[k], column_start[k + 1]):
                i = row_index[r]
                # L_ij is 0 unless i is in column j's pattern, and what is added to work[1, i] then is never read.
                if work[0, i] != 0.0:
                    work[1, k] -= inverse[q + r] * work[0, i]
                work[1, i] -= inverse[q + r] * l_kj
        diagonal = 1.0 / values[j]
        for t in range(start, stop):
            i = row_index[t]
            inverse[q + t] = work[1, i]
            diagonal -= values[q + t] * work[1, i]
        inverse[j] = diagonal
        for t in range(start, stop):
            k = row_index[t]
            work[0, k] = 0.0
            work[1, k] = 0.0
            for r in range(column_start[k], column_start[k + 1]):
                work[1, row_index[r]] = 0.0
