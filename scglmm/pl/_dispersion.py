"""`scglmm.pl.dispersion`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from scglmm.pl._docs import document
from scglmm.pl._style import (
    COLUMN_WIDTH,
    FONTSIZE,
    STATUS_COLOURS,
    axes_for,
    finish,
    journal_style,
    label_log_axis,
    legend_above,
    log_limits,
    open_frame,
    wrap,
)
from scglmm.results import StoredResult, read_result
from scglmm.results.names import near_first, readable, storable
from scglmm.results.table import STATUSES

_DROPPED = ("too_few_counts", "not_selected", "not_converged")
_TREND = "black"


@document
def dispersion(
    adata: AnnData,
    columns: str | Sequence[str] | None = None,
    *,
    key: str = "nbmm",
    group: str | None = None,
    size: float | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Figure | Axes | list[Axes] | None:
    """Dispersion and standard deviations of the random effects against the mean count, a point per gene.

    Theta is the size of the negative binomial (variance mu + mu²/theta; small is overdispersed); a variance is shown as
    its standard deviation, on the natural log scale. What cannot be on a logarithmic axis is a triangle at its edge:
    theta at infinity (status `poisson_limit`) at the top, a variance estimated at 0 (`singular`) at the bottom, and
    beside it how many there are. Where the variances were moderated, a line shows the trend that they were drawn to.

    Parameters
    ----------
    {adata}
    columns
        What to show: "theta", or variances as they are called in ``adata.varm["{key}_fit"]``, "var[SubID]". By default
        theta and all variances, one panel each.
    {key}
    {group}
    size
        Area of a point in square points. By default smaller for more genes.
    {figure}

    Returns
    -------
    The figure with `return_fig=True`, otherwise with `show=False` the axes (a list of them where there are several
    panels), otherwise nothing.

    Raises
    ------
    KeyError
        No such result, group or column.
    ValueError
        `group` is needed and was not given, `ax` was given for several panels, or no gene was fitted.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> panels = scglmm.pl.dispersion(adata, show=False)
    >>> ax = scglmm.pl.dispersion(adata, "theta", show=False)
    """
    result = read_result(adata, key)
    group = result.only_group() if group is None else result.find_group(group)
    fit = result.table("fit", group)
    valid = ["theta", *(c for c in fit.columns if c.startswith("var["))]
    wanted = valid if columns is None else [columns] if isinstance(columns, str) else list(columns)
    wanted = [storable(c) for c in wanted]
    for column in wanted:
        if column not in valid:
            msg = f"No column {column!r} to show. Columns: {near_first(column, valid)}."
            raise KeyError(msg)
    if not wanted:
        msg = f"`columns` is empty. Columns: {', '.join(map(repr, valid))}."
        raise ValueError(msg)
    if ax is not None and len(wanted) > 1:
        msg = f"`ax` takes one panel, and there are {len(wanted)}: choose with `columns` among {', '.join(wanted)}."
        raise ValueError(msg)
    status = fit["status"].astype(str)
    fit = fit[~status.isin(_DROPPED) & fit["theta"].notna() & (fit["mean"] > 0)]
    if fit.empty:
        msg = "No gene was fitted: there is nothing to draw."
        raise ValueError(msg)
    size = float(np.clip(4000 / len(fit), 2.5, 9.0)) if size is None else size
    trend = _trend(adata, result, group)

    with journal_style():
        if len(wanted) == 1:
            fig, ax = axes_for(ax, figsize or (COLUMN_WIDTH, 2.6))
            panels = [ax]
        else:
            height = 0.6 + 1.75 * len(wanted)
            fig, grid = plt.subplots(
                len(wanted), figsize=figsize or (COLUMN_WIDTH, height), sharex=True, layout="constrained"
            )
            panels = list(grid)
        for panel, column in zip(panels, wanted, strict=True):
            _panel(panel, fit, column, size, trend)
        label_log_axis(panels[-1].xaxis, *panels[-1].get_xlim())
        panels[-1].set_xlabel("mean count per cell", fontsize=FONTSIZE)
        fig.align_ylabels(panels)
        if title is None:
            title = "" if group is None else readable(group)
        _legend(panels[0], fit["status"].astype(str), title, trend=trend is not None)
    shown = panels[0] if len(panels) == 1 else panels
    return finish(fig, shown, show=show, return_fig=return_fig)


def _trend(adata: AnnData, result: StoredResult, group: str | None) -> Mapping | None:
    """Arrays of the moderated trend: `mean`, and for every variance its standard deviation."""
    entry = adata.uns.get(result.key)
    found = entry.get("moderation") if isinstance(entry, Mapping) else None
    for name in ("trend",) if group is None else (group, "trend"):
        if not isinstance(found, Mapping):
            return None
        # with groups: one trend for each of them
        found = found.get(name, found if name == group else None)
    if found is None or "mean" not in found:
        return None
    return found


def _panel(ax: Axes, fit: pd.DataFrame, column: str, size: float, trend: Mapping | None) -> None:
    open_frame(ax)
    x, value = fit["mean"].to_numpy(dtype=float), fit[column].to_numpy(dtype=float)
    is_theta = column == "theta"
    y = value if is_theta else np.sqrt(np.maximum(value, 0.0))
    inside = np.isfinite(y) & (y > 0)
    edge = ~inside & ~np.isnan(y)
    ax.set(xscale="log", yscale="log", xlim=log_limits(x))
    low, high = log_limits(_most(y[inside]), 0.06)
    ratio = (high / low) ** 0.07
    at_edge = high * ratio if is_theta else low / ratio
    if edge.any():
        low, high = (low, at_edge * ratio**0.5) if is_theta else (at_edge / ratio**0.5, high)
    ax.set_ylim(low, high)
    beyond = inside & ((y < low) | (y > high))
    status = fit["status"].astype(str).to_numpy()
    for name in _present(status):
        rows = status == name
        style = {"c": STATUS_COLOURS.get(name, "black"), "linewidths": 0, "alpha": 0.6, "rasterized": len(y) > 3000}
        shown = rows & inside & ~beyond
        ax.scatter(x[shown], y[shown], s=size, zorder=2, label=name, **style)
        if (rows & edge).any():
            marker = "^" if is_theta else "v"
            at = np.full((rows & edge).sum(), at_edge)
            ax.scatter(x[rows & edge], at, s=1.8 * size + 4, marker=marker, clip_on=False, zorder=3, **style)
        for where, far, marker in ((low, y < low, "v"), (high, y > high, "^")):
            out = rows & beyond & far
            if out.any():
                ax.scatter(x[out], np.full(out.sum(), where), s=1.8 * size + 4, marker=marker, clip_on=False, **style)
    if edge.any():
        ax.annotate(
            f"{'∞' if is_theta else '0'}: {edge.sum():,}",
            (1.0, at_edge),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color="#595959",
        )
    if trend is not None and column in trend:
        order = np.argsort(trend["mean"])
        ax.plot(
            np.asarray(trend["mean"])[order],
            np.asarray(trend[column])[order],
            color=_TREND,
            linewidth=1.2,
            zorder=4,
            label="trend",
        )
    label_log_axis(ax.yaxis, low, high)
    name = "theta" if is_theta else f"sd of {readable(column[4:-1])}"
    ax.set_ylabel(wrap(name, 22), fontsize=FONTSIZE, parse_math=False)


def _most(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values without the few at the ends of the range that would take most of it."""
    if y.size < 50:
        return y
    logs = np.log(y)
    low, high = np.quantile(logs, [0.005, 0.995])
    room = 0.35 * (high - low)
    return y[(logs >= low - room) & (logs <= high + room)]


def _present(status: NDArray[np.object_]) -> list[str]:
    """Statuses that occur, the most frequent first, so that it hides no other."""
    known = [s for s in STATUSES if (status == s).any()]
    return sorted(known + sorted(set(status) - set(known)), key=lambda s: -(status == s).sum())


def _legend(ax: Axes, status: pd.Series, title: str, *, trend: bool) -> None:
    names = _present(status.to_numpy(dtype=object))
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=3.5,
            markeredgewidth=0,
            color=STATUS_COLOURS.get(name, "black"),
        )
        for name in names
    ]
    labels = [f"{name} {(status == name).sum():,}" for name in names]
    if trend:
        handles.append(Line2D([], [], color=_TREND, linewidth=1.2))
        labels.append("trend")
    legend_above(ax, handles, labels, title or None, handlelength=1.0, handletextpad=0.3)
