"""The cells of a stored result, and the model on them, for what looks at a gene again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData

from scglmm.compression.chunks import cell_totals, read_column
from scglmm.formula import Design, build_design, parse_formula
from scglmm.formula.columns import in_memory
from scglmm.results import StoredResult
from scglmm.results.names import storable

from ._counts import Source, find_counts

FAMILY = "nbinom2"


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
