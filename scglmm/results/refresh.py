"""Rebuilding what `uns` holds per gene, after genes were subset."""

from __future__ import annotations

from anndata import AnnData

from scglmm.results.rank_genes import RANKED, rank_arrays
from scglmm.results.read import read_result
from scglmm.results.write import assign, check_target


def refresh_rank_arrays(adata: AnnData, key: str) -> None:
    """Rebuild the record arrays of ``adata.uns[key]`` from `adata.varm`; see :func:`scglmm.tl.refresh`."""
    check_target(adata, key, "key")
    result = read_result(adata, key)
    if result.key not in adata.uns:
        msg = f"`adata.uns` has no entry {result.key!r} to refresh: run `scglmm.tl.nbmm` again."
        raise KeyError(msg)
    tests = [
        (group, c, *(result.column(table, c, group).to_numpy() for table in ("coef", "stat", "pval", "padj")))
        for group in result.fitted_groups
        for c in result.coefficients_in(group)
    ]
    arrays = rank_arrays(adata.var_names, tests)
    kept = {name: value for name, value in adata.uns[result.key].items() if name not in RANKED}
    assign(adata, {}, result.key, kept | arrays)
