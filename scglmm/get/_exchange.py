"""Results in the shape that other packages take: `scglmm.get.stat_matrix` and `scglmm.get.pertpy_df`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scanpy import logging as logg
from scipy import stats

from scglmm.get._select import check_symbols, find_contrasts
from scglmm.results import read_result

VALUES = ("statistic", "z", "log2_fc", "log_fc")


def stat_matrix(
    adata: AnnData,
    coef: str | Sequence[str] | None = None,
    *,
    key: str = "nbmm",
    group: str | Sequence[str] | None = None,
    value: str = "statistic",
    gene_symbols: str | None = None,
    missing: float | None = 0.0,
) -> pd.DataFrame:
    """Test statistics as a matrix, contrasts × genes, the `data` that decoupler's methods take.

    Parameters
    ----------
    adata
        Object with results of :func:`scglmm.tl.nbmm`.
    coef
        One coefficient or several. By default all but the intercept.
    key
        Name of the result.
    group
        One group or several, for results with `groupby`. By default all that were fitted.
    value
        "statistic"; "z", the standard normal quantile of the p-value with the sign of the effect, which is comparable
        between genes whose t statistics have different degrees of freedom; "log2_fc" or "log_fc" (natural).
    gene_symbols
        Column of `adata.var` with names for the genes, for instance those that a gene set database uses. Of genes with
        the same name the one with most counts is kept; genes without a name are left out.
    missing
        What stands for genes that were tested in other contrasts only. None leaves NaN, which decoupler refuses.

    Returns
    -------
    Table, contrasts × genes that were tested in at least one of them, in the order of `adata.var`. Contrasts are
    called by their coefficient, by their group where there is one coefficient and several groups, or
    "{group}|{coef}".

    Raises
    ------
    KeyError
        No such result, coefficient, group or `gene_symbols`.
    ValueError
        The group was skipped, or `value` is not one of those above.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Sex + (1|SubID)")
    >>> scglmm.get.stat_matrix(adata).shape
    (2, 5)

    With decoupler 2 and a network `net` (columns source, target and weight)::

        scores, padj = decoupler.mt.ulm(data=scglmm.get.stat_matrix(adata), net=net)
    """
    if value not in VALUES:
        msg = f"`value` must be one of {', '.join(map(repr, VALUES))}, not {value!r}."
        raise ValueError(msg)
    result = read_result(adata, key)
    check_symbols(adata, gene_symbols)
    contrasts = find_contrasts(result, coef, group)
    tables = [result.gene_rows(c, g) for g, c in contrasts.values()]
    numbers = np.array([_values(table, value) for table in tables])
    means = np.max([np.nan_to_num(table["mean"].to_numpy(dtype=float)) for table in tables], axis=0)
    names = _names(adata, gene_symbols)
    known = pd.notna(names) & ~np.isnan(numbers).all(axis=0)
    keep = _largest(names, known, means)
    if dropped := int(known.sum()) - len(keep):
        logg.info(f"{dropped} genes share a name with a gene that has more counts, and are left out.")
    columns = pd.Index([str(name) for name in names[keep]], dtype=object)
    matrix = pd.DataFrame(numbers[:, keep], index=pd.Index(list(contrasts), dtype=object), columns=columns)
    return matrix if missing is None else matrix.fillna(missing)


def pertpy_df(
    adata: AnnData,
    coef: str | Sequence[str] | None = None,
    *,
    key: str = "nbmm",
    group: str | Sequence[str] | None = None,
    gene_symbols: str | None = None,
) -> pd.DataFrame:
    """Results under the column names of pertpy's differential expression methods.

    Parameters
    ----------
    adata
        Object with results of :func:`scglmm.tl.nbmm`.
    coef
        One coefficient or several. By default all but the intercept.
    key
        Name of the result.
    group
        One group or several, for results with `groupby`. By default all that were fitted.
    gene_symbols
        Column of `adata.var` with the names to put into `variable`.

    Returns
    -------
    Table with one row per tested gene and contrast, best first within a contrast: `variable` (the gene), `log_fc` (log2
    as in pertpy), `p_value`, `adj_p_value` and `contrast`, which is named as in :func:`scglmm.get.stat_matrix`; then
    `se` (log2), `statistic` and `df`.

    Raises
    ------
    KeyError
        No such result, coefficient, group or `gene_symbols`.
    ValueError
        The group was skipped.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> scglmm.get.pertpy_df(adata).columns[:5].tolist()
    ['variable', 'log_fc', 'p_value', 'adj_p_value', 'contrast']
    """
    result = read_result(adata, key)
    check_symbols(adata, gene_symbols)
    names = _names(adata, gene_symbols)
    parts = []
    contrasts = find_contrasts(result, coef, group)
    for contrast, (g, c) in contrasts.items():
        table = result.gene_rows(c, g)
        part = pd.DataFrame(
            {
                "variable": names,
                "log_fc": table["log2_fc"],
                "p_value": table["pval"],
                "adj_p_value": table["padj"],
                "contrast": contrast,
                "se": table["se"] / np.log(2),
                "statistic": table["statistic"],
                "df": table["df"],
            }
        )
        order = np.lexsort((-table["statistic"].abs(), table["pval"]))
        parts.append(part.iloc[order[table["pval"].notna().to_numpy()[order]]])
    return pd.concat(parts, ignore_index=True)


def _names(adata: AnnData, gene_symbols: str | None) -> NDArray[np.object_]:
    names = adata.var_names if gene_symbols is None else adata.var[gene_symbols]
    return names.to_numpy(dtype=object)


def _values(table: pd.DataFrame, value: str) -> NDArray[np.float64]:
    """One number per gene, NaN where the gene was not tested."""
    pval = table["pval"].to_numpy(dtype=float)
    if value == "z":
        # a p-value that underflows to 0 is as small as a number can be
        smallest = np.maximum(pval, np.nextafter(0, 1)) / 2
        numbers = np.sign(table["statistic"].to_numpy(dtype=float)) * stats.norm.isf(np.maximum(smallest, 1e-323))
    else:
        numbers = table[value].to_numpy(dtype=float)
    return np.where(np.isnan(pval), np.nan, numbers)


def _largest(names: NDArray[np.object_], known: NDArray[np.bool_], means: NDArray[np.float64]) -> NDArray[np.intp]:
    """Positions of the genes to keep: of those with the same name, the one with the largest mean."""
    rows = np.flatnonzero(known)
    by_mean = rows[np.argsort(-means[rows], kind="stable")]
    first = ~pd.Series(names[by_mean]).duplicated().to_numpy()
    return np.sort(by_mean[first])
