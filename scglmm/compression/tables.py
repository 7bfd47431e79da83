"""Accumulation of counts onto nodes: the table Y of a block of genes, and their histograms.

Everything is a sum over cells. Each stratum is summed by one thread in the order of the cells, so the result is the
same to the last bit for any number of threads and any chunking of the rows. The table is laid out
[stratum, gene, node]: with cells sorted by stratum one cell writes into one stretch of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from scglmm._jit import entry

from .chunks import Chunk, chunks, is_dask
from .counts import Summary, Sums, numbers
from .nodes import Grid, Nodes, cell_basis, widest
from .threads import cut, on_threads

DIRECT = 128  # counts up to this have a bin each in the histogram of a gene
CSC_CELLS = 65_536  # cells whose basis values are held at once when a matrix is read column by column,
CSC_VALUES = 4_000_000  # and at most so many values
SEARCHED = 4_000_000  # entries searched at once for counts above DIRECT


@dataclass(frozen=True)
class Tables:
    """Counts of a block of genes on the nodes.

    Attributes
    ----------
    genes
        (G,) columns of the matrix.
    values
        (N * G,) the table Y: stratum s begins at ``blocks[s] * G`` and is (G, nodes of s).
    histogram
        (G, DIRECT + 1) cells with each count; the last column counts all above `DIRECT`.
    tails
        For each gene that has counts above `DIRECT`, those counts and how many cells have each.
    presence
        (N * G,) the same table of the indicator of a count above 0, for zero inflation; None where it was not wanted.
    """

    genes: np.ndarray
    values: np.ndarray
    histogram: np.ndarray
    tails: dict[int, tuple[np.ndarray, np.ndarray]]
    presence: np.ndarray | None = None

    def take(self, grid: Grid, begin: int, end: int) -> Tables:
        """Tables of the genes at positions `begin` to `end`, small enough to send to another process."""
        end = min(end, self.genes.size)
        tails = {g - begin: tail for g, tail in self.tails.items() if begin <= g < end}
        taken = []
        for table in (self.values, self.presence):
            taken.append(None if table is None else np.empty(grid.size * (end - begin)))
            if table is not None:
                _take(table, grid.blocks, self.genes.size, begin, end, taken[-1])
        return Tables(self.genes[begin:end], taken[0], self.histogram[begin:end], tails, taken[1])


@entry
def _take(values, start, n_genes, begin, end, out):
    for s in range(start.size - 1):
        n = start[s + 1] - start[s]
        source = start[s] * n_genes + begin * n
        target = start[s] * (end - begin)
        for i in range((end - begin) * n):
            out[target + i] = values[source + i]


def gene_bytes(nodes: Nodes, presence: bool = False) -> int:
    """Memory that the tables and the histograms of one gene take."""
    return (nodes.size * 8 + (DIRECT + 1) * 4) * (2 if presence else 1)


@dataclass(frozen=True)
class Part:
    """Some cells and genes whose counts are to be summed.

    Attributes
    ----------
    rows
        (n,) row of the matrix of every cell of `nodes`, increasing.
    nodes
        From `scglmm.compression.nodes.make_nodes`.
    genes
        (G,) columns wanted.
    presence
        Whether the table of the indicator of a count above 0 is wanted as well.
    """

    rows: np.ndarray
    nodes: Nodes
    genes: np.ndarray
    presence: bool = False


def accumulate(matrix: Any, rows: np.ndarray, nodes: Nodes, genes: np.ndarray, n_jobs: int = 1) -> Tables:
    """Sum the counts of some genes onto the nodes, in one pass over the matrix.

    Parameters
    ----------
    matrix
        (n_obs, n_vars), as `scglmm.compression.counts.canonical` returns it.
    rows, nodes, genes
        See `Part`.
    n_jobs
        Threads; the strata are shared out among them.
    """
    return accumulate_parts(matrix, [Part(rows, nodes, genes)], n_jobs)[0]


def accumulate_parts(matrix: Any, parts: Sequence[Part], n_jobs: int = 1) -> list[Tables]:
    """Sum the counts of several sets of cells, each onto its own nodes, in one pass over the matrix.

    The table of each part is that of `accumulate` to the last bit.

    Parameters
    ----------
    matrix
        As for `accumulate`, or a `scglmm.compression.prepared.Prepared`, whose tables were made before.
    parts
        What to sum.
    n_jobs
        Threads. A dask array is summed by dask, whose scheduler decides.
    """
    if hasattr(matrix, "tables_of"):
        return matrix.tables_of(parts, n_jobs)
    if is_dask(matrix):
        from .mapreduce import sum_parts

        return sum_parts(matrix, parts)
    return _read(matrix, parts, n_jobs, None)


def accumulate_and_check(
    matrix: Any,
    parts: Sequence[Part],
    group: np.ndarray,
    n_groups: int,
    n_jobs: int = 1,
    chunk_bytes: int | None = None,
) -> tuple[list[Summary], list[Tables]]:
    """Do the work of `scglmm.compression.counts.summarise_groups` and of `accumulate_parts` in one pass.

    It reads pieces of `chunk_bytes`, see `scglmm.compression.chunks.chunks`.

    Raises
    ------
    NotCountsError
        As `scglmm.compression.counts.summarise`.
    """
    if is_dask(matrix):
        from .mapreduce import sum_parts_and_check

        return sum_parts_and_check(matrix, parts, group, n_groups)
    sums = Sums(matrix.shape, group, n_groups)
    tables = _read(matrix, parts, n_jobs, sums, chunk_bytes)
    return sums.summaries(), tables


def _read(
    matrix: Any, parts: Sequence[Part], n_jobs: int, checked: Sums | None, chunk_bytes: int | None = None
) -> list[Tables]:
    """Read the matrix once, piece by piece; with `checked` all of it, otherwise what the parts need."""
    gatherers = [PartSums(part, matrix.shape) for part in parts]
    genes = np.concatenate([part.genes for part in parts]) if parts else np.empty(0, np.int64)
    wanted = (0, matrix.shape[1])
    if checked is None and genes.size:
        wanted = (int(genes.min()), int(genes.max()) + 1)
    for chunk in chunks(matrix, *wanted, chunk_bytes):
        if checked is not None:
            checked.add(chunk, n_jobs)
        add_chunk(gatherers, chunk, n_jobs)
    return [each.tables() for each in gatherers]


def add_chunk(gatherers: Sequence[PartSums], chunk: Chunk, n_jobs: int) -> None:
    """Add a piece of the matrix to the sums of every part."""
    big = _large_counts(chunk.matrix)
    for each in gatherers:
        each.add(chunk, big, n_jobs)
    if any(each.presence is not None for each in gatherers):
        indicator = Chunk(chunk.row, chunk.column, _indicator(chunk.matrix))
        for each in gatherers:
            if each.presence is not None:
                each.presence.add(indicator, _NONE_LARGE, n_jobs)


_NONE_LARGE = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


def _indicator(chunk: Any) -> Any:
    """1 where there is a count, of the type of the counts, so that kernels need no other version."""
    ones = (chunk.data != 0).astype(chunk.data.dtype)
    return type(chunk)((ones, chunk.indices, chunk.indptr), shape=chunk.shape, copy=False)


def gene_blocks(parts: Sequence[Part], max_bytes: float) -> list[np.ndarray]:
    """Share the genes of all parts out among blocks whose tables fit in `max_bytes`, or in what one gene takes.

    Returns
    -------
    Increasing columns of the matrix for each block, evened out so that blocks take about the same memory. A block has
    at least one gene.
    """
    genes = np.unique(np.concatenate([part.genes for part in parts]))
    size = np.zeros(genes.size)
    for part in parts:
        size[np.searchsorted(genes, part.genes)] += gene_bytes(part.nodes, part.presence)
    if genes.size == 0:
        return []
    most = max(max_bytes, size.max())
    end = np.cumsum(size)
    n_blocks = int(-(-end[-1] // most))
    while True:
        block = ((end - size / 2) * n_blocks / end[-1]).astype(np.int64)
        if np.bincount(block, size).max() <= most:
            return [genes[block == k] for k in np.unique(block)]
        n_blocks += 1


class PartSums:
    """The sums of one part while the matrix is read.

    Parameters
    ----------
    part
        What to sum.
    shape
        (n_obs, n_vars) of the matrix.
    place
        See `exact_places`; found by default.
    """

    def __init__(self, part: Part, shape: tuple[int, int], place: np.ndarray | None = None) -> None:
        n_obs, n_vars = shape
        self.nodes, self.genes = part.nodes, part.genes
        self.place = exact_places(part.nodes) if place is None else place
        self.position = np.full(n_vars, -1, np.int64)
        self.position[part.genes] = np.arange(part.genes.size)
        self.values = np.zeros(part.nodes.size * part.genes.size)
        # count by gene, as most counts are small and those of one cell then meet in few rows
        self.histogram = np.zeros((DIRECT + 1, part.genes.size), np.int32)
        self.cell_of_row = np.full(n_obs, -1, np.int64)
        self.cell_of_row[part.rows] = np.arange(part.rows.size)
        self.big: list[tuple[np.ndarray, np.ndarray]] = []
        self.presence = PartSums(replace(part, presence=False), shape, self.place) if part.presence else None

    def add(self, chunk: Chunk, big: tuple[np.ndarray, np.ndarray, np.ndarray], n_jobs: int) -> None:
        """Add a piece of the matrix."""
        inside = self.cell_of_row[chunk.rows]
        position = self.position[chunk.columns]
        add = _add_rows if chunk.matrix.format == "csr" else _add_columns
        add(chunk.matrix, inside, self.nodes, self.place, position, self.values, self.histogram, n_jobs)
        row, gene, value = big
        wanted = (inside[row] >= 0) & (position[gene] >= 0)
        if wanted.any():
            self.big.append((position[gene[wanted]], value[wanted]))

    def tables(self) -> Tables:
        """Give the sums when all pieces have been added."""
        presence = None if self.presence is None else self.presence.values
        return Tables(self.genes, self.values, np.ascontiguousarray(self.histogram.T), _tails(self.big), presence)


def _add_rows(
    chunk: sp.csr_array,
    cells: np.ndarray,
    nodes: Nodes,
    place: np.ndarray,
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
        bounds = np.searchsorted(nodes.stratum[cell_order], np.arange(nodes.cell_start.size))
    data = numbers(chunk)
    ranges = cut(bounds, n_jobs)
    histograms = [histogram] + [np.zeros_like(histogram) for _ in ranges[1:]]
    on_threads(
        [
            partial(
                _sum_rows,
                *(chunk.indptr, chunk.indices, data, order[begin:end], cell_order[begin:end], nodes.stratum),
                *(nodes.blocks, nodes.exact, nodes.axes, place, position, values, counts),
            )
            for (begin, end), counts in zip(bounds[np.array(ranges)], histograms, strict=True)
        ]
    )
    for counts in histograms[1:]:
        histogram += counts


def exact_places(nodes: Nodes) -> np.ndarray:
    """(n,) which node of its stratum a cell is, where the stratum keeps its cells."""
    place = np.empty(nodes.stratum.size, np.int64)
    place[nodes.order] = np.arange(nodes.stratum.size) - np.repeat(nodes.cell_start[:-1], nodes.n_cells)
    return place


@entry
def _sum_rows(
    indptr, indices, data, order, cell_order, stratum, blocks, exact, axes, place, position, values, histogram
):
    n_genes = histogram.shape[1]
    last = histogram.shape[0] - 1
    most = widest(blocks, exact)
    basis, one = np.empty(most), np.empty(most)
    for i in range(order.size):
        row, cell = order[i], cell_order[i]
        s = stratum[cell]
        n = blocks[s + 1] - blocks[s]
        # unsigned indices: what may be negative to the compiler keeps it from adding to neighbours at once
        table = values[blocks[s] * n_genes : blocks[s + 1] * n_genes]
        columns, counts = indices[indptr[row] : indptr[row + 1]], data[indptr[row] : indptr[row + 1]]
        if exact[s]:
            for j in range(columns.size):
                g = position[columns[j]]
                y = np.float64(counts[j])
                if g >= 0 and y != 0.0:
                    histogram[np.uint64(min(y, last)), np.uint64(g)] += 1
                    table[g * n + place[cell]] += y
            continue
        cell_basis(cell, s, axes, one, basis)
        for j in range(columns.size):
            g = position[np.uint64(columns[j])]
            y = np.float64(counts[j])
            if g < 0 or y == 0.0:
                continue
            histogram[np.uint64(min(y, last)), np.uint64(g)] += 1
            at = np.uint64(g * n)
            for k in range(n):
                table[at + np.uint64(k)] += y * basis[k]


def _add_columns(
    chunk: sp.csc_array,
    cells: np.ndarray,
    nodes: Nodes,
    place: np.ndarray,
    position: np.ndarray,
    values: np.ndarray,
    histogram: np.ndarray,
    n_jobs: int,
) -> None:
    """Add a matrix stored by columns: genes are dealt to threads, cells taken in stretches that bound memory."""
    here = np.flatnonzero(position >= 0)
    if here.size == 0:
        return
    data = numbers(chunk)
    most = widest(nodes.blocks, nodes.exact)
    # genes that are not in this piece of the matrix have no entries
    cursor, stop = np.zeros((2, histogram.shape[1]), np.int64)
    cursor[position[here]] = chunk.indptr[here]
    stop[position[here]] = chunk.indptr[here + 1]
    first_gene, beyond = int(position[here].min()), int(position[here].max()) + 1
    ranges = [(begin + first_gene, end + first_gene) for begin, end in cut(np.arange(beyond - first_gene + 1), n_jobs)]
    step = max(1, min(CSC_CELLS, CSC_VALUES // most))
    for first in range(0, chunk.shape[0], step):
        part = cells[first : first + step]
        basis = np.zeros((part.size, most))
        _fill_basis(part, nodes.stratum, nodes.exact, nodes.axes, basis)
        on_threads(
            [
                partial(
                    _sum_columns,
                    *(chunk.indices, data, cursor, stop, begin, end, first, part, nodes.stratum, nodes.blocks),
                    *(nodes.exact, place, basis, values, histogram),
                )
                for begin, end in ranges
            ]
        )


@entry
def _fill_basis(cells, stratum, exact, axes, basis):
    one = np.empty(basis.shape[1])
    for i in range(cells.size):
        cell = cells[i]
        if cell >= 0 and not exact[stratum[cell]]:
            cell_basis(cell, stratum[cell], axes, one, basis[i])


@entry
def _sum_columns(
    indices, data, cursor, stop, begin, end, first, cells, stratum, blocks, exact, place, basis, values, histogram
):
    n_genes = histogram.shape[1]
    last = histogram.shape[0] - 1
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
            histogram[np.uint64(min(y, last)), np.uint64(g)] += 1
            s = stratum[cell]
            n = blocks[s + 1] - blocks[s]
            at = np.uint64(blocks[s] * n_genes + g * n)
            if exact[s]:
                values[at + np.uint64(place[cell])] += y
            else:
                weights = basis[i]
                for k in range(n):
                    values[at + np.uint64(k)] += y * weights[k]
        cursor[g] = j


def _large_counts(chunk: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value of the counts above `DIRECT`, found in stretches to bound memory."""
    rows, columns, values = [], [], []
    for first in range(0, chunk.data.size, SEARCHED):
        stretch = chunk.data[first : first + SEARCHED]
        if stretch.max() <= DIRECT:
            continue
        at = np.flatnonzero(stretch > DIRECT)
        minor = chunk.indices[first + at]
        major = np.searchsorted(chunk.indptr, first + at, side="right") - 1
        row, column = (major, minor) if chunk.format == "csr" else (minor, major)
        rows.append(row)
        columns.append(column)
        values.append(stretch[at].astype(np.float64))
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)


def _tails(found: list[tuple[np.ndarray, np.ndarray]]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    if not found:
        return {}
    gene = np.concatenate([g for g, _ in found])
    value = np.concatenate([v for _, v in found])
    order = np.argsort(gene, kind="stable")
    gene, value = gene[order], value[order]
    names, begins = np.unique(gene, return_index=True)
    pieces = np.split(value, begins[1:])
    found_tails = {}
    for name, piece in zip(names, pieces, strict=True):
        values, cells = np.unique(piece, return_counts=True)
        found_tails[int(name)] = values.astype(np.float64), cells.astype(np.float64)
    return found_tails
