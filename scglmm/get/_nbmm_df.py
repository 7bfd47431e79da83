"""`scglmm.get.nbmm_df`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from scglmm.get._select import check_symbols, find_coefficients, find_groups
from scglmm.results import read_result
from scglmm.results.names import SEPARATOR, near_first

COLUMNS = ("gene", "log_fc", "log2_fc", "se", "statistic", "df", "pval", "padj", "mean", "status")
"""Columns of the table, in order."""

_PER_GENE = ("mean", "status")
"""Columns that do not depend on the coefficient."""

_BY_SIZE = ("log_fc", "log2_fc", "statistic")
_DESCENDING = (*_BY_SIZE, "mean", "df")


def nbmm_df(
    adata: AnnData,
    coef: str | Sequence[str] | None = None,
    *,
    key: str = "nbmm",
    group: str | Sequence[str] | None = None,
    sort_by: str | None = "pval",
    gene_symbols: str | None = None,
    pval_cutoff: float | None = None,
    log2fc_min: float | None = None,
    log2fc_max: float | None = None,
    wide: bool = False,
) -> pd.DataFrame:
    """Results of :func:`scglmm.tl.nbmm` as a tidy table, one row per gene, best first.

    Parameters
    ----------
    adata
        Object with results. Only `adata.varm` is read per gene, so genes may have been subset since.
    coef
        One coefficient or several, for instance "Dx[T.AD]". By default all but the intercept.
        A "/" in a name may be written as it is or as it is stored, "∕" (U+2215).
    key
        Name of the result.
    group
        One group or several, for results with `groupby`. By default all that were fitted.
    sort_by
        Column to sort the genes by: "pval", "padj" and "se" ascending, "log_fc", "log2_fc" and "statistic" by
        absolute value, descending, "mean" and "df" descending, "gene" and "status" by name. Ties are broken
        by the absolute statistic, so genes whose p-value underflows to 0 keep their order. None keeps the
        order of `adata.var`. Genes without a p-value come last in any case.
    gene_symbols
        Column of `adata.var` to add, after `gene` and under its own name (with `var_` before it where the
        table has a column of that name).
    pval_cutoff
        Keep the genes whose adjusted p-value is below this.
    log2fc_min, log2fc_max
        Keep the genes whose log2 fold change is above, or below, this.
    wide
        One row per gene, with the columns of all groups and coefficients beside each other. Cut-offs then keep the
        genes that some group and coefficient keep, and genes are in the order of the best of them.

    Returns
    -------
    Table with the columns

    * `coef`, where several coefficients were asked for, and `group`, where several groups were: rows are in
      blocks of one group and coefficient,
    * `gene`: name of the gene,
    * `log_fc`, `log2_fc`: the coefficient as natural and as binary logarithm of the fold change (per unit,
      for a numeric covariate),
    * `se`: standard error of `log_fc` (natural log scale),
    * `statistic`, `df`: t or z statistic and its degrees of freedom (inf for z),
    * `pval`, `padj`: p-value, and the one adjusted over all genes that were tested,
    * `mean`: mean count of the gene per cell,
    * `status`: what became of the gene's fit.

    With `wide` the columns of a coefficient are called "{coef}|log_fc" and so on, those of a group "{group}|mean"
    and "{group}|status", and with both "{group}|{coef}|log_fc"; what was asked for one of needs no name.

    Raises
    ------
    KeyError
        No such result, coefficient, group, `gene_symbols` or `sort_by`; the valid ones are listed.
    ValueError
        The group was skipped, or `group` was given for a result without groups.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Sex + (1|SubID)")
    >>> scglmm.get.nbmm_df(adata, "Dx[T.AD]", pval_cutoff=0.05)["gene"].tolist()
    ['PTPRG']
    >>> scglmm.get.nbmm_df(adata)["coef"].cat.categories.tolist()
    ['Dx[T.AD]', 'Sex[T.M]']
    >>> scglmm.get.nbmm_df(adata, wide=True).shape
    (5, 17)
    """
    result = read_result(adata, key)
    if sort_by is not None and sort_by not in COLUMNS:
        msg = f"Cannot sort by {sort_by!r}. Columns: {near_first(sort_by, COLUMNS)}."
        raise KeyError(msg)
    check_symbols(adata, gene_symbols)

    groups = find_groups(result, group)
    wanted = find_coefficients(result, coef, groups)
    blocks: list[pd.DataFrame] = []
    labels: list[tuple[str | None, str]] = []
    for g in groups:
        for c in wanted:
            if c not in result.coefficients_in(g):
                continue
            block = result.gene_rows(c, g)
            if gene_symbols is not None:
                name = f"var_{gene_symbols}" if gene_symbols in block.columns else gene_symbols
                block.insert(1, name, adata.var[gene_symbols].to_numpy())
            keep = np.ones(len(block), dtype=bool)
            for cut, column, sign in (
                (pval_cutoff, "padj", -1),
                (log2fc_min, "log2_fc", 1),
                (log2fc_max, "log2_fc", -1),
            ):
                if cut is not None:
                    keep &= (sign * (block[column] - cut) > 0).to_numpy()
            block["keep"] = keep
            blocks.append(block)
            labels.append((g, c))
    several_coefs, several_groups = len(wanted) > 1, result.groups is not None and len(groups) > 1
    if wide:
        return _wide(blocks, labels, sort_by, several_groups=several_groups, several_coefs=several_coefs)

    blocks = [_sorted(block, sort_by).loc[lambda rows: rows["keep"]].drop(columns="keep") for block in blocks]
    out = pd.concat(blocks, ignore_index=True)
    sizes = [len(block) for block in blocks]
    if several_coefs:
        out.insert(0, "coef", _repeat([c for _, c in labels], sizes, wanted))
    if several_groups:
        out.insert(0, "group", _repeat([str(g) for g, _ in labels], sizes, [str(g) for g in groups]))
    return out


def _wide(
    blocks: list[pd.DataFrame],
    labels: list[tuple[str | None, str]],
    sort_by: str | None,
    *,
    several_groups: bool,
    several_coefs: bool,
) -> pd.DataFrame:
    """Put tables with a row per gene of `adata.var` beside each other; rows in the order of each gene's best."""
    keep = np.any([block.pop("keep") for block in blocks], axis=0)
    if sort_by is None:
        untested = np.all([block["pval"].isna() for block in blocks], axis=0)
        order = np.argsort(untested, kind="stable")
    else:
        order = pd.unique(_sorted(pd.concat(blocks), sort_by).index.to_numpy())
    shared = [c for c in blocks[0].columns if c not in COLUMNS or c == "gene"]
    columns = {name: blocks[0][name] for name in shared}
    for block, (group, coef) in zip(blocks, labels, strict=True):
        for name in block.columns.difference(shared, sort=False):
            parts = [str(group)] * several_groups + [coef] * (several_coefs and name not in _PER_GENE) + [name]
            columns.setdefault(SEPARATOR.join(parts), block[name])
    return pd.DataFrame(columns).iloc[order[keep[order]]].reset_index(drop=True)


def _sorted(block: pd.DataFrame, sort_by: str | None) -> pd.DataFrame:
    """Rows in the order asked for, untested genes last; the index still tells the row of `adata.var`."""
    ties = pd.DataFrame(index=block.index)
    ties["untested"] = block["pval"].isna()
    ascending = [True]
    if sort_by is not None:
        values = block[sort_by]
        ties["by"] = values.abs() if sort_by in _BY_SIZE else values
        ties["strength"] = block["statistic"].abs()
        ascending += [sort_by not in _DESCENDING, False]
    return block.loc[ties.sort_values(list(ties.columns), ascending=ascending, kind="stable").index]


def _repeat(labels: list[str], sizes: list[int], categories: list[str]) -> pd.Categorical:
    return pd.Categorical(np.repeat(np.array(labels, dtype=object), sizes), categories=categories)
