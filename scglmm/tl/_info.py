"""What `adata.uns` keeps of a run."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scglmm.inference.varpart import COUNT_NOISE, RESIDUALS, log_mean_exp
from scglmm.results.names import check_distinct

from ._groups import spell_levels
from ._table import inflation_names, random_sources, variance_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scglmm.compression.nodes import Nodes
    from scglmm.formula import Design
    from scglmm.results.table import GeneTable

    from ._groups import Group
    from ._options import RunOptions
    from ._prepare import Run

PACKAGES = ("scglmm", "scanpy", "anndata", "numpy", "scipy", "numba")


def check_names(groups: list[Group]) -> None:
    """Check, before any work, that the names of groups, coefficients and sources stay distinct as columns.

    Raises
    ------
    ValueError
        Two of them would share a column.
    """
    names = None if groups[0].name is None else [group.name for group in groups]
    designs = [group.design for group in groups]
    for listed in (
        [design.columns for design in designs],
        [[*(term.name for term in d.terms), *random_sources(d), COUNT_NOISE, RESIDUALS] for d in designs],
        [[name for name, *_ in variance_names(group.frame)] + inflation_names(group.inflation) for group in groups],
    ):
        check_distinct(_union(listed), names)


def describe_run(
    formula: str,
    options: RunOptions,
    run: Run,
    nodes: list[Nodes],
    tables: dict[str | None, GeneTable],
) -> dict[str, Any]:
    """Build what `adata.uns` keeps of a run.

    With `groupby` numbers of cells, strata and nodes are sums over the fitted groups, and levels those of any of them.
    """
    designs, frames = [group.design for group in run.fitted], [group.frame for group in run.fitted]
    status = pd.concat([table.fit["status"] for table in tables.values()]).value_counts()
    levels = {
        term.group: len(_union(design.random[r].levels for design in designs))
        for r, term in enumerate(designs[0].random)
    }
    info = {
        "formula": formula,
        "method": options.method,
        "family": options.family,
        "offset": run.offset_name,
        "varpart_method": options.varpart_method,
        "references": {name: level for design in designs for name, level in design.references.items()},
        "factors": merged_factors(run.fitted),
        "groupings": [term.group for term in designs[0].random],
        "random_terms": _union([f"{' + '.join(t.columns)} | {t.group}" for t in d.random] for d in designs),
        "n_levels": levels,
        "n_cells": sum(frame.n_total for frame in frames),
        "n_donors": levels[designs[0].random[0].group] if levels else 0,
        "n_strata": sum(each.n_strata for each in nodes),
        "n_nodes": sum(each.size for each in nodes),
        "status_counts": {str(k): int(v) for k, v in status.items() if v},
        "versions": {name: version(name) for name in PACKAGES},
        "params": _params(designs[0], options),
    }
    if options.inflation is not None:
        info["ziformula"] = options.ziformula
    if options.n_quad > 1:
        info["n_quad"] = int(options.n_quad)
    if options.groupby is None:
        info["log_mean_exposure"] = log_mean_exp(run.offsets[0])
    else:
        info |= {"groupby": options.groupby, "padj_across": options.padj_across}
        info["groups"] = _listing(run, nodes)
    return info


def _listing(run: Run, nodes: list[Nodes]) -> pd.DataFrame:
    """One row per group, the skipped ones included."""
    rows = []
    found = iter(zip(run.offsets, nodes, run.testable, strict=True))
    for group in run.groups:
        row = {
            "status": f"skipped: {group.reason}" if group.reason else "ok",
            "n_cells": group.rows.size,
            "n_donors": group.n_donors,
            "n_strata": 0,
            "n_nodes": 0,
            "n_genes": 0,
            "log_mean_exposure": np.nan,
            "dropped_levels": spell_levels(group.dropped),
        }
        if not group.reason:
            offset, own, able = next(found)
            row |= {
                "n_cells": offset.size,
                "n_strata": own.n_strata,
                "n_nodes": own.size,
                "n_genes": int(able.sum()),
                "log_mean_exposure": log_mean_exp(offset),
            }
        rows.append(row)
    return pd.DataFrame(rows, index=[group.name for group in run.groups])


def merged_factors(groups: list[Group]) -> dict[str, list[str]]:
    """Levels of every factor over all groups, in an order that agrees with that of each."""
    factors: dict[str, list[str]] = {}
    for group in groups:
        for name, levels in group.design.factors.items():
            factors[name] = _merged(factors.get(name, []), levels)
    return factors


def _merged(first: list[str], second: list[str]) -> list[str]:
    """Merge two lists of levels that are parts of one ordered list."""
    merged, at = list(first), 0
    for level in second:
        if level in merged:
            at = merged.index(level) + 1
        else:
            merged.insert(at, level)
            at += 1
    return merged


def _params(design: Design, options: RunOptions) -> dict[str, Any]:
    """Build what scanpy expects beside ranked genes; `groupby` is always a column of obs."""
    groupby = design.first_factor
    if groupby is None and design.random:
        groupby = design.random[0].group.split(":")[0]
    return {
        "groupby": groupby,
        "reference": design.references.get(groupby, "rest"),
        "method": f"nbmm-{options.method}",
        "use_raw": options.use_raw,
        "layer": options.layer,
        "corr_method": "benjamini-hochberg",
    }


def _union(lists: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))
