"""`scglmm.pl.status`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from scglmm.pl._docs import document
from scglmm.pl._style import (
    COLUMN_WIDTH,
    FONTSIZE,
    STATUS_COLOURS,
    axes_for,
    finish,
    journal_style,
    legend_above,
    open_frame,
    wrap,
)
from scglmm.results import read_result
from scglmm.results.names import readable
from scglmm.results.table import STATUSES


@document
def status(
    adata: AnnData,
    *,
    key: str = "nbmm",
    group: str | Sequence[str] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Show what became of the genes: how many have each status.

    Without groups a bar per status with its number of genes; with groups a stacked bar per group, and for groups
    that were skipped the reason. `ok`, `singular`, `poisson_limit` and `zi_boundary` are fits to be used, `separated`
    is used for the coefficients that have an estimate.

    Parameters
    ----------
    {adata}
    {key}
    group
        One group or several, for results with `groupby`. By default all, those that were skipped included.
    {figure}

    Returns
    -------
    {returns}

    Raises
    ------
    KeyError
        No such result or group.
    ValueError
        `group` was given for a result without groups, or was skipped.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> ax = scglmm.pl.status(adata, show=False)
    """
    result = read_result(adata, key)
    if group is not None:
        groups = [result.find_group(g) for g in ([group] if isinstance(group, str) else group)]
    else:
        groups = [None] if result.groups is None else list(result.groups)
    fitted = result.fitted_groups
    counts = pd.DataFrame(
        {
            g: result.column("fit", "status", g).astype(str).value_counts() if g in fitted else pd.Series(dtype=int)
            for g in groups
        }
    ).fillna(0)
    known = [s for s in STATUSES if s in counts.index]
    counts = counts.loc[known + sorted(set(counts.index) - set(known))].astype(int)
    colours = {s: STATUS_COLOURS.get(s, "#000000") for s in counts.index}

    with journal_style():
        n_rows = len(counts) if groups == [None] else len(groups)
        names = [wrap(readable(str(g)), 30) for g in groups]
        lines = max(name.count("\n") for name in names) + 1
        height = 0.5 + max(0.2, 0.125 * lines) * n_rows + 0.16 * bool(title)
        fit_height = ax is None and figsize is None
        fig, ax = axes_for(ax, figsize or (COLUMN_WIDTH, height))
        open_frame(ax)
        ax.set_ylim(n_rows - 0.45, -0.55)
        ax.tick_params(axis="y", length=0)
        if groups == [None]:
            _bars(ax, counts[None], colours)
            if title:
                ax.set_title(title, loc="left", fontsize=FONTSIZE, fontweight="bold", parse_math=False)
        else:
            reasons = {g: "" if g in fitted else result.groups[g] for g in groups}
            rows = _stacked(ax, counts, names, colours, reasons, title)
            if fit_height:
                fig.set_figheight(height + 0.16 * rows)
        ax.set_xlabel("genes", fontsize=FONTSIZE)
    return finish(fig, ax, show=show, return_fig=return_fig)


def _bars(ax: Axes, counts: pd.Series, colours: dict[str, str]) -> None:
    places = np.arange(len(counts))
    ax.barh(places, counts, color=[colours[s] for s in counts.index], height=0.75, linewidth=0)
    for place, n in zip(places, counts, strict=True):
        ax.annotate(
            f"{n:,} ({100 * n / counts.sum():.{0 if n == 0 or n >= 0.1 * counts.sum() else 1}f}%)",
            (n, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
        )
    # room for the numbers
    ax.set_xlim(0, 1.32 * counts.max())
    ax.set_yticks(places, counts.index)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")


def _stacked(
    ax: Axes, counts: pd.DataFrame, names: list[str], colours: dict[str, str], reasons: dict, title: str | None
) -> int:
    places = np.arange(counts.shape[1])
    left = np.zeros(counts.shape[1])
    for name, row in counts.iterrows():
        ax.barh(places, row, left=left, color=colours[name], height=0.75, linewidth=0, label=name)
        left += row.to_numpy()
    ax.set_xlim(0, max(left.max(), 1))
    ax.set_yticks(places, names, parse_math=False)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    handles = [Patch(facecolor=colours[name], linewidth=0) for name in counts.index]
    rows = legend_above(ax, handles, list(counts.index), title or None, handlelength=0.9, handleheight=0.9)
    # a character of this size is about 3.5 points wide
    width = int(ax.get_window_extent().width / ax.get_figure(root=True).dpi * 72 / 3.5)
    for place, reason in enumerate(reasons.values()):
        if reason:
            ax.annotate(
                textwrap.fill(reason, max(width, 12), max_lines=2, placeholder=" …"),
                (0, place),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.0,
                linespacing=1.0,
                color="#595959",
                parse_math=False,
            )
    return rows
