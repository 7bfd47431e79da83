"""`scglmm.pl.power`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from scglmm.pl._style import (
    COLUMN_WIDTH,
    FONTSIZE,
    GREY_LINE,
    OKABE_ITO,
    axes_for,
    finish,
    journal_style,
    legend_above,
    open_frame,
)
from scglmm.results.names import near_first

LABELS = {
    "gene": "gene",
    "log_fc": "log fold change",
    "log2_fc": "log$_2$ fold change",
    "mean": "mean count per cell",
    "theta": "theta",
    "var_donor": "donor variance",
    "var_effect": "variance of the effect between donors",
    "n_donors": "donors",
    "n_cells": "cells per donor",
    "cells_cv": "CV of cells per donor",
    "fraction": "share with the effect",
    "n_covariates": "covariates",
    "prior_df": "prior df",
    "alpha": "level",
    "power": "power",
    "target_power": "power",
    "se": "standard error",
    "df": "degrees of freedom",
    "rho": "correlation within donors",
    "n_cells_effective": "effective cells per donor",
}
PARAMETERS = [name for name in LABELS if name not in {"power", "log_fc", "se", "df", "rho", "n_cells_effective"}]
COUNTS = {"n_donors", "n_cells"}
FIRST = ["n_donors", "n_cells", "log2_fc"]
STYLES = ["-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1, 1, 1))]
MAX_COLOURS = len(OKABE_ITO)


def power(
    table: pd.DataFrame,
    *,
    x: str | None = None,
    y: str | None = None,
    hue: str | None = None,
    style: str | None = None,
    target: float | None = 0.8,
    palette: Sequence[str] | Mapping[object, str] | None = None,
    log: bool | None = None,
    title: str | None = None,
    figsize: tuple[float, float] = (COLUMN_WIDTH, 2.8),
    show: bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Power curves, for instance power against donors for several numbers of cells per donor.

    What was computed goes up, what was varied most goes along, and what else was varied is told by colour and line. A
    value that no study reaches (inf) is not drawn.

    Parameters
    ----------
    table
        From :func:`scglmm.power`.
    x
        Column along the horizontal axis. By default that with the most values among donors, cells, effect and the
        others.
    y
        Column along the vertical axis; by default what was computed.
    hue, style
        Columns told by colour and by line. By default those that were varied besides.
    target
        Power at which a dashed line is drawn, where `y` is power.
    palette
        Colours for the values of `hue`: a list in their order, or by value.
    log
        Logarithmic horizontal axis; by default for numbers of cells that span more than a factor of 10.
    title
        Title above the legend.
    figsize
        Width and height of a new figure, in inches.
    show
        Show the figure; by default as set in ``scanpy.settings.autoshow``.
    ax
        Axes to draw on.
    return_fig
        Return the figure.

    Returns
    -------
    The figure with `return_fig=True`, otherwise the axes with `show=False`, otherwise nothing.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        More parameters were varied than are told apart, or there is nothing to draw.

    Examples
    --------
    >>> table = scglmm.power(
    ...     log2_fc=1, n_donors=range(4, 41, 2), n_cells=[50, 200, 1000], mean=0.5, theta=1, var_donor=0.2
    ... )
    >>> ax = scglmm.pl.power(table, show=False)
    """
    if not isinstance(table, pd.DataFrame) or not {"power", "n_donors", "n_cells"} <= set(table.columns):
        msg = "`table` must be a table from scglmm.power."
        raise TypeError(msg)
    for name, column in (("x", x), ("y", y), ("hue", hue), ("style", style)):
        if column is not None and column not in table.columns:
            msg = f"{name}={column!r} is not a column of the table: {near_first(column, table.columns)}."
            raise KeyError(msg)
    y = table.attrs.get("solved_for", "power") if y is None else y
    y = "log2_fc" if y == "log_fc" else y
    x, hue, style = _roles(table, x, y, hue, style)
    drawn = table[np.isfinite(table[y].astype(float)) & np.isfinite(table[x].astype(float))]
    if drawn.empty:
        msg = f"No row of the table has a finite {y!r}: no study is large enough."
        raise ValueError(msg)

    with journal_style():
        fig, ax = axes_for(ax, figsize)
        open_frame(ax)
        colours = _colours(table, hue, palette)
        dashes = {} if style is None else dict(zip(_distinct(table, style), STYLES, strict=False))
        for (shade, dash), rows in _lines(drawn, hue, style):
            rows = rows.sort_values(x)
            many = len(rows) > 12
            ax.plot(
                rows[x],
                rows[y],
                color=colours.get(shade, OKABE_ITO["blue"]),
                linestyle=dashes.get(dash, "-"),
                linewidth=1.3,
                marker="" if many else "o",
                markersize=3,
                clip_on=False,
                zorder=3,
            )
        _axis(ax, table, drawn, x, y, target, log)
        handles, labels = _legend(hue if title else None, style, colours, dashes)
        if handles or title:
            legend_above(ax, handles, labels, title or LABELS.get(hue, hue), handlelength=1.6)
        fig.draw_without_rendering()
    return finish(fig, ax, show=show, return_fig=return_fig)


def _roles(
    table: pd.DataFrame, x: str | None, y: str, hue: str | None, style: str | None
) -> tuple[str, str | None, str | None]:
    """Choose what goes along, and what colours and lines tell."""
    same = {"log_fc": "log2_fc"}
    taken = {same.get(c, c) for c in (x, y, hue, style) if c is not None}
    varied = {c: len(_distinct(table, c)) for c in PARAMETERS if c in table.columns and c not in taken}
    varied = {c: n for c, n in varied.items() if n > 1}
    if "gene" in table.columns:
        # what a gene brings with it needs no telling apart
        of_gene = table.groupby("gene")[[c for c in varied if c != "gene"]].nunique().max() == 1
        varied = {c: n for c, n in varied.items() if c == "gene" or not of_gene[c]}
    if x is None:
        numbers = [c for c in varied if c != "gene"]
        if not numbers:
            msg = (
                "Nothing varies in the table that could go along the horizontal axis: give several values of a number."
            )
            raise ValueError(msg)
        x = min(numbers, key=lambda c: (-varied[c], _rank(c)))
        del varied[x]
    rest = sorted(varied, key=lambda c: (-varied[c], _rank(c)))
    if hue is None and rest:
        hue = rest.pop(0)
    if style is None and rest:
        style = rest.pop(0)
    if rest:
        names = ", ".join(map(repr, rest))
        msg = f"Colour and line do not suffice to tell {names} apart as well: select rows of the table first."
        raise ValueError(msg)
    if hue is not None and len(_distinct(table, hue)) > MAX_COLOURS:
        msg = (
            f"{hue!r} has {len(_distinct(table, hue))} values, and there are {MAX_COLOURS} colours: select rows first."
        )
        raise ValueError(msg)
    if style is not None and len(_distinct(table, style)) > len(STYLES):
        msg = f"{style!r} has {len(_distinct(table, style))} values, and there are {len(STYLES)} kinds of lines."
        raise ValueError(msg)
    return x, hue, style


def _rank(column: str) -> int:
    """Order of parameters that vary equally much."""
    return FIRST.index(column) if column in FIRST else len(FIRST)


def _distinct(table: pd.DataFrame, column: str) -> list[object]:
    values = table[column].drop_duplicates()
    return values.tolist() if values.dtype == object or column == "gene" else sorted(values.tolist())


def _colours(
    table: pd.DataFrame, hue: str | None, palette: Sequence[str] | Mapping[object, str] | None
) -> dict[object, str]:
    if hue is None:
        return {}
    values = _distinct(table, hue)
    if isinstance(palette, Mapping):
        return dict(zip(values, OKABE_ITO.values(), strict=False)) | dict(palette)
    colours = list(OKABE_ITO.values()) if palette is None else list(palette)
    if len(colours) < len(values):
        msg = f"`palette` has {len(colours)} colours for {len(values)} values of {hue!r}."
        raise ValueError(msg)
    return dict(zip(values, colours, strict=False))


def _lines(
    table: pd.DataFrame, hue: str | None, style: str | None
) -> Iterator[tuple[tuple[object, object], pd.DataFrame]]:
    for shade in [None] if hue is None else _distinct(table, hue):
        for dash in [None] if style is None else _distinct(table, style):
            rows = table
            rows = rows if hue is None else rows[rows[hue] == shade]
            rows = rows if style is None else rows[rows[style] == dash]
            if len(rows):
                yield (shade, dash), rows


def _axis(
    ax: Axes, table: pd.DataFrame, drawn: pd.DataFrame, x: str, y: str, target: float | None, log: bool | None
) -> None:
    low, high = float(drawn[x].min()), float(drawn[x].max())
    if log is None:
        log = x in {"n_cells", "mean"} and low > 0 and high / low > 10
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        ax.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    elif x in COUNTS:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if y == "power":
        ax.set_ylim(0, 1)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        if target is not None:
            ax.axhline(target, color=GREY_LINE, linewidth=0.6, linestyle=(0, (4, 2)), zorder=1)
    else:
        ax.set_ylim(bottom=0)
        if y in COUNTS:
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    names = LABELS | ({"n_donors": "donors (in all)"} if (table["design"] == "between").all() else {})
    ax.set_xlabel(names.get(x, x), fontsize=FONTSIZE)
    ax.set_ylabel(_ylabel(drawn, y), fontsize=FONTSIZE)


def _ylabel(drawn: pd.DataFrame, y: str) -> str:
    asked = drawn["target_power"].unique() if "target_power" in drawn else []
    return LABELS.get(y, y) + (f" for power {asked[0]:.0%}" if len(asked) == 1 and y != "power" else "")


def _legend(
    hue: str | None, style: str | None, colours: Mapping[object, str], dashes: Mapping[object, object]
) -> tuple[list[Line2D], list[str]]:
    handles, labels = [], []
    for name, entries in ((hue, colours), (style, dashes)):
        # the title of the legend names the colours, unless the user's does not
        before = "" if name is None else f"{LABELS.get(name, name)} "
        for value, look in entries.items():
            kind = {"color": look} if entries is colours else {"color": GREY_LINE, "linestyle": look}
            handles.append(Line2D([], [], linewidth=1.3, **kind))
            labels.append(before + _spell(value))
            before = ""
    return handles, labels


def _spell(value: object) -> str:
    return f"{value:,g}" if isinstance(value, int | float | np.number) else str(value)
