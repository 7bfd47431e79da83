"""The cells of a stored result, and the model on them, for what looks at a gene again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from scglmm.compression.counts import is_in_memory_sparse, row_chunks
from scglmm.formula import Design, build_design, parse_formula
from scglmm.results import StoredResult
from scglmm.results.names import storable

from ._counts import Source, find_counts

FAMILY = "nbinom2"
BLOCK = 50_000  # rows of a matrix that are looked at together


@dataclass(frozen=True)
class Cells:
    """Cells that a stored result was fitted to, and the model on them.

    Attributes
    ----------
    rows
        (n,) their rows in `adata`.
    design
        The formula on them.
    offset
        (n,) natural log.
    source
        Where the counts are.
    method
        `"reml"` or `"ml"`.
    family
        `"nbinom2"`, or another model of which only the counts can be shown.
    """

    rows: np.ndarray
    design: Design
    offset: np.ndarray
    source: Source
    method: str
    family: str

    def column(self, gene: int) -> int:
        """Column of the matrix for the gene at a position in `adata.var`."""
        column = int(self.source.columns[gene])
        if column < 0:
            msg = f"The gene is not in {self.source.name}."
            raise KeyError(msg)
        return column

    def counts(self, gene: int) -> np.ndarray:
        """Read the counts (n,) of the gene at a position in `adata.var`."""
        matrix, column = self.source.matrix, self.column(gene)
        if is_in_memory_sparse(matrix):
            return np.asarray(matrix[:, [column]].todense()).ravel()[self.rows]
        chunks = [np.asarray(chunk[:, [column]].todense()).ravel() for _, chunk in row_chunks(matrix)]
        return np.concatenate(chunks)[self.rows]


def grouping(adata: AnnData, result: StoredResult) -> str | None:
    """Name of the obs column whose groups were fitted apart, None where there is none."""
    entry = adata.uns.get(result.key)
    column = entry.get("groupby") if isinstance(entry, Mapping) and result.groups is not None else None
    return None if column is None else str(column)


def fitted_cells(adata: AnnData, result: StoredResult, group: str | None) -> Cells:
    """Find the cells of a result, and rebuild its model on them.

    Raises
    ------
    KeyError
        What describes the model is no longer in `adata.uns`, or columns or counts that it needs are gone.
    ValueError
        No cell of the group is left.
    """
    entry = adata.uns.get(result.key)
    if not isinstance(entry, Mapping) or "formula" not in entry:
        msg = f"`adata.uns` has no entry {result.key!r} with the formula, which is needed to look at a gene again."
        raise KeyError(msg)
    rows = np.arange(adata.n_obs)
    if group is not None:
        column = grouping(adata, result)
        if column is None or column not in adata.obs:
            msg = f"The column {column!r} of `adata.obs`, by which the cells were grouped, is gone."
            raise KeyError(msg)
        rows = np.flatnonzero(adata.obs[column].astype(str).map(storable) == group)
        if not rows.size:
            msg = f"No cell of the group {group!r} is left in `adata`."
            raise ValueError(msg)
    params = entry.get("params", {})
    source = find_counts(adata, params.get("layer"), bool(params.get("use_raw", False)))
    design = build_design(parse_formula(str(entry["formula"])), adata.obs.iloc[rows], na_action="drop")
    rows = rows[design.kept]
    offset = design.offset
    if offset is None:
        offset = np.log(_totals(source.matrix)[rows])
    return Cells(rows, design, offset, source, str(entry.get("method", "reml")), _model(entry))


def _model(entry: Mapping[str, Any]) -> str:
    """Name the family of a run, with what it had besides."""
    family = str(entry.get("family", FAMILY))
    if entry.get("ziformula") is not None:
        family += f" with ziformula={str(entry['ziformula'])!r}"
    return family + (f" with n_quad={int(entry['n_quad'])}" if int(entry.get("n_quad", 1)) > 1 else "")


def _totals(matrix: Any) -> np.ndarray:
    chunks = [matrix] if is_in_memory_sparse(matrix) else (chunk for _, chunk in row_chunks(matrix))
    return np.concatenate([np.asarray(chunk.sum(axis=1), dtype=np.float64).ravel() for chunk in chunks])


def _blocks(matrix: Any) -> Iterator[tuple[int, sparse.csr_array]]:
    """First row and rows, some at a time."""
    if not is_in_memory_sparse(matrix):
        yield from row_chunks(matrix)
        return
    step = BLOCK if matrix.format == "csr" else matrix.shape[0]
    for first in range(0, matrix.shape[0], max(1, step)):
        yield first, sparse.csr_array(matrix[first : first + step] if step < matrix.shape[0] else matrix)


def columns_of(cells: Cells, genes: np.ndarray) -> sparse.csc_array:
    """Read the counts (n, G) of genes at positions in `adata.var`, on the cells."""
    columns = np.array([cells.column(int(gene)) for gene in genes], np.int64)
    blocks = [sparse.csr_array(block[:, columns]) for _, block in _blocks(cells.source.matrix)]
    return sparse.csc_array(sparse.vstack(blocks, format="csr")[cells.rows], dtype=np.float64)


def largest(matrix: Any, rows: np.ndarray, codes: np.ndarray, n_levels: int) -> tuple[np.ndarray, ...]:
    """Of every column of a matrix the cell and the level with the most counts, and how many, and the total count.

    Cells are numbered as `rows` is, codes are those of `rows`.
    """
    m = matrix.shape[1]
    number = np.full(matrix.shape[0], -1, np.int64)
    number[rows] = np.arange(rows.size)
    cell, count, by_level = np.zeros(m, np.int64), np.zeros(m), np.zeros((n_levels, m))
    for first, block in _blocks(matrix):
        inside = np.flatnonzero(number[first : first + block.shape[0]] >= 0)
        if not inside.size:
            continue
        own = block[inside].astype(np.float64)
        numbers = number[first + inside]
        at = codes[numbers], np.arange(inside.size)
        by_level += sparse.csr_array((np.ones(inside.size), at), shape=(n_levels, inside.size)) @ own
        top = own.max(axis=0).toarray().ravel()
        row = np.repeat(numbers, np.diff(own.indptr))
        hit = (own.data == top[own.indices]) & (top[own.indices] > count[own.indices])
        # backwards, so that the first of several stays
        cell[own.indices[hit][::-1]] = row[hit][::-1]
        count = np.maximum(count, top)
    return cell, count, by_level.argmax(axis=0), by_level.max(axis=0), by_level.sum(axis=0)
