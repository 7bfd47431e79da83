"""Counts in a dask array: every stretch of it is summed where it lies, and the sums are added up on the workers.

A task takes the blocks of a stretch of rows (and one block of columns) and gives their sums; sums are added two by two
in a tree. Stretches and tree depend on the chunks of the array and on the nodes alone, so the result is the same to the
last bit for any scheduler and any number of workers. What comes back is the sums.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import dask
import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed

from scglmm._jit import entry

from .chunks import Chunk, as_sparse
from .counts import OK, NotCountsError, Summary, Sums
from .nodes import Nodes
from .tables import DIRECT, Part, PartSums, Tables, add_chunk, exact_places

ROWS_PER_NODE = 8  # a task has so many rows for each node, so that its blocks outweigh its table
LEAST_ROWS = 10_000  # in a task, where blocks are small
TASK_BYTES = 2**28  # of the blocks of a task, unless one block has more
SPARSE_BYTES = 1.2  # per value of a sparse block, zeros included: a tenth are counts
WAVE_CELLS = 2_000_000  # cells whose places on the nodes travel to the workers at once
GRAPH_BYTES = "1GiB"  # up to which dask.distributed need not warn of what travels with the tasks


@dataclass(frozen=True)
class Partial:
    """Sums over some rows and a block of columns.

    Attributes
    ----------
    found
        Kind, value, row and column of what is no count; the kind is `OK` where there is none.
    cell_total
        First row and totals of the cells of every stretch of rows; empty where nothing was checked.
    gene_total, gene_cells
        (groups, columns); None where nothing was checked.
    tables
        One for each part, None for those that want none of the columns.
    """

    found: tuple[int, float, int, int]
    cell_total: list[tuple[int, np.ndarray]]
    gene_total: np.ndarray | None
    gene_cells: np.ndarray | None
    tables: list[Tables | None]


@dataclass(frozen=True)
class _Cells:
    """Cells of a part in a stretch of rows: their rows within it, and what places them on the nodes."""

    rows: np.ndarray
    stratum: np.ndarray
    offset: np.ndarray
    place: np.ndarray


def sum_up(matrix: Any, group: np.ndarray, n_groups: int) -> list[Summary]:
    """Do what `scglmm.compression.counts.summarise_groups` does."""
    return _run(matrix, [], group, n_groups)[0]


def sum_parts(matrix: Any, parts: Sequence[Part]) -> list[Tables]:
    """Do what `scglmm.compression.tables.accumulate_parts` does."""
    return _run(matrix, parts, None, 0)[1]


def sum_parts_and_check(
    matrix: Any, parts: Sequence[Part], group: np.ndarray, n_groups: int
) -> tuple[list[Summary], list[Tables]]:
    """Do what `scglmm.compression.tables.accumulate_and_check` does."""
    return _run(matrix, parts, group, n_groups)


def _run(
    matrix: Any, parts: Sequence[Part], group: np.ndarray | None, n_groups: int
) -> tuple[list[Summary], list[Tables]]:
    if np.isnan(np.concatenate(matrix.chunks).astype(float)).any():
        msg = "The chunks of the dask array have unknown sizes: call `compute_chunk_sizes()` on it first."
        raise ValueError(msg)
    rows, edges = (np.concatenate([[0], np.cumsum(sizes)]).astype(int) for sizes in matrix.chunks)
    columns = [
        (j, (int(begin), int(end)))
        for j, (begin, end) in enumerate(pairwise(edges))
        if group is not None or any(_within(part.genes, (begin, end)).any() for part in parts)
    ]
    blocks = matrix.to_delayed()
    places = [exact_places(part.nodes) for part in parts]
    shared = [
        delayed(
            _Shared([_without_cells(part.nodes) for part in parts], *_genes(parts, span), span, n_groups),
            traverse=False,
        )
        for _, span in columns
    ]
    totals: list[Delayed] = []
    with _large_graphs():
        for wave in _waves(matrix, rows, parts):
            leaves: list[list[Delayed]] = [[] for _ in columns]
            for begin, end in wave:
                first, beyond = int(rows[begin]), int(rows[end])
                cells = [_cells(part, place, first, beyond) for part, place in zip(parts, places, strict=True)]
                label = None if group is None else group[first:beyond].astype(np.int32)
                sent = delayed((cells, label), traverse=False)
                for (j, _), model, found in zip(columns, shared, leaves, strict=True):
                    found.append(_sum_stretch(list(blocks[begin:end, j]), first, model, sent))
            if totals:  # what earlier waves gave stays on the workers
                leaves = [[total, *found] for total, found in zip(dask.persist(*totals), leaves, strict=True)]
            totals = [_tree(found) for found in leaves]
        partials = dask.compute(*totals)
    for partial in partials:
        if partial.found[0] != OK:
            raise NotCountsError(*partial.found)
    spans = [span for _, span in columns]
    summaries = [] if group is None else _summaries(matrix.shape, partials)
    return summaries, [
        _side_by_side(part, spans, [each.tables[k] for each in partials]) for k, part in enumerate(parts)
    ]


@dataclass(frozen=True)
class _Shared:
    """What all tasks of a block of columns share: for every part the nodes, the genes within the block, `presence`."""

    nodes: list[Nodes]
    genes: list[np.ndarray]
    presence: list[bool]
    columns: tuple[int, int]
    n_groups: int


def _large_graphs() -> AbstractContextManager[Any]:
    """Let dask.distributed, where it is in use, take what travels with the tasks without a warning."""
    if "distributed" not in sys.modules:  # its defaults would be lost were it imported inside
        return nullcontext()
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": GRAPH_BYTES})


def _genes(parts: Sequence[Part], span: tuple[int, int]) -> tuple[list[np.ndarray], list[bool]]:
    genes = [part.genes[_within(part.genes, span)] - span[0] for part in parts]
    return genes, [part.presence for part in parts]


def _within(genes: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    return (genes >= span[0]) & (genes < span[1])


def _without_cells(nodes: Nodes) -> Nodes:
    none = np.empty(0, np.int64)
    return replace(nodes, stratum=none, offset=np.empty(0), order=none, cell_start=np.zeros_like(nodes.cell_start))


def _cells(part: Part, place: np.ndarray, first: int, beyond: int) -> _Cells:
    low, high = np.searchsorted(part.rows, [first, beyond])
    stratum, offset = part.nodes.stratum[low:high], part.nodes.offset[low:high]
    rows = (part.rows[low:high] - first).astype(np.int32)
    return _Cells(rows, stratum.astype(np.int32), offset, place[low:high].astype(np.int32))


def _waves(matrix: Any, rows: np.ndarray, parts: Sequence[Part]) -> Iterator[list[tuple[int, int]]]:
    """Stretches of row blocks for the tasks (first block, one behind the last), a wave of them at a time."""
    value = SPARSE_BYTES if sp.issparse(matrix._meta) else matrix.dtype.itemsize
    most = TASK_BYTES / (value * max(1, *matrix.chunks[1]))
    wanted = max(LEAST_ROWS, ROWS_PER_NODE * sum(part.nodes.size for part in parts))
    wave: list[tuple[int, int]] = []
    begin = 0
    for end in range(1, rows.size):
        last = end == rows.size - 1
        size = rows[end] - rows[begin]
        if last or size >= wanted or rows[end + 1] - rows[begin] > most:
            wave.append((begin, end))
            begin = end
        if wave and (last or rows[end] - rows[wave[0][0]] >= WAVE_CELLS):
            yield wave
            wave = []


def _tree(found: list[Delayed]) -> Delayed:
    """Add up neighbours two by two until one is left."""
    while len(found) > 1:
        pairs = [found[k : k + 2] for k in range(0, len(found), 2)]
        found = [_add(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return found[0]


@delayed(pure=False)
def _sum_stretch(
    blocks: list[Any], first: int, shared: _Shared, sent: tuple[list[_Cells], np.ndarray | None]
) -> Partial:
    """Sum the blocks of a stretch of rows, on a worker. What it is given is left as it is."""
    cells, label = sent
    begin, end = shared.columns
    shape = (sum(block.shape[0] for block in blocks), end - begin)
    gatherers = [
        _gatherer(*each, shape) for each in zip(cells, shared.nodes, shared.genes, shared.presence, strict=True)
    ]
    used = [each for each in gatherers if each is not None]
    sums = None if label is None else Sums(shape, label, shared.n_groups)
    row = 0
    for block in blocks:
        chunk = Chunk(row, 0, as_sparse(block))
        row += block.shape[0]
        if sums is not None:
            kind, value, bad_row, bad_column = sums.find(chunk)
            if kind != OK:
                return Partial((kind, value, first + bad_row, begin + bad_column), [], None, None, [])
        add_chunk(used, chunk, 1)
    tables = [None if each is None else each.tables() for each in gatherers]
    if sums is None:
        return Partial(_FINE, [], None, None, tables)
    return Partial(_FINE, [(first, sums.cell_total)], sums.gene_total, sums.gene_cells, tables)


_FINE = (OK, 0.0, 0, 0)


def _gatherer(
    cells: _Cells, model: Nodes, genes: np.ndarray, presence: bool, shape: tuple[int, int]
) -> PartSums | None:
    if genes.size == 0:
        return None
    stratum = cells.stratum.astype(np.int64)
    order = np.argsort(stratum, kind="stable")
    cell_start = np.searchsorted(stratum[order], np.arange(model.n_strata + 1))
    nodes = replace(model, stratum=stratum, offset=cells.offset, order=order, cell_start=cell_start)
    return PartSums(Part(cells.rows.astype(np.int64), nodes, genes, presence), shape, cells.place.astype(np.int64))


@delayed(pure=False)
def _add(one: Partial, two: Partial) -> Partial:
    """Add the sums of two stretches of rows."""
    if one.found[0] != OK or two.found[0] != OK:
        return one if one.found[0] != OK else two
    tables = [None if a is None else _add_tables(a, b) for a, b in zip(one.tables, two.tables, strict=True)]
    if one.gene_total is None:
        return Partial(_FINE, [], None, None, tables)
    totals = (one.gene_total + two.gene_total, one.gene_cells + two.gene_cells)
    return Partial(_FINE, [*one.cell_total, *two.cell_total], *totals, tables)


def _add_tables(one: Tables, two: Tables) -> Tables:
    tails = {g: merge_tails(one.tails.get(g), two.tails.get(g)) for g in one.tails | two.tails}
    presence = None if one.presence is None else one.presence + two.presence
    return Tables(one.genes, one.values + two.values, one.histogram + two.histogram, tails, presence)


def merge_tails(
    one: tuple[np.ndarray, np.ndarray] | None, two: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Add up how many cells have each of the large counts."""
    if one is None or two is None:
        return two if one is None else one
    values, of = np.unique(np.concatenate([one[0], two[0]]), return_inverse=True)
    return values, np.bincount(of, np.concatenate([one[1], two[1]]))


def _summaries(shape: tuple[int, int], partials: Sequence[Partial]) -> list[Summary]:
    cell_total = np.zeros(shape[0])
    for partial in partials:
        for first, totals in partial.cell_total:
            cell_total[first : first + totals.size] += totals
    gene_total = np.concatenate([partial.gene_total for partial in partials], axis=1)
    gene_cells = np.concatenate([partial.gene_cells for partial in partials], axis=1)
    return [Summary(cell_total, *each) for each in zip(gene_total, gene_cells, strict=True)]


def _side_by_side(part: Part, spans: Sequence[tuple[int, int]], found: Sequence[Tables | None]) -> Tables:
    """Put the tables of blocks of columns together."""
    if len(found) == 1 and found[0] is not None:
        return replace(found[0], genes=part.genes)
    n_genes, size = part.genes.size, part.nodes.size
    values = np.zeros(size * n_genes)
    presence = np.zeros(size * n_genes) if part.presence else None
    histogram = np.zeros((n_genes, DIRECT + 1), np.int32)
    tails: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for span, tables in zip(spans, found, strict=True):
        if tables is None:
            continue
        at = np.flatnonzero(_within(part.genes, span))
        histogram[at] = tables.histogram
        tails |= {int(at[g]): tail for g, tail in tables.tails.items()}
        _put(tables.values, part.nodes.start, at, n_genes, values)
        if presence is not None:
            _put(tables.presence, part.nodes.start, at, n_genes, presence)
    return Tables(part.genes, values, histogram, dict(sorted(tails.items())), presence)


@entry
def _put(values, start, at, n_genes, out):
    for s in range(start.size - 1):
        n = start[s + 1] - start[s]
        for i in range(at.size):
            source, target = start[s] * at.size + i * n, start[s] * n_genes + at[i] * n
            for k in range(n):
                out[target + k] = values[source + k]
