"""Finding the genes that a figure is asked to show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scglmm.results.names import near_first


def gene_labels(adata: AnnData, gene_symbols: str | None) -> NDArray[np.object_]:
    """Names to write for all genes: those of `adata.var`, or of one of its columns.

    Raises
    ------
    KeyError
        There is no such column.
    """
    if gene_symbols is None:
        return adata.var_names.to_numpy(dtype=object)
    if gene_symbols not in adata.var.columns:
        listed = near_first(gene_symbols, adata.var.columns)
        msg = f"No column {gene_symbols!r} in `adata.var`. Columns: {listed}."
        raise KeyError(msg)
    return adata.var[gene_symbols].astype(str).to_numpy(dtype=object)


def find_genes(adata: AnnData, genes: str | Sequence[str], labels: NDArray[np.object_]) -> NDArray[np.intp]:
    """Positions in `adata.var` of the genes asked for, by name or label, in their order and without repeats.

    Raises
    ------
    KeyError
        There is no gene of that name.
    ValueError
        No gene was asked for.
    """
    names = adata.var_names.to_numpy(dtype=object)
    rows: list[int] = []
    for gene in [genes] if isinstance(genes, str) else list(genes):
        found = np.flatnonzero((names == gene) | (labels == gene))
        if not found.size:
            valid = list(dict.fromkeys([*labels, *names]))
            msg = f"No gene {gene!r} in `adata`. Near names: {near_first(gene, valid, limit=5)}."
            raise KeyError(msg)
        rows += found.tolist()
    if not rows:
        msg = "`genes` is empty."
        raise ValueError(msg)
    return np.array(list(dict.fromkeys(rows)), dtype=np.intp)


def find_gene(adata: AnnData, gene: str, gene_symbols: str | None) -> tuple[int, str]:
    """Position in `adata.var` of one gene, by name or label, and the label to write.

    Raises
    ------
    KeyError
        There is no gene of that name.
    ValueError
        There are several.
    TypeError
        `gene` is not one name.
    """
    if not isinstance(gene, str):
        msg = f"`gene` must be the name of one gene, not {gene!r}."
        raise TypeError(msg)
    labels = gene_labels(adata, gene_symbols)
    rows = find_genes(adata, gene, labels)
    if len(rows) > 1:
        msg = f"{len(rows)} genes are called {gene!r}: give the name in `adata.var_names`."
        raise ValueError(msg)
    return int(rows[0]), str(labels[rows[0]])
