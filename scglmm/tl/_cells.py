"""The cells of a stored result, and the model on them, for what looks at a gene again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from scglmm.compression.chunks import cell_totals, chunks, read_column
from scglmm.formula import Design, build_design, parse_formula
from scglmm.formula.columns import in_memory
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
        return read_column(self.source.matrix, self.column(gene))[self.rows]


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
    obs = in_memory(adata.obs)
    rows = np.arange(adata.n_obs)
    if group is not None:
        column = grouping(adata, result)
        if column is None or column not in obs:
            msg = f"The column {column!r} of `adata.obs`, by which the cells were grouped, is gone."
            raise KeyError(msg)
        rows = np.flatnonzero(obs[column].astype(str).map(storable) == group)
        if not rows.size:
            msg = f"No cell of the group {group!r} is left in `adata`."
            raise ValueError(msg)
    params = entry.get("params", {})
    source = find_counts(adata, params.get("layer"), bool(params.get("use_raw", False)))
    design = build_design(parse_formula(str(entry["formula"])), obs.iloc[rows], na_action="drop")
    rows = rows[design.kept]
    offset = design.offset
    if offset is None:
        offset = np.log(cell_totals(source.matrix)[rows])
    return Cells(rows, design, offset, source, str(entry.get("method", "reml")), _model(entry))


def _model(entry: Mapping[str, Any]) -> str:
    """Name the family of a run, with what it had besides."""
    family = str(entry.get("family", FAMILY))
    if entry.get("ziformula") is not None:
        family += f" with ziformula={str(entry['ziformula'])!r}"
    return family + (f" with n_quad={int(entry['n_quad'])}" if int(entry.get("n_quad", 1)) > 1 else "")


def _blocks(matrix: Any) -> Iterator[tuple[int, int, sparse.csr_array]]:
    """First row, first column and rows, some at a time; for every column, rows come in increasing order."""
    for chunk in chunks(matrix):
        step = BLOCK if chunk.matrix.format == "csr" else max(1, chunk.matrix.shape[0])
        for first in range(0, chunk.matrix.shape[0], step):
            part = chunk.matrix if step >= chunk.matrix.shape[0] else chunk.matrix[first : first + step]
            yield chunk.row + first, chunk.column, sparse.csr_array(part)


def columns_of(cells: Cells, genes: np.ndarray) -> sparse.csc_array:
    """Read the counts (n, G) of genes at positions in `adata.var`, on the cells."""
    matrix = cells.source.matrix
    columns = np.array([cells.column(int(gene)) for gene in genes], np.int64)
    rows, places, values = [], [], []
    for chunk in chunks(matrix, int(columns.min()), int(columns.max()) + 1) if columns.size else []:
        inside = np.flatnonzero((columns >= chunk.columns.start) & (columns < chunk.columns.stop))
        part = chunk.matrix[:, columns[inside] - chunk.column].tocoo()
        rows.append(chunk.row + part.row)
        places.append(inside[part.col])
        values.append(part.data.astype(np.float64))
    shape = (matrix.shape[0], columns.size)
    if not rows:
        return sparse.csc_array(shape)[cells.rows]
    at = np.concatenate(rows), np.concatenate(places)
    return sparse.csc_array(sparse.csr_array((np.concatenate(values), at), shape=shape)[cells.rows])


def largest(matrix: Any, rows: np.ndarray, codes: np.ndarray, n_levels: int) -> tuple[np.ndarray, ...]:
    """Of every column of a matrix the cell and the level with the most counts, and how many, and the total count.

    Cells are numbered as `rows` is, codes are those of `rows`.
    """
    m = matrix.shape[1]
    number = np.full(matrix.shape[0], -1, np.int64)
    number[rows] = np.arange(rows.size)
    cell, count, by_level = np.zeros(m, np.int64), np.zeros(m), np.zeros((n_levels, m))
    for first, column, block in _blocks(matrix):
        inside = np.flatnonzero(number[first : first + block.shape[0]] >= 0)
        if not inside.size:
            continue
        here = slice(column, column + block.shape[1])
        own = block[inside].astype(np.float64)
        numbers = number[first + inside]
        at = codes[numbers], np.arange(inside.size)
        by_level[:, here] += sparse.csr_array((np.ones(inside.size), at), shape=(n_levels, inside.size)) @ own
        top = own.max(axis=0).toarray().ravel()
        row = np.repeat(numbers, np.diff(own.indptr))
        hit = (own.data == top[own.indices]) & (top[own.indices] > count[here][own.indices])
        # backwards, so that the first of several stays
        cell[here][own.indices[hit][::-1]] = row[hit][::-1]
        count[here] = np.maximum(count[here], top)
    return cell, count, by_level.argmax(axis=0), by_level.max(axis=0), by_level.sum(axis=0)
