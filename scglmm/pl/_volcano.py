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

from scglmm.pl._docs import document
from scglmm.pl._points import (
    CUT_OFF_STYLE,
    check_adjust_text,
    class_legend,
    classify,
    draw_points,
    name_points,
    point_size,
    reach,
)
from scglmm.pl._style import COLUMN_WIDTH, FONTSIZE, GREY_LINE, axes_for, finish, journal_style, open_frame
from scglmm.pl._tested import tested_genes


@document
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
    adjust_text: bool = False,
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
    {adata}
    {coef}
    {key}
    {group}
    {named_genes}
    padj_cutoff
        Genes with an adjusted p-value below this are significant. A dashed line is drawn where it falls.
    log2fc_cutoff
        Absolute log2 fold change that significant genes must exceed. Dotted lines are drawn at it.
    {gene_symbols}
    xmax, ymax
        Limits of the absolute log2 fold change and of -log10 p. By default all genes are within, except a few
        (0.5% at most) without significance whose fold changes are far beyond those of the others.
    size
        Area of a point in square points. By default smaller for more genes.
    {adjust_text}
    {figure}

    Returns
    -------
    {returns}

    Raises
    ------
    KeyError
        No such result, coefficient, group, `gene_symbols` or gene.
    ValueError
        `coef` or `group` is needed and was not given, or no gene has a p-value.
    ImportError
        `adjust_text` was asked for, and adjustText is not installed.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Age + (1|SubID)")
    >>> ax = scglmm.pl.volcano(adata, "Dx[T.AD]", n_labels=2, show=False)
    """
    check_adjust_text(adjust_text)
    tested = tested_genes(adata, key, coef, group, genes, gene_symbols)
    table = tested.table
    significant = tested.significant(padj_cutoff, log2fc_cutoff)
    kind = classify(table["log2_fc"].to_numpy(), significant)
    x, y, place, limits = _positions(table, significant, xmax, ymax)
    size = point_size(len(x), size)

    with journal_style():
        fig, ax = axes_for(ax, figsize)
        open_frame(ax)
        ax.set_xlim(-limits[0] * 1.05, limits[0] * 1.05)
        ax.set_ylim(-0.015 * limits[1], limits[1] * 1.06)
        draw_points(ax, x, y, kind, place, size)
        _cutoff_lines(ax, table, padj_cutoff, log2fc_cutoff, limits)
        ax.set_xlabel("log$_2$ fold change", fontsize=FONTSIZE)
        ax.set_ylabel("−log$_{10}$ p-value", fontsize=FONTSIZE)
        line = Line2D([], [], color=GREY_LINE, linewidth=0.6, linestyle=(0, (4, 2)))
        class_legend(ax, kind, tested.title if title is None else title, (line, f"FDR {padj_cutoff:g}"))
        chosen = tested.to_name(significant, n_labels)
        names = [str(name) for name in table["label"].to_numpy()[chosen]]
        name_points(ax, x, y, chosen, names, significant, size, adjust_text=adjust_text)
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
        xmax = reach(np.abs(log2_fc), significant)
    place = np.full(len(y), "inside", dtype=object)
    place[log2_fc > xmax] = "right"
    place[log2_fc < -xmax] = "left"
    place[y > ymax] = "top"
    return np.clip(log2_fc, -xmax, xmax), np.minimum(y, ymax), place, (xmax, ymax)


def _cutoff_lines(
    ax: Axes, table: pd.DataFrame, padj_cutoff: float, log2fc_cutoff: float, limits: tuple[float, float]
) -> None:
    below = table.loc[table["padj"] < padj_cutoff, "pval"]
    if len(below) and below.max() > 0:
        ax.axhline(min(-np.log10(below.max()), limits[1]), linestyle=(0, (4, 2)), **CUT_OFF_STYLE)
    if 0 < log2fc_cutoff < limits[0]:
        for at in (-log2fc_cutoff, log2fc_cutoff):
            ax.axvline(at, linestyle=(0, (1, 2)), **CUT_OFF_STYLE)
    ax.axvline(0, color="#D9D9D9", linewidth=0.6, zorder=0)
