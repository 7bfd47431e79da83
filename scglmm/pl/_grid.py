"""Genes × contrasts as a grid: what the heatmap and the dot plot have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster import hierarchy

from scglmm.pl._contrasts import Contrasts
from scglmm.pl._style import FONTSIZE, axes_for, wrap

MISSING = "#E3E3E3"
"""Colour of what has no estimate."""

_LONG = 7
"""Names with more characters than this are written upwards."""


def check_cmap(cmap: str) -> Colormap:
    """Find a colormap.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if cmap not in colormaps:
        msg = f"`cmap` {cmap!r} is not the name of a colormap."
        raise ValueError(msg)
    return colormaps[cmap].with_extremes(bad=MISSING)


def similar_together(log2_fc: NDArray[np.float64]) -> NDArray[np.intp]:
    """Order of the genes that puts similar ones together, those that go down first.

    Average linkage on Euclidean distances, leaves ordered so that neighbours are as alike as can be (Bar-Joseph et
    al. 2001, doi 10.1093/bioinformatics/17.suppl_1.S22). What is missing counts as 0.
    """
    values = np.nan_to_num(log2_fc)
    if len(values) < 3:
        return np.argsort(values.mean(axis=1), kind="stable")
    order = hierarchy.leaves_list(hierarchy.linkage(values, "average", optimal_ordering=True))
    mean = values[order].mean(axis=1)
    half = len(order) // 2
    return order if mean[:half].mean() <= mean[-half:].mean() else order[::-1]


def limit_of(log2_fc: NDArray[np.float64], vmax: float | None) -> float:
    """Limit of the colours: as given, or one that all but the largest 2% are within."""
    if vmax is not None:
        if not vmax > 0:
            msg = f"`vmax` must be above 0, not {vmax!r}."
            raise ValueError(msg)
        return float(vmax)
    size = np.abs(log2_fc[np.isfinite(log2_fc)])
    return max(float(np.quantile(size, 0.98)), 0.1) if size.size else 1.0


def open_grid(
    ax: Axes | None, found: Contrasts, figsize: tuple[float, float] | None, *, swap_axes: bool, extra: float
) -> tuple[Figure, Axes]:
    """Axes with a row per gene and a column per contrast, or the other way round, in a figure that fits them."""
    genes, contrasts = found.log2_fc.shape
    n_rows, n_columns = (contrasts, genes) if swap_axes else (genes, contrasts)
    labels = [wrap(label, 36) for label in found.labels]
    row_names, column_names = (labels, found.genes) if swap_axes else (found.genes, labels)
    upwards = max(len(part) for name in column_names for part in str(name).split("\n")) > _LONG or n_columns > 8
    if figsize is None:
        # a character is about 0.055 inches wide
        beside = 0.055 * max(len(part) for name in row_names for part in str(name).split("\n"))
        below = 0.055 * max(len(part) for name in column_names for part in str(name).split("\n")) if upwards else 0.2
        figsize = 1.0 + beside + 0.24 * max(n_columns, 3), 0.35 + extra + below + 0.165 * max(n_rows, 6)
    fig, ax = axes_for(ax, figsize)
    ax.set_xlim(-0.5, n_columns - 0.5)
    ax.set_ylim(n_rows - 0.5, -0.5)
    gene_axis, contrast_axis = (ax.xaxis, ax.yaxis) if swap_axes else (ax.yaxis, ax.xaxis)
    gene_axis.set_ticks(range(genes), found.genes, fontstyle="italic", parse_math=False)
    contrast_axis.set_ticks(range(contrasts), labels, parse_math=False)
    ax.tick_params(axis="both", length=0)
    if upwards:
        ax.tick_params(axis="x", rotation=90)
    ax.spines[:].set_visible(False)
    return fig, ax


def colour_bar(fig: Figure, ax: Axes, cmap: Colormap, limit: float, values: NDArray[np.float64]) -> ScalarMappable:
    """Bar that explains the colours, at the right; pointed where values are beyond its ends."""
    beyond = int((values < -limit).any()) + 2 * int((values > limit).any())
    extend = ("neither", "min", "max", "both")[beyond]
    colours = ScalarMappable(Normalize(-limit, limit), cmap)
    bar = fig.colorbar(colours, ax=ax, shrink=0.75, aspect=14, pad=0.03, anchor=(0.0, 1.0), extend=extend)
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=6.5, width=0.5, length=2.0)
    bar.set_label("log$_2$ fold change", fontsize=FONTSIZE - 1)
    bar.locator.set_params(nbins=5)
    bar.update_ticks()
    return colours


def swapped(values: NDArray, swap_axes: bool) -> NDArray:
    """Genes × contrasts as it is drawn."""
    return values.T if swap_axes else values


def check_cutoffs(cutoffs: Sequence[float]) -> list[float]:
    """Check cut-offs of adjusted p-values, and sort them, the largest first.

    Raises
    ------
    ValueError
        One is not between 0 and 1.
    """
    for cut in cutoffs:
        if not 0 < cut < 1:
            msg = f"`stars` must be adjusted p-values between 0 and 1, not {cut!r}."
            raise ValueError(msg)
    return sorted({float(cut) for cut in cutoffs}, reverse=True)
