"""Accumulation of counts onto nodes: the table Y of a block of genes, and their histograms.

Everything is a sum over cells. Each stratum is summed by one thread in the order of the cells, so the result is the
same to the last bit for any number of threads and any chunking of the rows. The table is laid out
[stratum, gene, node]: with cells sorted by stratum one cell writes into one stretch of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
from joblib import Parallel, delayed

from scglmm._jit import entry

from .counts import is_in_memory_sparse, numbers, row_chunks
from .nodes import Grid, Nodes, lagrange_basis

DIRECT = 128  # counts up to this have a bin each in the histogram of a gene
CSC_CELLS = 65_536  # cells whose basis values are held at once when a matrix is read column by column
SEARCHED = 4_000_000  # entries searched at once for counts above DIRECT


@dataclass(frozen=True)
class Tables:
    """Counts of a block of genes on the nodes.

    Attributes
    ----------
    genes
        (G,) columns of the matrix.
    values
        (N * G,) the table Y: stratum s begins at ``start[s] * G`` and is (G, nodes of s).
    histogram
        (G, DIRECT + 1) cells with each count; the last column counts all above `DIRECT`.
    tails
        For each gene that has counts above `DIRECT`, those counts and how many cells have each.
    """

    genes: np.ndarray
    values: np.ndarray
    histogram: np.ndarray
    tails: dict[int, tuple[np.ndarray, np.ndarray]]

    def take(self, grid: Grid, begin: int, end: int) -> Tables:
        """Tables of the genes at positions `begin` to `end`, small enough to send to another process."""
        end = min(end, self.genes.size)
        values = np.empty(grid.size * (end - begin))
        _take(self.values, grid.start, self.genes.size, begin, end, values)
        tails = {g - begin: tail for g, tail in self.tails.items() if begin <= g < end}
        return Tables(self.genes[begin:end], values, self.histogram[begin:end], tails)


@entry
def _take(values, start, n_genes, begin, end, out):
    for s in range(start.size - 1):
        n = start[s + 1] - start[s]
        source = start[s] * n_genes + begin * n
        target = start[s] * (end - begin)
        for i in range((end - begin) * n):
            out[target + i] = values[source + i]


def genes_per_block(nodes: Nodes, n_genes: int, max_bytes: float) -> int:
    """Count the genes whose tables fit in `max_bytes`, evened out over the blocks."""
    each = nodes.size * 8 + (DIRECT + 1) * 4
    most = max(1, int(max_bytes // each))
    n_blocks = -(-n_genes // most)
    return -(-n_genes // max(1, n_blocks))


def accumulate(matrix: Any, rows: np.ndarray, nodes: Nodes, genes: np.ndarray, n_jobs: int = 1) -> Tables:
    """Sum the counts of some genes onto the nodes, in one pass over the matrix.

    Parameters
    ----------
    matrix
        (n_obs, n_vars), as `scglmm.compression.counts.canonical` returns it.
    rows
        (n,) row of the matrix of every cell of `nodes`, increasing.
    nodes
        From `scglmm.compression.nodes.make_nodes`.
    genes
        (G,) columns wanted.
    n_jobs
        Threads; the strata are shared out among them.
    """
    n_obs, n_vars = matrix.shape
    position = np.full(n_vars, -1, np.int64)
    position[genes] = np.arange(genes.size)
    values = np.zeros(nodes.size * genes.size)
    histogram = np.zeros((genes.size, DIRECT + 1), np.int32)
    cell_of_row = np.full(n_obs, -1, np.int64)
    cell_of_row[rows] = np.arange(rows.size)
    big: list[tuple[np.ndarray, np.ndarray]] = []
    chunks = [(0, matrix)] if is_in_memory_sparse(matrix) else row_chunks(matrix)
    for first, chunk in chunks:
        inside = cell_of_row[first : first + chunk.shape[0]]
        if chunk.format == "csr":
            _add_rows(chunk, inside, nodes, position, values, histogram, n_jobs)
        else:
            _add_columns(chunk, inside, nodes, genes, values, histogram, n_jobs)
        big += _large_counts(chunk, inside, position)
    return Tables(genes, values, histogram, _tails(big))


def _add_rows(
    chunk: sp.csr_array,
    cells: np.ndarray,
    nodes: Nodes,
    position: np.ndarray,
    values: np.ndarray,
    histogram: np.ndarray,
    n_jobs: int,
) -> None:
    """Add row chunk: strata are dealt to threads in contiguous ranges with about as many counts each."""
    present = cells[cells >= 0]
    if present.size == 0:
        return
    if present.size == nodes.stratum.size:
        row_of_cell = np.flatnonzero(cells >= 0)
        order = row_of_cell[nodes.order]
        cell_order = nodes.order
        bounds = nodes.cell_start
    else:
        row_of_cell = np.flatnonzero(cells >= 0)
        by_stratum = np.argsort(nodes.stratum[present], kind="stable")
        order, cell_order = row_of_cell[by_stratum], present[by_stratum]
        bounds = np.searchsorted(nodes.stratum[cell_order], np.arange(nodes.n_strata + 1))
    data = numbers(chunk)
    place = exact_places(nodes)
    cuts = _cuts(bounds, n_jobs)
    partial = [histogram] + [np.zeros_like(histogram) for _ in cuts[2:]]

    def add(begin: int, end: int, counts: np.ndarray) -> None:
        _sum_rows(
            chunk.indptr, chunk.indices, data, order[begin:end], cell_order[begin:end], nodes.stratum, nodes.offset,
            nodes.start, nodes.tau, nodes.exact, place, position, values, counts,
        )  # fmt: skip

    Parallel(n_jobs=len(partial), prefer="threads", require="sharedmem")(
        delayed(add)(begin, end, counts) for (begin, end), counts in zip(pairwise(cuts), partial, strict=True)
    )
    for counts in partial[1:]:
        histogram += counts


def exact_places(nodes: Nodes) -> np.ndarray:
    """(n,) which node of its stratum a cell is, where the stratum keeps its cells."""
    place = np.empty(nodes.stratum.size, np.int64)
    place[nodes.order] = np.arange(nodes.stratum.size) - np.repeat(nodes.cell_start[:-1], nodes.n_cells)
    return place


def _cuts(bounds: np.ndarray, n_jobs: int) -> list[int]:
    """Positions between strata that cut the sorted cells into about equal parts."""
    wanted = np.linspace(0, bounds[-1], n_jobs + 1)
    return sorted({int(bounds[np.abs(bounds - cut).argmin()]) for cut in wanted} | {0, int(bounds[-1])})


@entry
def _sum_rows(
    indptr, indices, data, order, cell_order, stratum, offset, start, tau, exact, place, position, values, histogram
):
    n_genes = histogram.shape[0]
    last = histogram.shape[1] - 1
    basis = np.empty(np.max(start[1:] - start[:-1]))
    for i in range(order.size):
        row, cell = order[i], cell_order[i]
        s = stratum[cell]
        n = start[s + 1] - start[s]
        base = start[s] * n_genes
        if not exact[s]:
            lagrange_basis(offset[cell], tau, start[s], start[s + 1], basis)
        for j in range(indptr[row], indptr[row + 1]):
            g = position[indices[j]]
            y = np.float64(data[j])
            if g < 0 or y == 0.0:
                continue
            histogram[g, int(min(y, last))] += 1
            at = base + g * n
            if exact[s]:
                values[at + place[cell]] += y
            else:
                for k in range(n):
                    values[at + k] += y * basis[k]


def _add_columns(
    chunk: sp.csc_array,
    cells: np.ndarray,
    nodes: Nodes,
    genes: np.ndarray,
    values: np.ndarray,
    histogram: np.ndarray,
    n_jobs: int,
) -> None:
    """Add a matrix stored by columns: genes are dealt to threads, cells taken in stretches that bound memory."""
    data = numbers(chunk)
    place = exact_places(nodes)
    widest = int(np.diff(nodes.start).max())
    cursor = chunk.indptr[genes].astype(np.int64)
    stop = chunk.indptr[genes + 1].astype(np.int64)
    cuts = np.linspace(0, genes.size, min(n_jobs, genes.size) + 1).astype(np.int64)
    for first in range(0, chunk.shape[0], CSC_CELLS):
        part = cells[first : first + CSC_CELLS]
        basis = np.zeros((part.size, widest))
        _fill_basis(part, nodes.stratum, nodes.offset, nodes.start, nodes.tau, nodes.exact, place, basis)
        Parallel(n_jobs=cuts.size - 1, prefer="threads", require="sharedmem")(
            delayed(_sum_columns)(
                chunk.indices, data, cursor, stop, begin, end, first, part, nodes.stratum, nodes.start, basis,
                values, histogram,
            )
            for begin, end in pairwise(cuts)
        )  # fmt: skip


@entry
def _fill_basis(cells, stratum, offset, start, tau, exact, place, basis):
    for i in range(cells.size):
        cell = cells[i]
        if cell < 0:
            continue
        s = stratum[cell]
        if exact[s]:
            basis[i, place[cell]] = 1.0
        else:
            lagrange_basis(offset[cell], tau, start[s], start[s + 1], basis[i])


@entry
def _sum_columns(indices, data, cursor, stop, begin, end, first, cells, stratum, start, basis, values, histogram):
    n_genes = histogram.shape[0]
    last = histogram.shape[1] - 1
    beyond = first + cells.size
    for g in range(begin, end):
        j = cursor[g]
        while j < stop[g] and indices[j] < beyond:
            i = indices[j] - first
            cell = cells[i]
            y = np.float64(data[j])
            j += 1
            if cell < 0 or y == 0.0:
                continue
            histogram[g, int(min(y, last))] += 1
            s = stratum[cell]
            n = start[s + 1] - start[s]
            at = start[s] * n_genes + g * n
            for k in range(n):
                values[at + k] += y * basis[i, k]
        cursor[g] = j


def _large_counts(chunk: Any, cells: np.ndarray, position: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Genes (by position) and values of the counts above `DIRECT`, found in stretches to bound memory."""
    found = []
    for first in range(0, chunk.data.size, SEARCHED):
        stretch = chunk.data[first : first + SEARCHED]
        at = np.flatnonzero(stretch > DIRECT)
        if at.size == 0:
            continue
        minor = chunk.indices[first + at]
        major = np.searchsorted(chunk.indptr, first + at, side="right") - 1
        row, gene = (major, minor) if chunk.format == "csr" else (minor, major)
        wanted = (cells[row] >= 0) & (position[gene] >= 0)
        if wanted.any():
            found.append((position[gene[wanted]], stretch[at[wanted]].astype(np.float64)))
    return found


def _tails(found: list[tuple[np.ndarray, np.ndarray]]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    if not found:
        return {}
    gene = np.concatenate([g for g, _ in found])
    value = np.concatenate([v for _, v in found])
    order = np.argsort(gene, kind="stable")
    gene, value = gene[order], value[order]
    names, begins = np.unique(gene, return_index=True)
    pieces = np.split(value, begins[1:])
    return {
        int(name): tuple(part.astype(np.float64) for part in np.unique(piece, return_counts=True))
        for name, piece in zip(names, pieces, strict=True)
    }
