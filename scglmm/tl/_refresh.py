"""`scglmm.tl.refresh`."""

from __future__ import annotations

from anndata import AnnData

from scglmm.results import refresh_rank_arrays


def refresh(adata: AnnData, key: str = "nbmm") -> None:
    """Rebuild the arrays that scanpy reads, after genes were subset.

    Subsetting genes subsets `adata.varm`, from which scglmm's own getters and plots read, but not
    `adata.uns`. Run this before :func:`scanpy.get.rank_genes_groups_df` or
    :func:`scanpy.pl.rank_genes_groups` on the subset. Nothing is fitted or adjusted again: the adjusted
    p-values are still those over all genes that were tested.

    Parameters
    ----------
    adata
        Object with results of :func:`scglmm.tl.nbmm`.
    key
        Name of the result.

    Raises
    ------
    KeyError
        There is no such result, or its entry in `adata.uns` is gone.
    ValueError
        `adata` is a view of a backed object.

    Notes
    -----
    Replaces, in ``adata.uns[key]``, the record arrays `names`, `scores`, `logfoldchanges` (log2), `pvals` and
    `pvals_adj`: one field per coefficient, sorted by the statistic, descending, genes without a test last.
    A ":" in the name of a field is spelled "∶" (U+2236), which every version of the Zarr format can store.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> subset = adata[:, :3].copy()
    >>> scglmm.tl.refresh(subset)
    >>> len(subset.uns["nbmm"]["names"])
    3
    """
    refresh_rank_arrays(adata, key)
