"""Random-effect structure: where every number of the penalised Hessian goes, worked out once for all genes.

With spherical random effects ``u = Lambda v`` the Hessian of the penalised log-likelihood in ``v`` is
``M = Lambda' Z' H Z Lambda + I`` (Bates et al. 2015, doi 10.18637/jss.v067.i01, section 3). Its pattern depends on
the design only, so the ordering, the elimination tree and the pattern of ``L`` in ``M = L D L'`` are computed once,
and a gene only fills in numbers. ``Z`` itself is never formed: a stratum has one row with `n_slots` entries, one
*slot* for each column of each term.

Symbols, used in the whole engine:

S, N, p, q
    Numbers of strata, nodes, fixed effects, random effects.
w
    Slots per stratum: the sum over terms of their number of columns.
z, z_column
    Entries of the row of ``Z`` of a stratum and the (reordered) random effects they multiply.
psi
    The free entries of ``Lambda``, lower triangles of the terms one after another, column by column.
    Their diagonal may pass through zero: the sign of a column of ``Lambda`` is not identified.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from scglmm._jit import entry


class Structure(NamedTuple):
    """Symbolic analysis of the random effects (see the module's docstring for the symbols).

    Diagonal entries of ``M`` live in ``values[:q]``, those of the strict lower triangle of ``L`` in
    ``values[q:]``, column by column.
    """

    z: np.ndarray  # (S, w) float64
    z_column: np.ndarray  # (S, w) int32
    place: np.ndarray  # (S, w (w+1)/2) int32: where the product of slots a >= b goes in values
    psi_at: np.ndarray  # (3, n_psi) int32: Lambda[row, column] = psi, in slots; term
    starts: np.ndarray  # (2, q + 1) int32: first entry of each column, of each row, of the triangle
    entries: np.ndarray  # (3, nnz) int32: row of an entry by columns; column, and place by columns, of one by rows


def analyse(
    codes: list[np.ndarray], n_levels: list[int], covariates: list[np.ndarray], n_strata: int
) -> tuple[Structure, np.ndarray]:
    """Order the random effects and find the pattern of the factor.

    Parameters
    ----------
    codes
        One array of `n_strata` level numbers for each term.
    n_levels
        Number of levels of each term.
    covariates
        One array (`n_strata`, columns of the term) for each term; a random intercept is a column of ones.
    n_strata
        Number of strata, needed when there is no term.

    Returns
    -------
    structure
        For the kernels.
    order
        (q,) where each random effect went: effects are counted by terms, levels, columns in turn.
    """
    widths = [c.shape[1] for c in covariates]
    w = sum(widths)
    z = np.hstack([*covariates, np.empty((n_strata, 0))]).astype(np.float64)
    natural = np.empty((n_strata, w), np.int64)
    psi_row: list[int] = []
    psi_col: list[int] = []
    psi_term: list[int] = []
    first_slot = first_effect = 0
    for term, (code, levels, width) in enumerate(zip(codes, n_levels, widths, strict=True)):
        for column in range(width):
            natural[:, first_slot + column] = first_effect + code * width + column
            psi_col += [first_slot + column] * (width - column)
            psi_row += range(first_slot + column, first_slot + width)
            psi_term += [term] * (width - column)
        first_slot += width
        first_effect += levels * width
    q = first_effect

    order = _fill_reducing_order(natural, n_levels, widths, q)
    z_column = order[natural].astype(np.int32)
    rows, columns = [], []
    for a in range(w):
        for b in range(a + 1):
            rows.append(np.maximum(z_column[:, a], z_column[:, b]))
            columns.append(np.minimum(z_column[:, a], z_column[:, b]))
    pattern = _lower_pattern(rows, columns, q)
    parent, counts = _elimination_tree(pattern.indptr, pattern.indices, q)
    row_start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    row_column = _row_patterns(pattern.indptr, pattern.indices, parent, row_start)
    # The rows of L in turn give its columns sorted by row, so one counting pass turns one order into the other.
    column_of = np.argsort(row_column, kind="stable")
    row_of_entry = np.repeat(np.arange(q, dtype=np.int32), np.diff(row_start))
    row_index = row_of_entry[column_of].astype(np.int32)
    column_start = np.concatenate([[0], np.cumsum(np.bincount(row_column, minlength=q))]).astype(np.int32)
    row_place = np.empty(row_column.size, np.int32)
    row_place[column_of] = np.arange(row_column.size, dtype=np.int32)

    place = np.empty((n_strata, len(rows)), np.int32)
    keys = np.repeat(np.arange(q, dtype=np.int64), np.diff(column_start)) * q + row_index
    for pair, (lower, upper) in enumerate(zip(rows, columns, strict=True)):
        wanted = upper.astype(np.int64) * q + lower
        place[:, pair] = np.where(lower == upper, lower, q + np.searchsorted(keys, wanted))
    structure = Structure(
        z=np.ascontiguousarray(z),
        z_column=z_column,
        place=place,
        psi_at=np.array([psi_row, psi_col, psi_term], np.int32),
        starts=np.stack([column_start, row_start]),
        entries=np.stack([row_index, row_column, row_place]),
    )
    return structure, order


def _fill_reducing_order(natural: np.ndarray, n_levels: list[int], widths: list[int], q: int) -> np.ndarray:
    """Position of every random effect in the elimination order: minimum degree on the pattern of Z'Z."""
    if len(n_levels) < 2:
        return np.arange(q)  # one term: blocks on the diagonal, no fill in any order
    n_strata, w = natural.shape
    ones = np.ones(n_strata * w)
    z = sp.csc_array((ones, (np.repeat(np.arange(n_strata), w), natural.ravel())), shape=(n_strata, q))
    gram = sp.csc_matrix(z.T @ z)
    gram.data[:] = -1.0
    gram = sp.csc_matrix(gram + sp.diags_array(np.full(q, 2.0 * q + 2.0)))
    factor = splu(gram, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    # SuperLU's perm_c[j] is where column j goes.
    return factor.perm_c.astype(np.int64)


def _lower_pattern(rows: list[np.ndarray], columns: list[np.ndarray], q: int) -> sp.csr_array:
    """Strict lower triangle of the pattern of M, row by row, columns sorted."""
    if not rows or q == 0:
        return sp.csr_array((q, q))
    row, column = np.concatenate(rows), np.concatenate(columns)
    below = row != column
    key = np.unique(row[below].astype(np.int64) * q + column[below])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(key // q, minlength=q))])
    return sp.csr_array((np.ones(key.size), key % q, indptr), shape=(q, q))


@entry
def _elimination_tree(indptr, indices, q):
    """Parent of every column in the elimination tree and the number of entries in each row of L (Liu 1990)."""
    parent = np.full(q, -1, np.int32)
    seen = np.full(q, -1, np.int32)
    counts = np.zeros(q, np.int64)
    for i in range(q):
        seen[i] = i
        for t in range(indptr[i], indptr[i + 1]):
            k = indices[t]
            while seen[k] != i:
                if parent[k] == -1:
                    parent[k] = i
                seen[k] = i
                counts[i] += 1
                k = parent[k]
    return parent, counts


@entry
def _row_patterns(indptr, indices, parent, row_start):
    """Columns of every row of L, sorted: the paths in the elimination tree from the entries of M to the row."""
    q = parent.size
    columns = np.empty(row_start[q], np.int32)
    seen = np.full(q, -1, np.int32)
    for i in range(q):
        seen[i] = i
        n = row_start[i]
        for t in range(indptr[i], indptr[i + 1]):
            k = indices[t]
            while seen[k] != i:
                seen[k] = i
                columns[n] = k
                n += 1
                k = parent[k]
        columns[row_start[i] : n] = np.sort(columns[row_start[i] : n])
    return columns
