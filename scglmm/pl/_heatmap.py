"""`scglmm.pl.heatmap`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scglmm.pl._contrasts import find_contrasts
from scglmm.pl._docs import document
from scglmm.pl._grid import check_cmap, check_cutoffs, colour_bar, limit_of, open_grid, similar_together, swapped
from scglmm.pl._style import FONTSIZE, finish, journal_style


@document
def heatmap(
    adata: AnnData,
    genes: str | Sequence[str] | None = None,
    *,
    coef: str | Sequence[str] | None = None,
    key: str = "nbmm",
    group: str | Sequence[str] | None = None,
    n_genes: int = 20,
    stars: Sequence[float] = (0.05, 0.01, 0.001),
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
    """Heatmap of log2 fold changes, genes × groups of cells or genes × coefficients, with stars for significance.

    Grey is what has no estimate: the gene was not fitted in that group, or the coefficient is not estimable.

    Parameters
    ----------
    {adata}
    {grid}
    stars
        Adjusted p-values below which there is one star, two, ...; empty for none.
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
        `coef` is needed and was not given, nothing was tested, or `n_genes`, `stars`, `vmax` or `cmap` are not valid.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Sex + (1|SubID)")
    >>> ax = scglmm.pl.heatmap(adata, show=False)
    """
    cutoffs = check_cutoffs(stars)
    colours = check_cmap(cmap)
    found = find_contrasts(adata, key, coef, group, genes, n_genes, gene_symbols)
    limit = limit_of(found.log2_fc, vmax)
    if (genes is None) if cluster is None else cluster:
        found = found.take(similar_together(found.log2_fc))

    with journal_style():
        fig, ax = open_grid(ax, found, figsize, swap_axes=swap_axes, extra=0.1 + 0.1 * len(cutoffs))
        log2_fc = swapped(found.log2_fc, swap_axes)
        values = np.ma.array(log2_fc, mask=~np.isfinite(log2_fc))
        edges = [np.arange(n + 1) - 0.5 for n in values.shape[::-1]]
        ax.pcolormesh(*edges, values, cmap=colours, vmin=-limit, vmax=limit, edgecolors="white", linewidth=0.6)
        mapped = colour_bar(fig, ax, colours, limit, values.compressed())
        if cutoffs or values.mask.any():
            _explain(fig, ax, cutoffs, missing=bool(values.mask.any()))
        _write_stars(ax, swapped(found.padj, swap_axes), values, mapped, cutoffs)
        if title := found.shared if title is None else title:
            ax.set_title(title, loc="left", fontsize=FONTSIZE, fontweight="bold", parse_math=False)
    return finish(fig, ax, show=show, return_fig=return_fig)


def _explain(fig: Figure, ax: Axes, cutoffs: list[float], *, missing: bool) -> None:
    """Say below the grid what stars and grey mean, in one line where there is room for it."""
    parts = [f"{'*' * (i + 1)} FDR < {cut:g}" for i, cut in enumerate(cutoffs)]
    parts += ["grey: no estimate"] * missing
    fig.draw_without_rendering()
    # a character of this size is about 3.4 points wide
    room = (fig.bbox.x1 - ax.get_window_extent().x0) / fig.dpi * 72 / 3.4
    line = "   ".join(parts)
    ax.set_xlabel(line if len(line) < room else "\n".join(parts), fontsize=6.0, loc="left")


def _write_stars(
    ax: Axes, padj: NDArray[np.float64], values: NDArray[np.float64], mapped: ScalarMappable, cutoffs: list[float]
) -> None:
    for (row, column), p in np.ndenumerate(padj):
        n = sum(bool(p < cut) for cut in cutoffs)
        if not n:
            continue
        red, green, blue, _ = mapped.to_rgba(values[row, column])
        # relative luminance (ITU-R BT.709)
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
        ax.annotate(
            "*" * n,
            (column, row),
            # the asterisk sits high in its line
            xytext=(0, -1.6),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=6.5,
            color="white" if dark else "black",
        )
