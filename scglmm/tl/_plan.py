"""What a run would fit, what it would cost: everything but the run."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scglmm.compression.nodes import Nodes
from scglmm.compression.prepared import Prepared
from scglmm.compression.tables import Part, accumulate_parts
from scglmm.inference.cell_level import Placed
from scglmm.inference.genes import Options, fit_parts

from ._groups import spell_levels
from ._info import merged_factors
from ._options import RunOptions, check_arguments
from ._prepare import Run, prepare_run
from ._reading import fixed_bytes, n_passes, table_bytes
from ._workers import effective_jobs

if TYPE_CHECKING:
    from anndata import AnnData

SHOWN_LEVELS = 8


@dataclass(frozen=True)
class Plan:
    """What a run would fit.

    Attributes
    ----------
    terms
        One row per term: `term`, `kind` (fixed, random, offset), `columns` (of the design), `levels`, `reference`.
    groups
        One row per group of cells (one in all without `groupby`): `status`, cells, donors, strata, nodes, coefficients,
        genes to fit, and levels that no cell of the group has.
    n_genes
        Genes that were selected.
    n_fits
        Fits of a gene in a group.
    seconds
        Expected time of the run, None without a trial.
    memory
        Expected memory beside the data, in bytes.
    passes
        How often the counts are read; in memory, where that costs little, too.
    blocks
        Blocks of genes whose tables are made at once.
    cell_covariates
        Columns of the design that differ between the cells of a stratum and have nodes of their own.
    """

    terms: pd.DataFrame
    groups: pd.DataFrame
    n_genes: int
    n_fits: int
    seconds: float | None
    memory: int
    passes: int
    blocks: int
    cell_covariates: tuple[str, ...] = ()


def plan_run(
    adata: AnnData,
    formula: str,
    options: RunOptions,
    *,
    mask_var: Any = None,
    n_jobs: int | None = None,
    trial: int = 24,
) -> Plan:
    """Find out what :func:`scglmm.tl.nbmm` would fit; nothing is written.

    Parameters
    ----------
    adata, formula, options, mask_var, n_jobs
        As for the run itself.
    trial
        Genes to fit for an estimate of the time, from rare to frequent; 0 for none.

    Raises
    ------
    KeyError, TypeError, ValueError
        As :func:`scglmm.tl.nbmm`.
    """
    check_arguments(adata, formula, options, n_jobs, copy=False)
    n_jobs = effective_jobs(n_jobs)
    run = prepare_run(adata, formula, options, mask_var, n_jobs=n_jobs)
    placed = run.place_nodes()
    nodes, parts = [each.nodes for each in run.by_group(placed)], run.parts(placed)
    passes, blocks, tables = _reading(run, parts)
    seconds = None
    if trial > 0 and run.n_fits:
        seconds = _expected_seconds(run, parts, placed, options, n_jobs, trial, passes)
    fixed = fixed_bytes(run.fitted, [int(able.sum()) for able in run.testable], run.source.matrix.shape)
    memory = fixed + tables + (0 if run.budget.in_memory else run.budget.reading)
    covariates = tuple(dict.fromkeys(name for each in placed for name in each.covariates))
    return Plan(
        *(_terms(run), _groups(run, nodes), run.positions.size, run.n_fits, seconds, memory, passes, blocks), covariates
    )


def _reading(run: Run, parts: list[Part]) -> tuple[int, int, int]:
    """Find how often the counts are read, in how many blocks of genes, and the memory of the tables."""
    budget, ahead = run.budget, run.ahead
    if ahead is not None and (size := table_bytes(ahead.parts)) <= budget.ahead:
        return (1 if run.fitted[0].design.offset is not None else 2), 1, size + min(budget.taken, size)
    budget.check(parts, run.ahead_of_shares(), run.source.name)
    max_bytes = budget.of_block(parts, run.ahead_of_shares())
    n_blocks, passes = n_passes(run.source.matrix, parts, max_bytes)
    return 1 + passes, n_blocks, min(budget.block, table_bytes(parts) + (table_bytes(ahead.parts) if ahead else 0))


def _terms(run: Run) -> pd.DataFrame:
    designs = [group.design for group in run.fitted]
    factors = merged_factors(run.fitted)
    references = {name: level for design in designs for name, level in design.references.items()}
    rows = []
    for k, term in enumerate(designs[0].terms):
        names = dict.fromkeys(d.columns[j] for d in designs for j in d.terms[k].columns)
        factor_of = [name for name in factors if re.search(rf"(^|[:(]){re.escape(name)}($|[:,)])", term.name)]
        rows.append(
            {
                "term": term.name,
                "kind": "fixed",
                "columns": ", ".join(names),
                "levels": "; ".join(_short(factors[name]) for name in factor_of),
                "reference": "; ".join(references[name] for name in factor_of if name in references),
            }
        )
    for k, (random, effect) in enumerate(zip(designs[0].random, designs[0].formula.random, strict=True)):
        levels = dict.fromkeys(level for design in designs for level in design.random[k].levels)
        columns = dict.fromkeys(name for design in designs for name in design.random[k].columns)
        rows.append(
            {
                "term": str(effect),
                "kind": "random",
                "columns": ", ".join(columns),
                "levels": f"{len(levels)} of {random.group}",
                "reference": "",
            }
        )
    rows.append({"term": run.offset_name, "kind": "offset", "columns": "", "levels": "", "reference": ""})
    return pd.DataFrame(rows)


def _short(levels: list[str]) -> str:
    more = f" and {len(levels) - SHOWN_LEVELS} more" if len(levels) > SHOWN_LEVELS else ""
    return ", ".join(levels[:SHOWN_LEVELS]) + more


def _groups(run: Run, nodes: list[Nodes]) -> pd.DataFrame:
    found = iter(zip(nodes, run.testable, strict=True))
    rows = []
    for group in run.groups:
        row = {
            "group": "all cells" if group.name is None else group.name,
            "status": f"skipped: {group.reason}" if group.reason else "ok",
            "cells": group.rows.size,
            "donors": group.n_donors,
            "strata": 0,
            "nodes": 0,
            "coefficients": 0,
            "genes": 0,
            "dropped levels": spell_levels(group.dropped),
        }
        if not group.reason:
            own, able = next(found)
            row |= {
                "cells": own.stratum.size,
                "strata": own.n_strata,
                "nodes": own.size,
                "coefficients": len(group.design.columns),
                "genes": int(able.sum()),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _expected_seconds(
    run: Run, parts: list[Part], placed: list[Placed], options: RunOptions, n_jobs: int, trial: int, passes: int
) -> float:
    """Time some fits on one thread, and the passes over the counts, and scale both up."""
    pairs = [(k, j) for k, part in enumerate(parts) for j in range(part.genes.size)]
    totals = np.concatenate(
        [run.summaries[share.group].gene_total[part.genes] for share, part in zip(run.shares, parts, strict=True)]
    )
    # within every group from rare to frequent, so that a few stand for all
    order = np.lexsort((totals, np.array([k for k, _ in pairs])))
    chosen = order[np.unique(np.linspace(0, len(pairs) - 1, min(trial, len(pairs))).astype(int))]
    few = [
        replace(part, genes=part.genes[[pairs[i][1] for i in chosen if pairs[i][0] == k]])
        for k, part in enumerate(parts)
    ]
    used = [k for k, part in enumerate(few) if part.genes.size]
    few, frames = [few[k] for k in used], [placed[k].frame for k in used]
    inflations = [run.inflations[k] for k in used]
    how = Options(method=options.method, family=options.family, n_quad=int(options.n_quad))
    begin = time.perf_counter()
    tables = accumulate_parts(run.source.matrix, few, n_jobs)
    one_pass = time.perf_counter() - begin
    # fitted from these tables: the counts are not read again
    grids = [part.nodes for part in few]
    matrix = Prepared(run.source.matrix, grids, grids, tables)

    def fit(parts: list[Part]) -> float:
        """Seconds of the processor, whatever else the machine is doing."""
        begin = time.process_time()
        fit_parts(matrix, parts, frames, how, n_jobs=1, max_bytes=np.inf, inflations=inflations)
        return time.process_time() - begin

    one_each = [replace(part, genes=part.genes[:1]) for part in few]
    fit(one_each)  # compiles
    # what every group costs once is in both
    once, all_few = fit(one_each), fit(few)
    more = chosen.size - len(few)
    each = max((all_few - once) / more, 1e-4) if more else all_few / chosen.size
    once = max(0.0, once - len(few) * each)
    return once + passes * one_pass + run.n_fits * each / n_jobs
