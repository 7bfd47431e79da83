"""`scglmm.pl.forest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from scglmm.pl._contrasts import Contrasts, find_contrasts
from scglmm.pl._docs import document
from scglmm.pl._refit import grouping
from scglmm.pl._style import (
    COLUMN_WIDTH,
    FONTSIZE,
    GREY_LINE,
    OKABE_ITO,
    axes_for,
    category_colours,
    check_level,
    finish,
    journal_style,
    legend_above,
    open_frame,
    wrap,
)
from scglmm.results import read_result

_SPREAD = 0.66
"""Part of the height of a gene that its intervals take."""


@document
def forest(
    adata: AnnData,
    genes: str | Sequence[str] | None = None,
    *,
    coef: str | Sequence[str] | None = None,
    key: str = "nbmm",
    group: str | Sequence[str] | None = None,
    n_genes: int = 10,
    level: float = 0.95,
    padj_cutoff: float = 0.05,
    xmax: float | None = None,
    palette: str | Sequence[str] | Mapping[str, str] | None = None,
    gene_symbols: str | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Forest plot: estimates and intervals of genes for one or several coefficients, or groups of cells.

    A row per gene, in it an interval per contrast; for a single gene a row per contrast. Intervals are estimate ±
    t quantile × standard error with the degrees of freedom of the test; they are not adjusted for the number of
    genes. Points are filled where the adjusted p-value is below `padj_cutoff`. An arrow marks an interval that goes
    on beyond the axis; where there is no estimate the status of the gene is written.

    Parameters
    ----------
    {adata}
    genes
        Genes to show, from top to bottom. By default those with the smallest p-values.
    coef
        One coefficient or several. By default all but the intercept; in results with several groups it has to be
        chosen, where there is more than one. Numeric covariates are per unit: not for the same axis as a factor.
    {key}
    group
        One group or several, for results with `groupby`. By default all that were fitted.
    n_genes
        Number of genes where none are named, in turn the best of each contrast.
    level
        Coverage of the intervals.
    padj_cutoff
        Points with an adjusted p-value below this are filled.
    xmax
        Limit of the absolute log2 fold change. By default all estimates are within, and their intervals unless they
        are far wider than the estimates are apart.
    palette
        Colours by contrast, a list of colours, or the name of a colormap. By default, for groups, those that scanpy
        keeps for the column in `adata.uns`, otherwise Okabe and Ito's.
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
        `coef` is needed and was not given, nothing was tested, or `level`, `n_genes` or `palette` are not valid.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Sex + (1|SubID)")
    >>> ax = scglmm.pl.forest(adata, ["PTPRG", "SIM001"], show=False)
    """
    check_level(level)
    found = find_contrasts(adata, key, coef, group, genes, n_genes, gene_symbols)
    column = grouping(adata, read_result(adata, key)) if len({g for g, _ in found.pairs}) > 1 else None
    single = len(found.genes) == 1 and len(found.labels) > 1
    colours = _colours(adata, found, column, palette)
    quantile = stats.t.ppf((1 + level) / 2, found.df)
    half = quantile * found.se
    limits = _limits(found.log2_fc, half) if xmax is None else (-xmax, xmax)

    n_rows, n_each = (len(found.labels), 1) if single else (len(found.genes), len(found.labels))
    if title is None:
        title = ": ".join(part for part in (found.genes[0] if single else "", found.shared) if part)
        if len(found.labels) == 1:
            title = ": ".join(part for part in (found.shared, found.labels[0]) if part)
    names = [wrap(label, 30) for label in found.labels] if single else list(found.genes)
    lines = max(name.count("\n") for name in names) + 1
    with journal_style():
        height = 0.62 + 0.16 * bool(title) + n_rows * max(0.19, 0.11 * n_each + 0.06, 0.125 * lines)
        fit_height = ax is None and figsize is None
        fig, ax = axes_for(ax, figsize or (COLUMN_WIDTH, height))
        open_frame(ax)
        margin = 0.04 * (limits[1] - limits[0])
        ax.set_xlim(limits[0] - margin, limits[1] + margin)
        ax.set_ylim(n_rows - 0.5, -0.5)
        for row in range(0, n_rows, 2):
            ax.axhspan(row - 0.5, row + 0.5, color="#F3F3F3", linewidth=0, zorder=0)
        ax.axvline(0, color=GREY_LINE, linewidth=0.6, zorder=1)
        for i, gene in enumerate(found.genes):
            for j, label in enumerate(found.labels):
                place = j if single else i + _SPREAD * ((j + 0.5) / n_each - 0.5)
                estimate = found.log2_fc[i, j], half[i, j], found.padj[i, j] < padj_cutoff
                _interval(ax, place, *estimate, limits, colours[label], str(found.status[i, j]), f"{gene}: {label}")
        ax.set_yticks(range(n_rows), names, fontstyle="normal" if single else "italic", parse_math=False)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(f"log$_2$ fold change ({100 * level:g}% interval)", fontsize=FONTSIZE)
        if single or n_each == 1:
            if title:
                ax.set_title(title, loc="left", fontsize=FONTSIZE, fontweight="bold", parse_math=False)
        else:
            handles = [
                Line2D([], [], color=colours[label], linewidth=1.1, marker="o", markersize=3.2)
                for label in found.labels
            ]
            rows = legend_above(ax, handles, found.labels, title or None, handlelength=1.4)
            if fit_height:
                fig.set_figheight(height + 0.16 * rows)
    return finish(fig, ax, show=show, return_fig=return_fig)


def _colours(
    adata: AnnData,
    found: Contrasts,
    column: str | None,
    palette: str | Sequence[str] | Mapping[str, str] | None,
) -> dict[str, str]:
    if len(found.labels) == 1 and palette is None:
        return {found.labels[0]: OKABE_ITO["blue"]}
    return category_colours(adata, column, found.labels, palette)


def _limits(estimate: np.ndarray, half: np.ndarray) -> tuple[float, float]:
    """Choose the ends of the axis: 0 and all intervals, unless a few would take most of the room from the estimates."""
    known = np.isfinite(estimate) & np.isfinite(half)
    estimate, half = estimate[known], half[known]
    if not estimate.size:
        return -1.0, 1.0
    spread = max(float(np.ptp(np.append(estimate, 0.0))), 0.05)
    room = max(1.5 * spread, 3.0 * float(np.median(half)))
    low, high = estimate - np.minimum(half, room), estimate + np.minimum(half, room)
    return float(min(low.min(), -0.1 * spread)), float(max(high.max(), 0.1 * spread))


def _interval(
    ax: Axes,
    place: float,
    estimate: float,
    half: float,
    significant: bool,
    limits: tuple[float, float],
    colour: str,
    status: str,
    label: str,
) -> None:
    if not np.isfinite(estimate) or not np.isfinite(half):
        ax.annotate(
            status,
            (0, place),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            fontsize=5.5,
            color=GREY_LINE,
        )
        return
    low, high = np.clip([estimate - half, estimate + half], *limits)
    ax.plot([low, high], [place, place], color=colour, linewidth=1.1, solid_capstyle="butt", zorder=3)
    style = {"color": colour, "markersize": 3.2, "markeredgewidth": 0, "clip_on": False, "zorder": 3}
    if estimate - half < limits[0]:
        ax.plot(limits[0], place, marker="<", **style)
    if estimate + half > limits[1]:
        ax.plot(limits[1], place, marker=">", **style)
    if limits[0] <= estimate <= limits[1]:
        ax.plot(
            estimate,
            place,
            marker="o",
            markersize=3.2,
            markerfacecolor=colour if significant else "white",
            markeredgecolor=colour,
            markeredgewidth=0.8,
            zorder=4,
            label=label,
        )
