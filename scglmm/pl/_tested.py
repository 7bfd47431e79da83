"""The genes that a figure of one coefficient is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scanpy import logging as logg

from scglmm.pl._genes import find_genes, gene_labels
from scglmm.results import read_result
from scglmm.results.names import readable


@dataclass(frozen=True)
class Tested:
    """Genes with a p-value for one coefficient.

    Attributes
    ----------
    table
        The columns of :func:`scglmm.get.nbmm_df` and `label`, the name to write; index: positions in `adata.var`.
    wanted
        Positions in `adata.var` of the genes that were asked for by name, None where there were none.
    title
        What is shown.
    """

    table: pd.DataFrame
    wanted: NDArray[np.intp] | None
    title: str

    def significant(self, padj_cutoff: float, log2fc_cutoff: float = 0.0) -> NDArray[np.bool_]:
        """Which genes are beyond both cut-offs."""
        table = self.table
        return ((table["padj"] < padj_cutoff) & (table["log2_fc"].abs() > log2fc_cutoff)).to_numpy()

    def to_name(self, significant: NDArray[np.bool_], n_labels: int) -> NDArray[np.intp]:
        """Rows to write the names of, best first: those asked for, or the best significant ones."""
        rank = np.lexsort((-self.table["statistic"].abs().to_numpy(), self.table["pval"].to_numpy()))
        if self.wanted is None:
            return rank[significant[rank]][: max(n_labels, 0)]
        return rank[np.isin(self.table.index.to_numpy()[rank], self.wanted)]


def tested_genes(
    adata: AnnData,
    key: str,
    coef: str | None,
    group: str | None,
    genes: str | Sequence[str] | None,
    gene_symbols: str | None,
) -> Tested:
    """Find the genes that have a p-value for a coefficient; what cannot be drawn is said.

    Raises
    ------
    KeyError
        No such result, coefficient, group, `gene_symbols` or gene.
    ValueError
        `coef` or `group` is needed and was not given, or no gene has a p-value.
    """
    result = read_result(adata, key)
    group = result.only_group() if group is None else result.find_group(group)
    coef = result.only_coefficient(group) if coef is None else result.find_coefficient(coef, group)
    table = result.gene_rows(coef, group)
    table["label"] = gene_labels(adata, gene_symbols)
    wanted = None if genes is None else find_genes(adata, genes, table["label"].to_numpy(dtype=object))

    tested = (table["pval"].notna() & np.isfinite(table["log2_fc"])).to_numpy()
    if not tested.any():
        msg = f"No gene has a p-value for {readable(coef)!r}: there is nothing to draw."
        raise ValueError(msg)
    if not tested.all():
        logg.info(f"{(~tested).sum()} of {len(tested)} genes have no p-value and are not drawn.")
    if wanted is not None:
        for name, status in table.loc[wanted[~tested[wanted]], ["label", "status"]].itertuples(index=False):
            logg.warning(f"{name} was not tested (status {status}): it is not drawn.")
    title = readable(coef) if group is None else f"{readable(group)}: {readable(coef)}"
    return Tested(table[tested], wanted, title)
