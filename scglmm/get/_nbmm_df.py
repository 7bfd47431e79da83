"""`scglmm.get.nbmm_df`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from scglmm.results import StoredResult, read_result
from scglmm.results.names import near_first

COLUMNS = ("gene", "log_fc", "log2_fc", "se", "statistic", "df", "pval", "padj", "mean", "status")
"""Columns of the table, in order."""

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
        Column of `adata.var` to add, after `gene` and under its own name (with "var_" before it where the
        table has a column of that name).
    pval_cutoff
        Keep the genes whose adjusted p-value is below this.
    log2fc_min, log2fc_max
        Keep the genes whose log2 fold change is above, or below, this.

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

    Raises
    ------
    KeyError
        No such result, coefficient, group, `gene_symbols` or `sort_by`; the valid ones are listed.
    ValueError
        The group was skipped, or `group` was given for a result without groups.

    Examples
    --------
    >>> scglmm.get.nbmm_df(adata, "Dx[T.AD]", pval_cutoff=0.05)  # doctest: +SKIP
    """
    result = read_result(adata, key)
    if sort_by is not None and sort_by not in COLUMNS:
        msg = f"Cannot sort by {sort_by!r}. Columns: {near_first(sort_by, COLUMNS)}."
        raise KeyError(msg)
    if gene_symbols is not None and gene_symbols not in adata.var.columns:
        listed = near_first(gene_symbols, adata.var.columns)
        msg = f"No column {gene_symbols!r} in `adata.var`. Columns: {listed}."
        raise KeyError(msg)

    groups = _groups(result, group)
    wanted = _coefficients(result, coef, groups)
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
            blocks.append(_sorted(block, sort_by)[lambda rows, keep=keep: keep[rows.index]])
            labels.append((g, c))

    out = pd.concat(blocks, ignore_index=True)
    sizes = [len(block) for block in blocks]
    if len(wanted) > 1:
        out.insert(0, "coef", _repeat([c for _, c in labels], sizes, wanted))
    if result.groups is not None and len(groups) > 1:
        out.insert(0, "group", _repeat([str(g) for g, _ in labels], sizes, [str(g) for g in groups]))
    return out


def _groups(result: StoredResult, group: str | Sequence[str] | None) -> list[str | None]:
    if group is None:
        return result.fitted_groups
    asked = [group] if isinstance(group, str) else list(group)
    if not asked:
        msg = f"`group` is empty. Groups: {', '.join(repr(g) for g in result.fitted_groups)}."
        raise ValueError(msg)
    return list(dict.fromkeys(result.find_group(g) for g in asked))


def _coefficients(result: StoredResult, coef: str | Sequence[str] | None, groups: list[str | None]) -> list[str]:
    if coef is None:
        if not result.coefficients:
            msg = f"The result {result.key!r} has joint tests only: `scglmm.get.joint_df` reads them."
            raise ValueError(msg)
        return result.tested or result.coefficients
    asked = [coef] if isinstance(coef, str) else list(coef)
    if not asked:
        msg = f"`coef` is empty. Coefficients: {', '.join(repr(c) for c in result.tested)}."
        raise ValueError(msg)
    # a single group is searched on its own, so that the error lists what that group has
    within = groups[0] if len(groups) == 1 else None
    return list(dict.fromkeys(result.find_coefficient(c, within) for c in asked))


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
