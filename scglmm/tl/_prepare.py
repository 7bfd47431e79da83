"""Everything that is known before the first fit: the groups, their models, their counts and offsets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from scanpy import logging as logg

from scglmm.compression.chunks import cell_totals, storage
from scglmm.compression.nodes import ZERO_INFLATED
from scglmm.compression.tables import Part
from scglmm.formula import Formula, formula_columns
from scglmm.formula.columns import in_memory
from scglmm.inference.cell_level import Placed, place_models

from ._counts import Source, check_counts, find_counts
from ._groups import Group, check_some_fitted, prepare_groups
from ._info import check_names
from ._memory import memory_budget, spell_bytes
from ._options import RunOptions, check_quadrature, genes_in_matrix, parse_right_side, selected_genes
from ._precision import Share, share_genes
from ._reading import (
    Ahead,
    Budget,
    make_budget,
    may_fit,
    n_passes,
    place_ahead,
    suits_ahead,
    table_bytes,
)

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scglmm.compression.counts import Summary
    from scglmm.inference.inflation import Inflation

T = TypeVar("T")
FEW_GENES = 2_000  # below this the sum over genes is hardly a library size


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
    obs
        The columns of `adata.obs` that are used, in memory.
    budget
        Memory of the run.
    ahead
        Nodes of every group for counts that are not in memory, with tables of all genes where these could be made in
        the pass that checked the counts.
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
    obs: pd.DataFrame
    budget: Budget
    ahead: Ahead | None = None
    family: str = "nbinom2"
    n_quad: int = 1

    @property
    def n_fits(self) -> int:
        """Number of fits: genes, over all groups."""
        return sum(int(able.sum()) for able in self.testable)

    @cached_property
    def shares(self) -> list[Share]:
        """Genes that share nodes; those of a group follow each other."""
        shares = []
        for k, (summary, able) in enumerate(zip(self.summaries, self.testable, strict=True)):
            shares += share_genes(k, summary.gene_total[self.source.columns[self.positions[able]]])
        return shares

    def place_nodes(self) -> list[Placed]:
        """Place the nodes of every share."""
        placed = []
        for share in self.shares:
            group = self.fitted[share.group]
            inflated = group.inflation is not None
            placed += place_models(
                [group.design],
                [group.frame],
                group.stratum,
                self.offsets[share.group],
                tolerance=share.tolerance,
                singularity=singularity(self.family, inflated),
                interpolate=not inflated and self.n_quad == 1,
                finer=None if self.ahead is None else self.ahead.parts[share.group].nodes,
            )
        return placed

    def by_group(self, of_shares: Sequence[T]) -> list[T]:
        """Give what belongs to the first share of every group, that with the fewest nodes."""
        first = np.unique([share.group for share in self.shares], return_index=True)[1]
        return [of_shares[k] for k in first]

    @property
    def inflations(self) -> list[Inflation | None]:
        """Zero inflation of every share."""
        return [self.fitted[share.group].inflation for share in self.shares]

    def counts(self, placed: list[Placed]) -> tuple[Any, int]:
        """Give the counts as `scglmm.inference.genes.fit_parts` takes them, and the memory for a block of genes."""
        parts = self.parts(placed)
        ahead = self.ahead_of_shares()
        matrix = self.source.matrix if ahead is None else ahead.matrix(self.source.matrix, placed)
        max_bytes = self.budget.of_block(parts, ahead)
        if not self.budget.in_memory and (ahead is None or ahead.tables is None):
            self.budget.check(parts, ahead, self.source.name)
            n_blocks, passes = n_passes(self.source.matrix, parts, max_bytes)
            again = "another pass" if passes == 1 else f"{passes} more passes"
            blocks = "one block" if n_blocks == 1 else f"{n_blocks} blocks"
            logg.info(
                f"reading {self.source.name} again: {again} for {blocks} of genes, with tables of at most "
                f"{spell_bytes(max_bytes)} (max_memory)"
            )
        return matrix, max_bytes

    def ahead_of_shares(self) -> Ahead | None:
        """Nodes for counts that are not in memory, of the group of every share."""
        return None if self.ahead is None else self.ahead.take([share.group for share in self.shares])

    def parts(self, placed: list[Placed]) -> list[Part]:
        """Cells and columns of the matrix of every share."""
        parts = []
        for share, each in zip(self.shares, placed, strict=True):
            group = self.fitted[share.group]
            columns = self.source.columns[self.positions[self.testable[share.group]]]
            parts.append(Part(group.used, each.nodes, columns[share.at], group.inflation is not None))
        return parts


def prepare_run(
    adata: AnnData, formula: str, options: RunOptions, mask_var: Any, *, n_jobs: int = 1, ahead: bool = False
) -> Run:
    """Check the data and the formula against each other.

    Parameters
    ----------
    adata, formula, options, mask_var
        As for :func:`scglmm.tl.nbmm`.
    n_jobs
        Threads.
    ahead
        Whether the run follows, so that counts which are not in memory are summed in the pass that checks them.

    Raises
    ------
    KeyError, TypeError, ValueError
        As :func:`scglmm.tl.nbmm`.
    """
    allowed = memory_budget(options.max_memory)
    parsed = parse_right_side(formula)
    obs = needed_obs(adata, parsed, options)
    groups = prepare_groups(parsed, obs, options.groupby, options.na_action, options.min_donors, options.inflation)
    selected = selected_genes(adata, mask_var)
    source = find_counts(adata, options.layer, options.use_raw)
    positions = np.flatnonzero(genes_in_matrix(selected, source))
    fitted = [group for group in groups if not group.reason]
    check_quadrature(fitted[0].design, options.n_quad)
    check_names(fitted)
    genes = np.sort(source.columns[positions])
    budget = make_budget(allowed, source, fitted, positions.size)
    summaries, offsets, offset_name, tables = _read(
        adata, source, fitted, genes, budget, n_jobs=n_jobs, family=options.family, ahead=ahead
    )
    least = max(1, options.min_cells)
    testable = [summary.gene_cells[source.columns[positions]] >= least for summary in summaries]
    if options.groupby is not None:
        for group, able in zip(fitted, testable, strict=True):
            if not able.any():
                group.skip(f"no gene has counts in min_cells={options.min_cells} of its cells")
        check_some_fitted(groups, options.groupby)
        kept = [k for k, group in enumerate(fitted) if not group.reason]
        fitted, summaries = [fitted[k] for k in kept], [summaries[k] for k in kept]
        offsets, testable = [offsets[k] for k in kept], [testable[k] for k in kept]
        if tables is not None:
            tables = tables.take(kept)
    return Run(
        *(groups, fitted, source, positions, summaries, offsets, testable, offset_name),
        *(obs, budget, tables, options.family, options.n_quad),
    )


def needed_obs(adata: AnnData, parsed: Formula, options: RunOptions) -> pd.DataFrame:
    """Columns of `adata.obs` that a run uses; all of them where they are in memory anyway."""
    columns = [*formula_columns(parsed), *([] if options.inflation is None else formula_columns(options.inflation))]
    return in_memory(adata.obs, columns + ([options.groupby] if isinstance(options.groupby, str) else []))


def _read(
    adata: AnnData,
    source: Source,
    groups: list[Group],
    genes: np.ndarray,
    budget: Budget,
    *,
    n_jobs: int,
    family: str,
    ahead: bool,
) -> tuple[list[Summary], list[np.ndarray], str, Ahead | None]:
    """Check and sum the counts, find the offsets, and make the tables of all genes where that saves a pass."""
    label = np.full(adata.n_obs, -1, np.int64)
    for k, group in enumerate(groups):
        label[group.used] = k
    where = f"reading {source.name} ({storage(source.matrix)})"
    suits, first = suits_ahead(budget, groups), ""
    offsets, name = _given_offsets(groups)
    if ahead and suits and offsets is None and may_fit(budget, groups, genes.size):
        logg.info(f"{where}: a pass for the total counts of the cells")
        totals = cell_totals(source.matrix)
        first = "again, "
        # others are not counts, which the next pass says with an example
        if all((np.isfinite(totals[group.used]) & (totals[group.used] >= 0)).all() for group in groups):
            offsets, name = _total_offsets(adata, groups, totals, source)
    kinds = [singularity(family, group.inflation is not None) for group in groups]
    if ahead and suits and offsets is not None:
        finer = place_ahead(groups, offsets, genes, kinds, n_jobs)
        if table_bytes(finer.parts) <= budget.ahead:
            logg.info(
                f"{where}: {first}one pass for checks, sums and the tables of all genes, "
                f"{spell_bytes(table_bytes(finer.parts))} of max_memory={spell_bytes(budget.allowed)}"
            )
            summaries, tables = check_counts(adata, source, label, len(groups), finer.parts, n_jobs, budget.chunk_bytes)
            return summaries, offsets, name, replace(finer, tables=tables)
    if not budget.in_memory:
        logg.info(f"{where}: {first}a pass for checks and sums")
    summaries, _ = check_counts(adata, source, label, len(groups))
    if offsets is None:
        offsets, name = _total_offsets(adata, groups, summaries[0].cell_total, source)
    return summaries, offsets, name, place_ahead(groups, offsets, genes, kinds, n_jobs) if suits else None


def _given_offsets(groups: list[Group]) -> tuple[list[np.ndarray] | None, str]:
    """Offsets of the cells that are used in every group (natural log), and what they are; None without any."""
    design = groups[0].design
    if design.offset is None:
        return None, ""
    return [group.design.offset for group in groups], " + ".join(design.formula.offsets)


def _total_offsets(
    adata: AnnData, groups: list[Group], cell_total: np.ndarray, source: Source
) -> tuple[list[np.ndarray], str]:
    """Log of the total counts of the cells, for want of other offsets."""
    totals = [cell_total[group.used] for group in groups]
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
        warnings.warn(msg, UserWarning, stacklevel=5)
    return [np.log(total) for total in totals], "log(total count)"


def singularity(family: str, inflated: bool = False) -> float:
    """Where the functions that are interpolated are singular, see `scglmm.compression.nodes.n_nodes`."""
    if inflated:
        return ZERO_INFLATED
    return np.inf if family == "poisson" else np.pi
