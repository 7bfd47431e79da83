"""Matrices of counts: one look at all numbers before they are used, and their sums.

In memory a sparse matrix is used as it is, row-wise or column-wise, without a copy. Everything else (dense, backed,
lazy) is read in pieces that become sparse (`scglmm.compression.chunks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from scglmm._jit import entry, kernel

from .chunks import Chunk, chunks, is_dask, is_plain, sample
from .threads import cut, on_threads

OK, NOT_FINITE, NEGATIVE, FRACTIONAL = 0, 1, 2, 3


class NotCountsError(ValueError):
    """The matrix holds something other than counts; the message says what.

    Attributes
    ----------
    what, advice
        The value, and what is wrong with it.
    row, column
        Where it stands in the matrix.
    """

    def __init__(self, kind: int, value: float, row: int, column: int) -> None:
        self.what, self.advice = _describe(kind, value)
        self.row, self.column = row, column
        super().__init__(f"contains {self.what} (row {row}, column {column}): {self.advice}")


@dataclass(frozen=True)
class Summary:
    """Sums of a matrix of counts over the cells that are used.

    Attributes
    ----------
    cell_total
        (n_obs,) total count of every cell of the matrix over all genes, whether the cell is used or not.
    gene_total
        (n_vars,) total count of every gene over the cells that are used.
    gene_cells
        (n_vars,) cells with at least one count.
    """

    cell_total: np.ndarray
    gene_total: np.ndarray
    gene_cells: np.ndarray


def canonical(matrix: Any) -> Any:
    """Return the matrix in a form the kernels read: sparse ones without duplicate entries, others untouched."""
    if sp.issparse(matrix):
        if matrix.format not in ("csr", "csc"):
            matrix = matrix.tocsr()
        if _has_duplicates(matrix.indptr, matrix.indices, matrix.shape[0 if matrix.format == "csc" else 1]):
            matrix = matrix.copy()
            matrix.sum_duplicates()
        if matrix.format == "csc" and not _is_sorted(matrix.indptr, matrix.indices):
            matrix = matrix.copy()
            matrix.sort_indices()
    return matrix


def summarise(matrix: Any, used: np.ndarray) -> Summary:
    """Check that the cells that are used hold counts, and sum them.

    Parameters
    ----------
    matrix
        (n_obs, n_vars), as `canonical` returns it.
    used
        (n_obs,) bool.

    Raises
    ------
    NotCountsError
        Negative, fractional, infinite or missing values, with an example.
    """
    return summarise_groups(matrix, np.where(used, 0, -1), 1)[0]


def summarise_groups(matrix: Any, group: np.ndarray, n_groups: int) -> list[Summary]:
    """Check that the cells of all groups hold counts, and sum each group, in one pass over the matrix.

    Parameters
    ----------
    matrix
        (n_obs, n_vars), as `canonical` returns it.
    group
        (n_obs,) group of every cell, 0 to `n_groups` - 1; -1 for cells that are not used, which may hold anything.
    n_groups
        Number of groups.

    Raises
    ------
    NotCountsError
        As `summarise`.
    """
    if is_dask(matrix):
        from .mapreduce import sum_up

        return sum_up(matrix, group, n_groups)
    sums = Sums(matrix.shape, group, n_groups)
    for chunk in chunks(matrix):
        sums.add(chunk)
    return sums.summaries()


class Sums:
    """Sums of the cells of several groups while a matrix is read.

    Attributes
    ----------
    cell_total, gene_total, gene_cells
        As in `Summary`; the last two have a row for every group.
    """

    def __init__(self, shape: tuple[int, int], group: np.ndarray, n_groups: int) -> None:
        n, m = shape
        self.group = np.ascontiguousarray(group, np.int64)
        self.cell_total = np.zeros(n)
        self.gene_total, self.gene_cells = np.zeros((n_groups, m)), np.zeros((n_groups, m), np.int64)

    def find(self, chunk: Chunk, n_jobs: int = 1) -> tuple[int, float, int, int]:
        """Add a piece; give the kind of what is no count in it (`OK` if there is none), the value, row and column."""
        matrix = chunk.matrix
        if n_jobs > 1 and matrix.format == "csr" and matrix.nnz > n_jobs * self.gene_total.size:
            return self._find_in_rows(chunk, n_jobs)
        scan = _scan_columns if matrix.format == "csc" else _scan_rows
        kind, value, row, column = scan(
            *(matrix.indptr, matrix.indices, numbers(matrix), chunk.column, self.group[chunk.rows]),
            *(self.cell_total[chunk.rows], self.gene_total, self.gene_cells),
        )
        return int(kind), float(value), int(chunk.row + row), int(column)

    def _find_in_rows(self, chunk: Chunk, n_jobs: int) -> tuple[int, float, int, int]:
        """Do so on several threads. Sums of counts are whole numbers, hence the same in any order."""
        matrix, data = chunk.matrix, numbers(chunk.matrix)
        ranges = cut(matrix.indptr, n_jobs)
        group, total = self.group[chunk.rows], self.cell_total[chunk.rows]
        sums = [(np.zeros_like(self.gene_total), np.zeros_like(self.gene_cells)) for _ in ranges]
        found = on_threads(
            [
                partial(
                    _scan_rows,
                    *(matrix.indptr[first : last + 1], matrix.indices, data, chunk.column, group[first:last]),
                    *(total[first:last], *own),
                )
                for (first, last), own in zip(ranges, sums, strict=True)
            ]
        )
        for gene_total, gene_cells in sums:
            self.gene_total += gene_total
            self.gene_cells += gene_cells
        for (first, _), (kind, value, row, column) in zip(ranges, found, strict=True):
            if kind != OK:
                return int(kind), float(value), int(chunk.row + first + row), int(column)
        return OK, 0.0, int(chunk.row), 0

    def add(self, chunk: Chunk, n_jobs: int = 1) -> None:
        """Add a piece.

        Raises
        ------
        NotCountsError
            As `summarise`.
        """
        found = self.find(chunk, n_jobs)
        if found[0] != OK:
            raise NotCountsError(*found)

    def summaries(self) -> list[Summary]:
        """Give the sums of each group."""
        return [Summary(self.cell_total, *each) for each in zip(self.gene_total, self.gene_cells, strict=True)]


def numbers(matrix: sp.csr_array | sp.csc_array) -> np.ndarray:
    """Values of a sparse matrix as something numba reads: booleans become bytes, odd types become float64."""
    data = matrix.data
    if data.dtype == np.bool_:
        return data.view(np.uint8)
    return data if is_plain(data.dtype) else data.astype(np.float64)


def looks_like_counts(matrix: Any, n_rows: int = 200) -> bool:
    """Whether the first rows of a matrix hold non-negative whole numbers (for hints in messages)."""
    part = sample(matrix, n_rows)
    part = part.compute() if hasattr(part, "compute") else part
    data = part.data if sp.issparse(part) else np.asarray(part)
    data = np.asarray(data, np.float64)
    return bool(np.isfinite(data).all() and (data >= 0).all() and (data == np.floor(data)).all())


def _describe(kind: int, value: float) -> tuple[str, str]:
    """Name the value, and say what is wrong with it."""
    if kind == NOT_FINITE:
        return ("NaN" if np.isnan(value) else f"{value:g}"), "counts must be finite"
    if kind == NEGATIVE:
        return f"the negative value {value:g}", "it is not counts (scaled data?)"
    return f"the fractional value {value:.6g}", "it is not raw counts (normalised or log-transformed?)"


@entry
def _has_duplicates(indptr, indices, n_minor):
    last = np.full(n_minor, -1, np.int64)
    for i in range(indptr.size - 1):
        for j in range(indptr[i], indptr[i + 1]):
            if last[indices[j]] == i:
                return True
            last[indices[j]] = i
    return False


@entry
def _is_sorted(indptr, indices):
    for i in range(indptr.size - 1):
        for j in range(indptr[i] + 1, indptr[i + 1]):
            if indices[j] < indices[j - 1]:
                return False
    return True


@kernel
def _kind(value):
    """Which of the codes a value is."""
    if 0.0 <= value < np.inf and value == np.floor(value):
        return OK
    if not np.isfinite(value):
        return NOT_FINITE
    return NEGATIVE if value < 0.0 else FRACTIONAL


@entry
def _scan_rows(indptr, indices, data, first, group, cell_total, gene_total, gene_cells):
    for i in range(indptr.size - 1):
        total = 0.0
        k = group[i]
        columns, values = indices[indptr[i] : indptr[i + 1]], data[indptr[i] : indptr[i + 1]]
        if k < 0:
            for j in range(values.size):
                total += np.float64(values[j])
            cell_total[i] += total
            continue
        gene_sums, gene_counts = gene_total[k, first:], gene_cells[k, first:]
        for j in range(values.size):
            value = np.float64(values[j])
            if _kind(value) != OK:
                return _kind(value), value, i, np.int64(first + columns[j])
            total += value
            g = np.uint64(columns[j])  # unsigned, as in `scglmm.compression.tables`
            gene_sums[g] += value
            gene_counts[g] += value > 0.0
        cell_total[i] += total
    return OK, 0.0, 0, np.int64(0)


@entry
def _scan_columns(indptr, indices, data, first, group, cell_total, gene_total, gene_cells):
    for g in range(indptr.size - 1):
        for j in range(indptr[g], indptr[g + 1]):
            value = np.float64(data[j])
            cell = indices[j]
            cell_total[cell] += value
            k = group[cell]
            if k >= 0:
                kind = _kind(value)
                if kind != OK:
                    return kind, value, np.int64(cell), first + g
                if value > 0:
                    gene_total[k, first + g] += value
                    gene_cells[k, first + g] += 1
    return OK, 0.0, np.int64(0), 0
