"""The figure: type I error at 5% by method and design."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator

from .methods import ORDER

STYLE = {
    "ml-z": ("#D55E00", "v", "scglmm, ML and z"),
    "reml": ("#56B4E9", "s", "scglmm, REML"),
    "moderated": ("#0072B2", "o", "scglmm, moderated"),
    "reml, donor only": ("#CC79A7", "P", "scglmm, (1|donor) only"),
    "edgeR-QL": ("#009E73", "D", "edgeR-QL, pseudobulk"),
    "DESeq2": ("#E69F00", "^", "DESeq2, pseudobulk"),
    "PyDESeq2": ("#A08700", "<", "PyDESeq2, pseudobulk"),
    "Wilcoxon, cells": ("#595959", "x", "Wilcoxon on cells"),
}
"""Colour (Okabe and Ito 2008), marker and name of every method."""

PANELS = (
    ("donor-level, balanced", "Donor-level effect"),
    ("donor-level, unequal", "Donor-level, unequal cells per donor"),
    ("within donors", "Treatment within donors"),
    ("misspecified", "Misspecified"),
    ("other", "Other designs, real cells"),
)
NAMES = {
    "misspecified: lognormal-poisson": "log-normal\n–Poisson",
    "misspecified: t": "t(4)\ndonors",
    "misspecified: skewed": "skewed\ndonors",
    "misspecified: donor theta": "theta by\ndonor",
    "misspecified: correlated": "correl.\ngenes",
    "within donors, unequal": "unequal",
    "small donor variances": "small\nsd",
    "no effects at all": "no\neffects",
    "real cells, permuted labels": "real\ncells",
    "prototype": "strong\neffects",
}
TICKS = (1, 2, 5, 10, 20, 50)


def draw(summary: pd.DataFrame, path: Path) -> None:
    """Write the figure: one panel per kind of design, error bars of 95%."""
    panels = [(title, _columns(summary, panel)) for panel, title in PANELS]
    panels = [(title, columns) for title, columns in panels if columns]
    methods = [m for m in ORDER if m in set(summary["method"])]
    widths = [len(columns) + 0.5 for _, columns in panels]
    style = {"font.size": 8, "axes.titlesize": 8, "axes.linewidth": 0.6, "axes.spines.top": False}
    with mpl.rc_context(style | {"axes.spines.right": False}):
        rows = _rows(widths)
        figure = plt.figure(figsize=(7.2, 2.3 * len(rows) + 0.6), layout="constrained")
        outer = figure.add_gridspec(len(rows), 1)
        for line, members in enumerate(rows):
            ratios = [widths[i] for i in members]
            spare = max(sum(widths[i] for i in row) for row in rows) - sum(ratios)
            ratios += [spare] * (spare > 0.6)
            inner = outer[line].subgridspec(1, len(ratios), width_ratios=ratios)
            for at, i in enumerate(members):
                axes = figure.add_subplot(inner[at])
                _panel(axes, *panels[i], summary, methods, first=at == 0)
        handles = [
            mpl.lines.Line2D([], [], color=STYLE[m][0], marker=STYLE[m][1], ls="", ms=4, label=STYLE[m][2])
            for m in methods
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=7)
        figure.savefig(path, dpi=200)
        plt.close(figure)


def _rows(widths: list[float]) -> list[list[int]]:
    """Panels in lines of about the same width."""
    rows: list[list[int]] = [[]]
    for i, width in enumerate(widths):
        if rows[-1] and sum(widths[j] for j in rows[-1]) + width > 14:
            rows.append([])
        rows[-1].append(i)
    return rows


def _columns(summary: pd.DataFrame, panel: str) -> list[tuple[str, str]]:
    """Scenario and label of the columns of a panel."""
    known = summary.drop_duplicates("scenario")
    named = ("donor-level, balanced", "donor-level, unequal", "within donors", "misspecified")
    if panel == "other":
        chosen = known[~known["panel"].str.startswith(named)]
    else:
        chosen = known[known["panel"].str.startswith(panel)]
    columns = []
    for _, row in chosen.iterrows():
        name = NAMES.get(row["panel"], "")
        if row["panel"] == "counts per cell":
            name = row["scenario"].rsplit("-", 1)[-1] + "\ncounts"
        columns.append((row["scenario"], f"{row['design'].replace(' paired', '')}\n{name}".strip()))
    return columns


def _panel(axes, title: str, columns: list, summary: pd.DataFrame, methods: list[str], *, first: bool) -> None:
    axes.axhspan(4, 6, color="#DDDDDD", lw=0, zorder=0)
    axes.axhline(5, color="#8C8C8C", lw=0.6, zorder=1)
    for k, method in enumerate(methods):
        colour, marker, _ = STYLE[method]
        of = summary[summary["method"] == method].set_index("scenario")
        x, y, error = [], [], []
        for c, (scenario, _) in enumerate(columns):
            if scenario in of.index:
                x.append(c + (k - (len(methods) - 1) / 2) * 0.1)
                y.append(100 * max(of["type1_0.05"][scenario], 0.005))
                se = of["type1_0.05_se"][scenario]
                error.append(0.0 if not np.isfinite(se) else 196 * se)
        lower = np.minimum(error, 0.9 * np.array(y))
        axes.errorbar(x, y, [lower, error], color=colour, marker=marker, ls="", ms=3, lw=0.7, mew=0.7)
    axes.set_yscale("log")
    axes.set_ylim(0.45, 75)
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticklabels([f"{t}%" for t in TICKS] if first else [])
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_xticks(range(len(columns)), [label for _, label in columns], fontsize=6)
    axes.set_title(title, loc="left")
    if first:
        axes.set_ylabel("nulls with p < 5%")
