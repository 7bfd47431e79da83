"""`scglmm.pl.dotplot`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scglmm.pl._contrasts import find_contrasts
from scglmm.pl._docs import document
from scglmm.pl._grid import check_cmap, colour_bar, limit_of, open_grid, similar_together, swapped
from scglmm.pl._style import GREY_LINE, finish, journal_style, legend_above

_AREA = (3.0, 75.0)
"""Area of the smallest and the largest dot, in square points."""


@document
def dotplot(
    adata: AnnData,
    genes: str | Sequence[str] | None = None,
    *,
    coef: str | Sequence[str] | None = None,
    key: str = "nbmm",
    group: str | Sequence[str] | None = None,
    n_genes: int = 20,
    padj_cutoff: float = 0.05,
    padj_min: float = 1e-10,
    cluster: bool | None = None,
    vmax: float | None = None,
    cmap: str = "RdBu_r",
    swap_axes: bool = False,
    gene_symbols: str | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Dot plot, genes × groups of cells or genes × coefficients: colour is the log2 fold change, size the adjusted p.

    Dots of significant genes have a dark outline. A small cross is what has no test.

    Parameters
    ----------
    {adata}
    {grid}
    padj_cutoff
        Dots with an adjusted p-value below this are outlined.
    padj_min
        Adjusted p-value of the largest dots; those of smaller ones are as large.
    {grid_colours}
    {gene_symbols}
    {figure}

    Returns
    -------
    {returns}

    Raises
    ------
    KeyError
        No such result, coefficient, group, `gene_symbols` or gene.
    ValueError
        `coef` is needed and was not given, nothing was tested, or `n_genes`, `padj_min`, `vmax` or `cmap` are not
        valid.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Sex + (1|SubID)")
    >>> ax = scglmm.pl.dotplot(adata, show=False)
    """
    if not 0 < padj_min < 1:
        msg = f"`padj_min` must be between 0 and 1, not {padj_min!r}."
        raise ValueError(msg)
    colours = check_cmap(cmap)
    found = find_contrasts(adata, key, coef, group, genes, n_genes, gene_symbols)
    limit = limit_of(found.log2_fc, vmax)
    if (genes is None) if cluster is None else cluster:
        found = found.take(similar_together(found.log2_fc))

    with journal_style():
        fig, ax = open_grid(ax, found, figsize, swap_axes=swap_axes, extra=0.3)
        values, padj = (swapped(array, swap_axes) for array in (found.log2_fc, found.padj))
        places = np.indices(values.shape)
        row, column = places[0], places[1]
        tested = np.isfinite(values) & np.isfinite(padj)
        # dots take up to 0.9 of a cell
        mapped = colour_bar(fig, ax, colours, limit, values[tested])
        for significant in (False, True):
            rows = tested & ((padj < padj_cutoff) == significant)
            ax.scatter(
                column[rows],
                row[rows],
                s=_areas(padj[rows], padj_min),
                c=values[rows],
                cmap=mapped.cmap,
                norm=mapped.norm,
                edgecolors="black" if significant else "#BDBDBD",
                linewidths=0.7 if significant else 0.4,
                clip_on=False,
                zorder=3,
                label="significant" if significant else "not significant",
            )
        ax.scatter(column[~tested], row[~tested], s=6, marker="x", color="#BDBDBD", linewidths=0.6, label="not tested")
        ax.grid(color="#EEEEEE", linewidth=0.5, zorder=0)
        ax.set_axisbelow(True)
        _legend(ax, padj_cutoff, padj_min, found.shared if title is None else title)
    return finish(fig, ax, show=show, return_fig=return_fig)


def _areas(padj: np.ndarray, padj_min: float) -> np.ndarray:
    share = np.log10(np.maximum(padj, padj_min)) / np.log10(padj_min)
    return _AREA[0] + (_AREA[1] - _AREA[0]) * share


def _legend(ax: Axes, padj_cutoff: float, padj_min: float, title: str) -> None:
    shown = sorted({1.0, padj_cutoff, padj_min}, reverse=True)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=float(np.sqrt(_areas(np.array(p), padj_min))),
            markerfacecolor="white",
            markeredgecolor="black" if p < 1 else "#BDBDBD",
            markeredgewidth=0.7 if p < 1 else 0.4,
            color=GREY_LINE,
        )
        for p in shown
    ]
    labels = ["FDR 1", *(f"{'≤ ' if p == padj_min else '< '}{p:g}" for p in shown[1:])]
    legend_above(ax, handles, labels, title or None, handlelength=1.0, handletextpad=0.35, columnspacing=0.8)
