"""`scglmm.get.shrunken_df`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from scglmm.results import read_result
from scglmm.results.names import near_first
from scglmm.results.shrunken import SHRUNKEN, shrunken_column


def shrunken_df(
    adata: AnnData, coef: str | None = None, *, key: str = "nbmm", group: str | None = None
) -> pd.DataFrame:
    """Shrunken effects of :func:`scglmm.tl.shrink` as a tidy table, one row per gene, the surest sign first.

    Parameters
    ----------
    adata
        Object with results. Only `adata.varm` is read per gene, so genes may have been subset since.
    coef
        Coefficient, for instance "Dx[T.AD]". Needed where the model has more than one besides the intercept.
    key
        Name of the result.
    group
        Group, for results with `groupby`. Needed where more than one was fitted.

    Returns
    -------
    Table with the columns

    * `gene`: name of the gene,
    * `log_fc`, `log2_fc`: the shrunken effect, natural and binary logarithm of the fold change,
    * `sd`: its posterior standard deviation (natural log),
    * `lfsr`, `svalue`, `lfdr`: local false sign rate, s-value and local false discovery rate,
    * `unshrunken_log_fc`, `se`, `df`, `pval`, `padj`: what it came from,
    * `mean`, `status`: mean count of the gene per cell, and what became of its fit.

    Sorted by `lfsr`, and where that is the same by the size of the effect. Genes without an estimate come last.

    Raises
    ------
    KeyError
        No such result, coefficient or group, or the coefficient was not shrunken.
    ValueError
        `coef` or `group` is needed and was not given.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :60].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Sex + (1|SubID)")
    >>> scglmm.tl.shrink(adata, "Dx[T.AD]")
    >>> scglmm.get.shrunken_df(adata, "Dx[T.AD]")["gene"].size
    60
    """
    result = read_result(adata, key)
    group = result.only_group() if group is None else result.find_group(group)
    coef = result.only_coefficient(group) if coef is None else result.find_coefficient(coef, group)
    table = adata.varm.get(f"{result.key}_shrunken", pd.DataFrame())
    if shrunken_column(group, coef, "lfsr") not in table:
        done = [c for c in result.coefficients_in(group) if shrunken_column(group, c, "lfsr") in table]
        there = f"Shrunken are {near_first(coef, done)}." if done else "Run `scglmm.tl.shrink` first."
        msg = f"The coefficient {coef!r} of the result {key!r} has not been shrunken. {there}"
        raise KeyError(msg)
    rows = result.gene_rows(coef, group)
    shrunken = {number: table[shrunken_column(group, coef, number)].to_numpy() for number in SHRUNKEN}
    out = pd.DataFrame({"gene": rows["gene"], "log_fc": shrunken["log_fc"], "log2_fc": shrunken["log_fc"] / np.log(2)})
    for number in ("sd", "lfsr", "svalue", "lfdr"):
        out[number] = shrunken[number]
    out["unshrunken_log_fc"] = rows["log_fc"]
    out[["se", "df", "pval", "padj", "mean", "status"]] = rows[["se", "df", "pval", "padj", "mean", "status"]]
    order = pd.DataFrame({"lfsr": out["lfsr"], "size": -out["log_fc"].abs()})
    return out.loc[order.sort_values(["lfsr", "size"], kind="stable").index].reset_index(drop=True)
