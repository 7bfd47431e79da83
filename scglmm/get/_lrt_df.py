"""`scglmm.get.lrt_df`."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from scglmm.results.names import near_first, storable


def lrt_df(adata: AnnData, key: str = "nbmm_lrt") -> pd.DataFrame:
    """Likelihood ratio tests of :func:`scglmm.tl.lrt` as a tidy table, one row per gene, smallest p-value first.

    Parameters
    ----------
    adata
        Object with results. Only `adata.varm` is read, so genes may have been subset since.
    key
        Name of the result, the `key_added` of :func:`scglmm.tl.lrt`.

    Returns
    -------
    Table with the columns `gene`, `statistic`, `df`, `pval`, `padj`, `loglik`, `loglik_reduced` (natural log) and
    `status`, that of the fit of the larger model. Ties are broken by the statistic; genes without a p-value come last.

    Raises
    ------
    KeyError
        There is no such result; those that exist are listed.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Sex + (1|SubID)")
    >>> scglmm.tl.lrt(adata, "~ Sex + (1|SubID)")
    >>> scglmm.get.lrt_df(adata).shape
    (5, 8)
    """
    table = adata.varm.get(storable(key))
    if not (isinstance(table, pd.DataFrame) and "loglik_reduced" in table):
        keys = [k for k, v in adata.varm.items() if isinstance(v, pd.DataFrame) and "loglik_reduced" in v]
        there = f"Results in it: {near_first(key, keys)}." if keys else "Run `scglmm.tl.lrt` first."
        msg = f"No likelihood ratio test {key!r} in `adata.varm`. {there}"
        raise KeyError(msg)
    names = ["statistic", "df", "pval", "padj", "loglik", "loglik_reduced", "status"]
    out = table[names].reset_index(drop=True)
    out.insert(0, "gene", adata.var_names.to_numpy())
    out["status"] = out["status"].astype(str).to_numpy(dtype=object)
    order = pd.DataFrame({"pval": out["pval"], "strength": -out["statistic"]})
    return out.loc[order.sort_values(["pval", "strength"], kind="stable").index].reset_index(drop=True)
