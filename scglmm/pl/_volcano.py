"""`scglmm.pl.volcano`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scanpy import logging as logg

from scglmm.pl._genes import find_genes, gene_labels
from scglmm.pl._labels import PointLabels
from scglmm.pl._style import (
    COLUMN_WIDTH,
    FONTSIZE,
    GREY_LINE,
    GREY_POINT,
    OKABE_ITO,
    axes_for,
    finish,
    journal_style,
    legend_above,
    open_frame,
)
from scglmm.results import read_result
from scglmm.results.names import readable

_CLASSES = ("not significant", "down", "up")
_COLOURS = {"not significant": GREY_POINT, "down": OKABE_ITO["blue"], "up": OKABE_ITO["vermillion"]}
_MARKERS = {"inside": "o", "top": "^", "left": "<", "right": ">"}


def volcano(
    adata: AnnData,
    coef: str | None = None,
    *,
    key: str = "nbmm",
    group: str | None = None,
    n_labels: int = 10,
    genes: str | Sequence[str] | None = None,
    padj_cutoff: float = 0.05,
    log2fc_cutoff: float = 0.0,
    gene_symbols: str | None = None,
    xmax: float | None = None,
    ymax: float | None = None,
    size: float | None = None,
    title: str | None = None,
    figsize: tuple[float, float] = (COLUMN_WIDTH, 3.3),
    show: bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Volcano plot: log2 fold change against -log10 of the p-value, a point per tested gene.

    Genes whose adjusted p-value is below `padj_cutoff` and whose fold change is beyond `log2fc_cutoff` are
    coloured; their numbers are in the legend. Genes beyond the limits of the axes (a p-value that underflows
    to 0 always is) are drawn at the limit as triangles that point outwards. Genes without a p-value are not
    drawn, and counted in a message.

    Parameters
    ----------
    adata
        Object with results of :func:`scglmm.tl.nbmm`.
    coef
        Coefficient, for instance "Dx[T.AD]". Needed where the model has more than one besides the intercept.
    key
        Name of the result.
    group
        Group, for results with `groupby`. Needed where more than one was fitted.
    n_labels
        Number of significant genes to name, those with the smallest p-values.
    genes
        Name these genes instead, significant or not.
    padj_cutoff
        Genes with an adjusted p-value below this are significant. A dashed line is drawn where it falls.
    log2fc_cutoff
        Absolute log2 fold change that significant genes must exceed. Dotted lines are drawn at it.
    gene_symbols
        Column of `adata.var` with the names to write; `genes` are looked up in it as well.
    xmax, ymax
        Limits of the absolute log2 fold change and of -log10 p. By default all genes are within, except a few
        (0.5% at most) without significance whose fold changes are far beyond those of the others.
    size
        Area of a point in square points. By default smaller for more genes.
    title
        Title instead of the name of the coefficient.
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
        No such result, coefficient, group, `gene_symbols` or gene.
    ValueError
        `coef` or `group` is needed and was not given, or no gene has a p-value.

    Examples
    --------
    >>> scglmm.pl.volcano(adata, "Dx[T.AD]", n_labels=15)  # doctest: +SKIP
    """
    result = read_result(adata, key)
    group = result.only_group() if group is None else result.find_group(group)
    coef = result.only_coefficient(group) if coef is None else result.find_coefficient(coef, group)
    table = result.gene_rows(coef, group)
    table["label"] = gene_labels(adata, gene_symbols)
    wanted = None if genes is None else find_genes(adata, genes, table["label"].to_numpy(dtype=object))

    tested = (table["pval"].notna() & np.isfinite(table["log2_fc"])).to_numpy()
    if not tested.any():
        msg = f"No gene has a p-value for {readable(coef)!r}: there is nothing to draw."
        raise ValueError(msg)
    if not tested.all():
        logg.info(f"{(~tested).sum()} of {len(tested)} genes have no p-value and are not drawn.")
    if wanted is not None and (absent := table.loc[wanted][~tested[wanted]]).size:
        for name, status in zip(absent["label"], absent["status"], strict=True):
            logg.warning(f"{name} was not tested (status {status}): it is not drawn.")
    table = table[tested]

    significant = (table["padj"] < padj_cutoff) & (table["log2_fc"].abs() > log2fc_cutoff)
    significant = significant.to_numpy()
    kind = np.where(significant, np.where(table["log2_fc"] > 0, "up", "down"), "not significant")
    x, y, place, limits = _positions(table, significant, xmax, ymax)

    with journal_style():
        fig, ax = axes_for(ax, figsize)
        open_frame(ax)
        ax.set_xlim(-limits[0] * 1.05, limits[0] * 1.05)
        ax.set_ylim(-0.015 * limits[1], limits[1] * 1.06)
        size = float(np.clip(6000 / len(x), 3.5, 10.0)) if size is None else size
        _points(ax, x, y, kind, place, size)
        _cutoff_lines(ax, table, padj_cutoff, log2fc_cutoff, limits)
        ax.set_xlabel("log$_2$ fold change", fontsize=FONTSIZE)
        ax.set_ylabel("−log$_{10}$ p-value", fontsize=FONTSIZE)
        _legend(ax, kind, padj_cutoff, _title(coef, group) if title is None else title)

        rank = np.lexsort((-table["statistic"].abs().to_numpy(), table["pval"].to_numpy()))
        if wanted is None:
            chosen = rank[significant[rank]][: max(n_labels, 0)]
        else:
            chosen = rank[np.isin(table.index.to_numpy()[rank], wanted)]
        xy = np.column_stack([x, y])
        names = [str(name) for name in table["label"].to_numpy()[chosen]]
        weights = np.where(significant, 4.0, 0.8)
        radius = np.sqrt(size / np.pi)
        written = PointLabels(ax, xy[chosen], names, xy, weights, radius=radius)
        fig.draw_without_rendering()
    if left_out := written.left_out:
        logg.warning(f"No room for the names of {', '.join(left_out)}: enlarge the figure or name fewer genes.")
    return finish(fig, ax, show=show, return_fig=return_fig)


def _positions(
    table: pd.DataFrame, significant: NDArray[np.bool_], xmax: float | None, ymax: float | None
) -> tuple[NDArray, NDArray, NDArray, tuple[float, float]]:
    """Where points are drawn, which of them are beyond a limit, and the limits of |log2 FC| and -log10 p."""
    log2_fc, pval = table["log2_fc"].to_numpy(), table["pval"].to_numpy()
    y = np.full(len(pval), np.inf)
    y[pval > 0] = -np.log10(pval[pval > 0])
    y = np.maximum(y, 0.0)
    finite = y[np.isfinite(y)]
    top = float(finite.max(initial=0.0))
    if ymax is None:
        # a little above the others, so that genes at the limit stand out
        ymax = max(top, 1.0) * (1.06 if finite.size < y.size else 1.0)
        if not finite.size:
            ymax = 324.0
    if xmax is None:
        xmax = _reach(np.abs(log2_fc), significant)
    place = np.full(len(y), "inside", dtype=object)
    place[log2_fc > xmax] = "right"
    place[log2_fc < -xmax] = "left"
    place[y > ymax] = "top"
    return np.clip(log2_fc, -xmax, xmax), np.minimum(y, ymax), place, (xmax, ymax)


def _reach(size: NDArray[np.float64], significant: NDArray[np.bool_]) -> float:
    """Limit of the absolute fold change: all genes, unless a few that mean nothing would take most of the room."""
    largest = float(size.max())
    enough = max(float(size[significant].max(initial=0.0)) * 1.1, float(np.quantile(size, 0.995)))
    return max(largest if largest < 1.3 * enough else enough, 0.1)


def _points(ax: Axes, x: NDArray, y: NDArray, kind: NDArray, place: NDArray, size: float) -> None:
    for order, name in enumerate(_CLASSES):
        for where, marker in _MARKERS.items():
            rows = (kind == name) & (place == where)
            if not rows.any():
                continue
            ax.scatter(
                x[rows],
                y[rows],
                s=size if where == "inside" else 2.2 * size + 6,
                c=_COLOURS[name],
                marker=marker,
                alpha=0.55 if name == "not significant" else 0.85,
                linewidths=0,
                # points, not their 10,000 outlines, in a PDF
                rasterized=len(x) > 3000,
                clip_on=False,
                zorder=2 + order,
                label=f"{name}, {where}",
            )


def _cutoff_lines(
    ax: Axes, table: pd.DataFrame, padj_cutoff: float, log2fc_cutoff: float, limits: tuple[float, float]
) -> None:
    style = {"color": GREY_LINE, "linewidth": 0.6, "zorder": 1}
    below = table.loc[table["padj"] < padj_cutoff, "pval"]
    if len(below) and below.max() > 0:
        ax.axhline(min(-np.log10(below.max()), limits[1]), linestyle=(0, (4, 2)), **style)
    if 0 < log2fc_cutoff < limits[0]:
        for at in (-log2fc_cutoff, log2fc_cutoff):
            ax.axvline(at, linestyle=(0, (1, 2)), **style)
    ax.axvline(0, color="#D9D9D9", linewidth=0.6, zorder=0)


def _legend(ax: Axes, kind: NDArray, padj_cutoff: float, title: str) -> None:
    names = {"down": "down", "up": "up", "not significant": "n.s."}
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=3.5, markeredgewidth=0, color=_COLOURS[name])
        for name in names
    ]
    labels = [f"{short} {(kind == name).sum():,}" for name, short in names.items()]
    handles.append(Line2D([], [], color=GREY_LINE, linewidth=0.6, linestyle=(0, (4, 2))))
    labels.append(f"FDR {padj_cutoff:g}")
    legend_above(ax, handles, labels, title, handlelength=1.4, handletextpad=0.3)


def _title(coef: str, group: str | None) -> str:
    return readable(coef) if group is None else f"{readable(group)}: {readable(coef)}"
