"""Everything that is known before the first fit: the groups, their models, their counts and offsets."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scanpy import logging as logg

from scglmm.compression.nodes import ZERO_INFLATED
from scglmm.compression.tables import Part
from scglmm.inference.cell_level import Placed, place_models

from ._counts import Source, check_counts, find_counts
from ._groups import Group, check_some_fitted, prepare_groups
from ._info import check_names
from ._options import RunOptions, check_quadrature, genes_in_matrix, parse_right_side, selected_genes

if TYPE_CHECKING:
    from anndata import AnnData

    from scglmm.compression.counts import Summary

FEW_GENES = 2_000  # below this the sum over genes is hardly a library size
RELATIVE_ERROR = 1e-10  # of the log-likelihood, by interpolation
ABSOLUTE_ERROR = 1e-4


@dataclass(frozen=True)
class Run:
    """What a run is going to fit.

    Attributes
    ----------
    groups
        All groups; those that are skipped have a reason. Without `groupby` there is one, whose name is None.
    fitted
        The groups that are fitted.
    source
        Where the counts are.
    positions
        (G,) genes of `adata` that were selected and have counts.
    summaries, offsets, testable
        For each of `fitted`: sums of its counts, offsets of the cells it uses (natural log), and (G,) which of the
        genes it fits.
    offset_name
        What the offset is.
    family
        `"nbinom2"` or `"poisson"`.
    n_quad
        Points of adaptive quadrature.
    """

    groups: list[Group]
    fitted: list[Group]
    source: Source
    positions: np.ndarray
    summaries: list[Summary]
    offsets: list[np.ndarray]
    testable: list[np.ndarray]
    offset_name: str
    family: str = "nbinom2"
    n_quad: int = 1

    @property
    def n_fits(self) -> int:
        """Number of fits: genes, over all groups."""
        return sum(int(able.sum()) for able in self.testable)

    def place_nodes(self) -> list[Placed]:
        """Place the nodes of every group."""
        placed = []
        for group, offset, summary in zip(self.fitted, self.offsets, self.summaries, strict=True):
            inflated = group.inflation is not None
            placed += place_models(
                [group.design],
                [group.frame],
                group.stratum,
                offset,
                tolerance=tolerance(summary),
                singularity=singularity(self.family, inflated),
                interpolate=not inflated and self.n_quad == 1,
            )
        return placed

    def parts(self, placed: list[Placed]) -> list[Part]:
        """Cells and columns of the matrix that every group fits."""
        return [
            Part(group.used, each.nodes, self.source.columns[self.positions[able]], group.inflation is not None)
            for group, each, able in zip(self.fitted, placed, self.testable, strict=True)
        ]


def prepare_run(adata: AnnData, formula: str, options: RunOptions, mask_var: Any) -> Run:
    """Check the data and the formula against each other; the counts are read once.

    Raises
    ------
    KeyError, TypeError, ValueError
        As :func:`scglmm.tl.nbmm`.
    """
    parsed = parse_right_side(formula)
    groups = prepare_groups(
        parsed, adata.obs, options.groupby, options.na_action, options.min_donors, options.inflation
    )
    selected = selected_genes(adata, mask_var)
    source = find_counts(adata, options.layer, options.use_raw)
    positions = np.flatnonzero(genes_in_matrix(selected, source))
    fitted = [group for group in groups if not group.reason]
    check_quadrature(fitted[0].design, options.n_quad)
    check_names(fitted)
    summaries = _sum_counts(adata, source, fitted)
    offsets, offset_name = _offsets(adata, fitted, summaries, source)
    least = max(1, options.min_cells)
    testable = [summary.gene_cells[source.columns[positions]] >= least for summary in summaries]
    if options.groupby is not None:
        for group, able in zip(fitted, testable, strict=True):
            if not able.any():
                group.skip(f"no gene has counts in min_cells={options.min_cells} of its cells")
        check_some_fitted(groups, options.groupby)
        kept = [k for k, group in enumerate(fitted) if not group.reason]
        fitted, summaries, offsets, testable = (
            [each[k] for k in kept] for each in (fitted, summaries, offsets, testable)
        )
    return Run(
        groups, fitted, source, positions, summaries, offsets, testable, offset_name, options.family, options.n_quad
    )


def _sum_counts(adata: AnnData, source: Source, groups: list[Group]) -> list[Summary]:
    """Check the counts of all groups, and sum each group."""
    label = np.full(adata.n_obs, -1, np.int64)
    for k, group in enumerate(groups):
        label[group.used] = k
    return check_counts(adata, source, label, len(groups))


def _offsets(
    adata: AnnData, groups: list[Group], summaries: list[Summary], source: Source
) -> tuple[list[np.ndarray], str]:
    """Offsets of the cells that are used in every group (natural log), and what they are."""
    if groups[0].design.offset is not None:
        return [group.design.offset for group in groups], " + ".join(groups[0].design.formula.offsets)
    totals = [summary.cell_total[group.used] for group, summary in zip(groups, summaries, strict=True)]
    empty = sum(int((total <= 0).sum()) for total in totals)
    if empty:
        msg = (
            f"{empty} cells have no counts at all, so the log of their total count cannot be the offset: "
            "remove them (`sc.pp.filter_cells(adata, min_counts=1)`), or give an offset, e.g. `offset(log(libSize))`."
        )
        raise ValueError(msg)
    logg.info("no offset() in the formula: the log of each cell's total count over all genes is the offset")
    n_genes = source.matrix.shape[1]
    if n_genes < FEW_GENES:
        there = "total_counts" in adata.obs
        advice = (
            "`offset(log(total_counts))` uses adata.obs['total_counts']"
            if there
            else ("give the library size of the full data as an obs column: `offset(log(column))`")
        )
        msg = f"The offset is the total count over only {n_genes} genes, which is hardly a library size: {advice}."
        warnings.warn(msg, UserWarning, stacklevel=4)
    return [np.log(total) for total in totals], "log(total count)"


def singularity(family: str, inflated: bool = False) -> float:
    """Where the functions that are interpolated are singular, see `scglmm.compression.nodes.n_nodes`."""
    if inflated:
        return ZERO_INFLATED
    return np.inf if family == "poisson" else np.pi


def tolerance(summary: Summary) -> float:
    """Relative error of the nodes that keeps the absolute error of every gene's log-likelihood below 1e-4.

    A count contributes at most about log(1 + mu/theta) < 20 to the sums that are interpolated.
    """
    largest = 20.0 * max(1.0, float(summary.gene_total.max()))
    return max(1e-14, min(RELATIVE_ERROR, ABSOLUTE_ERROR / largest))
