"""Table and picture of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .problem import Problem
from .tools import TOOLS, Tool
from .yardstick import log_likelihood

OURS = "scglmm, fits"  # what the others' times are divided by
EXACT_POINTS = 25
HEAD = """\
# Speed, memory and likelihood side by side

Made by `python -m benchmarks.speed` (`benchmarks/README.md` says what is compared, and how): the same genes in one
run, each tool in a process of its own. *scglmm, fits* is compression and maximum likelihood with standard errors, what
the other tools do; `tl.nbmm` adds a null model and variance fractions for every gene. The log-likelihood is computed
at everybody's estimates by one independent function; how far it is below the best of all tools is what counts. NEBULA
and edgepython fit another distribution of the donor effects, so theirs says how far that matters, not how well they
search. REML is another criterion. *Warned*: genes on which the tool warned, or which it flags.

![Time, memory, and log-likelihood below the best](speed.png)"""


@dataclass
class Results:
    """Fits of all tools.

    Attributes
    ----------
    problem
        What they were given.
    machine
        One line.
    missing
        Why a tool has no results.
    """

    problem: Problem
    machine: str
    missing: dict[str, str] = field(default_factory=dict)
    _rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What was fitted."""
        n, p = self.problem.X.shape
        donors = int(self.problem.donor.max()) + 1
        return f"{n:,} cells of {donors:,} donors, {len(self.problem.genes)} genes, {p} coefficients, (1|donor)"

    def add(self, tool: Tool, result: dict[str, Any]) -> None:
        """Add the fits of a tool, and the log-likelihood at its estimates."""
        self.missing.pop(tool.name, None)
        for fit in result["fits"]:
            row = {key: value for key, value in fit.items() if key != "beta"}
            row |= {"tool": tool.name, "version": result["version"], "beta": fit["beta"]}
            if tool.criterion.startswith("REML"):
                row |= {"laplace": np.nan, "exact": np.nan}
            else:
                row |= {"laplace": self._value(fit, 1), "exact": self._value(fit, EXACT_POINTS)}
            self._rows.append(row)
        if result["note"]:
            self.missing[tool.name] = f"{len(result['fits'])} genes, then: {result['note']}"

    def _value(self, fit: dict[str, Any], n_points: int) -> float:
        if not np.isfinite(fit["beta"]).all():
            return np.nan
        y = self.problem.counts[:, self.problem.genes.index(fit["gene"])]
        eta = self.problem.offset + self.problem.X @ np.array(fit["beta"])
        return log_likelihood(y, eta, self.problem.donor, fit["sigma2"], fit["theta"], n_points)

    @cached_property
    def by_gene(self) -> pd.DataFrame:
        """One row per tool and gene; `laplace_gap`, `exact_gap`: below the best of all tools on that gene."""
        table = pd.DataFrame(self._rows)
        for name in ("laplace", "exact"):
            best = table.groupby("gene")[name].transform("max")
            table[f"{name}_gap"] = best - table[name]
        ours = table[table["tool"] == OURS].set_index("gene")["cpu"]
        table["ours"] = table["gene"].map(ours) if len(ours) else np.nan
        return table

    @cached_property
    def by_tool(self) -> pd.DataFrame:
        """One row per tool, in the order of `TOOLS`."""
        grouped = self.by_gene.groupby("tool")
        table = pd.DataFrame(
            {
                "version": grouped["version"].first(),
                "genes": grouped.size(),
                "cpu": grouped["cpu"].mean(),
                "wall": grouped["wall"].mean(),
                # over the same genes
                "ratio": grouped["cpu"].mean() / grouped["ours"].mean(),
                "memory": grouped["memory"].max(),
                "laplace_worst": grouped["laplace_gap"].max(),
                "laplace_median": grouped["laplace_gap"].median(),
                "exact_worst": grouped["exact_gap"].max(),
                "warned": grouped["note"].apply(lambda notes: int((notes != "").sum())),
            }
        )
        return table.reindex([name for name in TOOLS if name in table.index])


def write_report(results: Results, folder: Path | None) -> str:
    """Write the files, if a folder is given, and return the table as text."""
    text = _markdown(results)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        results.by_gene.drop(columns=["ours", "beta"]).to_csv(folder / "speed.csv", index=False, float_format="%.10g")
        (folder / "speed.md").write_text(f"{HEAD}\n\n{text}\n")
        draw(results, folder / "speed.png")
    return text


def _markdown(results: Results) -> str:
    lines = [
        f"{results.title}. {results.machine}; one thread each.",
        "",
        "| tool | maximises | genes | CPU s per gene | times scglmm's fits | wall s per gene | memory MiB "
        "| log-likelihood below the best: median, worst | warned |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in results.by_tool.iterrows():
        gap = "" if np.isnan(row["laplace_worst"]) else f"{row['laplace_median']:.4f}, {row['laplace_worst']:.4f}"
        lines.append(
            f"| {_label(name, row)} | {TOOLS[name].criterion} | {row['genes']} | {row['cpu']:.4g} | "
            f"{row['ratio']:,.3g} | {row['wall']:.4g} | {row['memory'] / 2**20:,.0f} | {gap} | "
            f"{row['warned'] or ''} |"
        )
    if results.missing:
        lines += ["", *(f"{name}: {why}." for name, why in results.missing.items())]
    return "\n".join(lines)


def _label(name: str, row: pd.Series) -> str:
    return name if TOOLS[name].is_ours else f"{name} {row['version']}"


def draw(results: Results, path: Path) -> None:
    """Draw time per gene, memory, and how far below the best log-likelihood each tool stopped."""
    from matplotlib.figure import Figure

    table = results.by_tool.iloc[::-1]
    at = np.arange(len(table))
    colours = ["#0072b2" if TOOLS[name].is_ours else "#999999" for name in table.index]
    figure = Figure(figsize=(11, 0.42 * len(table) + 1.6), layout="constrained")
    time, memory, gap = figure.subplots(1, 3, sharey=True, width_ratios=[1.5, 1, 1.2])
    bars = (time, table["cpu"], "CPU s per gene"), (memory, table["memory"] / 2**20, "memory above the data, MiB")
    for axes, values, label in bars:
        axes.barh(at, np.maximum(values, 1e-9), color=colours, height=0.65)
        axes.set_xscale("log")
        axes.set_xlabel(label)
        for y, value in zip(at, values, strict=True):
            axes.annotate(f" {value:.3g}", (value, y), va="center", fontsize=8)
        axes.set_xlim(values[values > 0].min() / 2, values.max() * 5)
    time.set_yticks(at, table.index)
    floor = 1e-5
    genes = results.by_gene
    for y, (name, colour) in enumerate(zip(table.index, colours, strict=True)):
        values = genes.loc[genes["tool"] == name, "laplace_gap"].to_numpy()
        if np.isnan(values).all():
            gap.annotate("another criterion (REML)", (floor, y), va="center", fontsize=8, color="0.4")
        else:
            gap.plot(np.maximum(values, floor), np.full(values.size, y), "o", ms=5, alpha=0.6, color=colour)
    gap.set_xscale("log")
    gap.set_xlim(floor / 2, max(1.0, 3 * np.nanmax(genes["laplace_gap"])))
    gap.set_xlabel(f"log-likelihood below the best\n(a point per gene; {floor:g} or less at the left)")
    for axes in (time, memory, gap):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="0.9", lw=0.6)
        axes.set_axisbelow(True)
    figure.suptitle(results.title, fontsize=10)
    figure.savefig(path, dpi=150)
