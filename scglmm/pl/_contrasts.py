"""Genes × contrasts: what the forest plot, the heatmap and the dot plot are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scglmm.pl._genes import find_genes, gene_labels
from scglmm.results import StoredResult, read_result
from scglmm.results.names import readable


@dataclass(frozen=True)
class Contrasts:
    """Results of some genes for some contrasts, each a coefficient in a group of cells.

    Attributes
    ----------
    pairs
        Group (or None) and coefficient of every contrast.
    labels
        Their names, without what they have in common.
    shared
        What they have in common, empty where that is nothing.
    genes
        Names of the genes to write.
    log2_fc, se, df, pval, padj
        Arrays, genes × contrasts; `se` is on the log2 scale. NaN where there is no estimate or test.
    status
        Statuses, genes × contrasts.
    """

    pairs: list[tuple[str | None, str]]
    labels: list[str]
    shared: str
    genes: NDArray[np.object_]
    log2_fc: NDArray[np.float64]
    se: NDArray[np.float64]
    df: NDArray[np.float64]
    pval: NDArray[np.float64]
    padj: NDArray[np.float64]
    status: NDArray[np.object_]

    def take(self, rows: NDArray[np.intp]) -> Contrasts:
        """Results of some of the genes, in the order given."""
        arrays = {
            name: getattr(self, name)[rows] for name in ("genes", "log2_fc", "se", "df", "pval", "padj", "status")
        }
        return Contrasts(self.pairs, self.labels, self.shared, **arrays)


def find_contrasts(
    adata: AnnData,
    key: str,
    coef: str | Sequence[str] | None,
    group: str | Sequence[str] | None,
    genes: str | Sequence[str] | None,
    n_genes: int,
    gene_symbols: str | None,
) -> Contrasts:
    """Collect the results of genes × contrasts.

    Contrasts are the coefficients asked for in all the groups asked for. By default those are all coefficients but
    the intercept, or, in results with groups, the only one, in all groups that were fitted. Genes are those named, or
    the `n_genes` that have the smallest p-values in the contrasts in turn: the best of each, then the second, ...

    Raises
    ------
    KeyError
        No such result, coefficient, group, `gene_symbols` or gene.
    ValueError
        A choice is needed and was not made, `n_genes` is below 1, or nothing was tested.
    """
    if n_genes < 1:
        msg = f"`n_genes` must be at least 1, not {n_genes}."
        raise ValueError(msg)
    result = read_result(adata, key)
    pairs = _pairs(result, coef, group)
    labels, shared = _labels(result, pairs)
    names = gene_labels(adata, gene_symbols)
    wanted = None if genes is None else find_genes(adata, genes, names)
    tables = [result.gene_rows(c, g) for g, c in pairs]

    def stack(column: str) -> NDArray:
        return np.column_stack([table[column].to_numpy() for table in tables])

    pval = stack("pval")
    rows = _best(pval, n_genes) if wanted is None else wanted
    if np.isnan(pval[rows]).all():
        msg = "None of these genes has a p-value: there is nothing to draw."
        raise ValueError(msg)
    every = Contrasts(
        pairs,
        labels,
        shared,
        names,
        stack("log2_fc"),
        stack("se") / np.log(2),
        stack("df"),
        pval,
        stack("padj"),
        stack("status"),
    )
    return every.take(rows)


def _pairs(
    result: StoredResult, coef: str | Sequence[str] | None, group: str | Sequence[str] | None
) -> list[tuple[str | None, str]]:
    groups = result.fitted_groups
    if group is not None:
        groups = [result.find_group(g) for g in ([group] if isinstance(group, str) else group)]
    within = groups[0] if len(groups) == 1 else None
    if coef is not None:
        coefs = [result.find_coefficient(c, within) for c in ([coef] if isinstance(coef, str) else coef)]
    elif len(groups) == 1:
        coefs = [c for c in result.coefficients_in(within) if c in result.tested]
    else:
        coefs = result.tested
        if len(coefs) > 1:
            listed = ", ".join(repr(c) for c in coefs)
            msg = f"The result {result.key!r} has several coefficients in several groups: choose with `coef`, {listed}."
            raise ValueError(msg)
    pairs = [(g, c) for c in dict.fromkeys(coefs) for g in dict.fromkeys(groups) if c in result.coefficients_in(g)]
    if not pairs:
        msg = "No coefficient besides the intercept is left: there is nothing to draw."
        raise ValueError(msg)
    return pairs


def _labels(result: StoredResult, pairs: list[tuple[str | None, str]]) -> tuple[list[str], str]:
    """Names of the contrasts, and what all of them have in common."""
    groups = {g for g, _ in pairs}
    coefs = {c for _, c in pairs}
    if len(groups) == 1:
        (group,) = groups
        return [readable(c) for _, c in pairs], "" if group is None else readable(group)
    if len(coefs) == 1:
        return [readable(str(g)) for g, _ in pairs], readable(next(iter(coefs)))
    return [f"{readable(str(g))}: {readable(c)}" for g, c in pairs], ""


def _best(pval: NDArray[np.float64], n_genes: int) -> NDArray[np.intp]:
    """Genes with the smallest p-values of each contrast in turn, the best of all first."""
    order = np.argsort(pval, axis=0, kind="stable")
    in_turn = order[np.isfinite(np.take_along_axis(pval, order, axis=0))] if pval.shape[1] == 1 else order.ravel()
    tested = np.asarray(np.isfinite(pval).any(axis=1))
    chosen = np.array(list(dict.fromkeys(in_turn[tested[in_turn]].tolist()))[:n_genes], dtype=np.intp)
    smallest = np.nanmin(pval[chosen], axis=1) if chosen.size else np.empty(0)
    return chosen[np.argsort(smallest, kind="stable")]
