"""``scglmm design``: what would be fitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from scglmm.tl._options import RunOptions
from scglmm.tl._plan import Plan, plan_run

from ._errors import reports_errors
from ._files import opened
from ._options import run_options, set_verbosity, text_table


@click.command()
@run_options
@click.option("--trial", default=24, show_default=True, help="Genes to fit for an estimate of the time; 0 for none.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reports_errors
def design(
    h5ad: Path,
    formula: str,
    mask_var: str | None,
    n_jobs: int,
    backed: bool,
    quiet: bool,
    trial: int,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Show what `scglmm nbmm` would fit: terms, levels, references, strata, nodes, expected time and memory."""
    set_verbosity(quiet)
    with opened(h5ad, backed) as adata:
        plan = plan_run(adata, formula, RunOptions(**arguments), mask_var=mask_var, n_jobs=n_jobs, trial=trial)
        n_cells = adata.n_obs
    click.echo(_json(plan, formula) if as_json else _text(plan, formula, n_cells, n_jobs))


def _text(plan: Plan, formula: str, n_cells: int, n_jobs: int) -> str:
    used = int(plan.groups.loc[plan.groups["status"] == "ok", "cells"].sum())
    groups = plan.groups
    if not groups["dropped levels"].any():
        groups = groups.drop(columns="dropped levels")
    # a reason may be long: last
    groups = groups[[name for name in groups if name != "status"] + ["status"]]
    workers = f"{n_jobs} worker{'s' if n_jobs != 1 else ''}" if n_jobs > 0 else "all processors"
    lines = [
        f"formula  {formula}",
        f"cells    {used:,} of {n_cells:,}",
        f"genes    {plan.n_genes:,} ({plan.n_fits:,} fits)",
        "",
        text_table(plan.terms),
        "",
        text_table(groups),
        "",
    ]
    if plan.seconds is not None:
        lines.append(f"expected time    {_duration(plan.seconds)} with {workers} on an idle machine")
    blocks = f"{plan.blocks} block{'s' if plan.blocks != 1 else ''} of genes"
    lines.append(f"counts are read  {plan.passes} time{'s' if plan.passes != 1 else ''}, for {blocks}")
    lines.append(f"expected memory  {plan.memory / 2**20:,.0f} MiB beside the data")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _json(plan: Plan, formula: str) -> str:
    return json.dumps(
        {
            "formula": formula,
            "terms": plan.terms.to_dict("records"),
            "groups": plan.groups.to_dict("records"),
            "n_genes": plan.n_genes,
            "n_fits": plan.n_fits,
            "seconds": plan.seconds,
            "memory": plan.memory,
            "passes": plan.passes,
            "blocks": plan.blocks,
        },
        indent=2,
        ensure_ascii=False,
    )
