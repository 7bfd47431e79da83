"""`scglmm.pl.varpart`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from scglmm.pl._docs import document
from scglmm.pl._genes import find_genes, gene_labels
from scglmm.pl._style import (
    COLUMN_WIDTH,
    FONTSIZE,
    GREYS,
    axes_for,
    finish,
    journal_style,
    legend_above,
    open_frame,
    source_colours,
    wrap,
)
from scglmm.results import StoredResult, read_result
from scglmm.results.names import readable
from scglmm.results.read import has_inflation

_TICKS = {"sqrt": (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1), "linear": (0, 0.25, 0.5, 0.75, 1)}
_GRID = 512
_VIOLIN, _BOX = 0.42, 0.075
"""Half the height of a violin and of the box in it; sources are 1 apart."""


@document
def varpart(
    adata: AnnData,
    *,
    key: str = "nbmm",
    genes: str | Sequence[str] | None = None,
    group: str | None = None,
    sort_by: str | None = None,
    kind: Literal["violin", "bar"] | None = None,
    n_genes: int | None = None,
    scale: Literal["sqrt", "linear"] = "sqrt",
    palette: str | Sequence[str] | Mapping[str, str] | None = None,
    gene_symbols: str | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Fractions of the variance of each gene that come from each source.

    Without `genes`, the distribution over genes for every source: a violin, in it a box from the lower to the
    upper quartile with a line at the median and whiskers to the last gene within 1.5 times the box, and the
    median in figures at the right. With `genes` (or `n_genes`), a stacked bar per gene.

    Parameters
    ----------
    {adata}
    {key}
    genes
        Genes to show. By default all that were fitted.
    {group}
    sort_by
        For bars, the source by whose fraction genes are sorted, largest first; without it named genes keep
        the order in which they were given. For violins, "median" sorts the sources, `CountNoise` and
        `Residuals` last; without it they are in the order of the formula.
    kind
        "violin" or "bar", where the choice above is not the one wanted.
    n_genes
        Bars of this many genes: those with the largest fraction of `sort_by`, by default of the first source.
        20 with ``kind="bar"``.
    scale
        Scale of the axis under violins. The square root, the default, leaves room for the fixed effects,
        whose fractions are small in most genes; bars are always linear.
    palette
        Colours by source, a list of colours for the sources other than `CountNoise` and `Residuals`, or the
        name of a colormap. By default colours that the colour-blind can tell apart (Okabe and Ito), and greys
        for those two.
    {gene_symbols}
    {figure}

    Returns
    -------
    {returns}

    Raises
    ------
    KeyError
        No such result, group, gene, `gene_symbols` or source.
    ValueError
        `group` is needed and was not given, no gene was fitted, or `kind`, `scale` or `palette` are not
        valid.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :8].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Age + (1|SubID)")
    >>> ax = scglmm.pl.varpart(adata, show=False)
    >>> ax = scglmm.pl.varpart(adata, genes=["PTPRG", "SIM003"], sort_by="Dx", show=False)
    """
    if kind not in {None, "violin", "bar"}:
        msg = f"`kind` must be 'violin' or 'bar', not {kind!r}."
        raise ValueError(msg)
    if scale not in _TICKS:
        msg = f"`scale` must be 'sqrt' or 'linear', not {scale!r}."
        raise ValueError(msg)
    kind = kind or ("violin" if genes is None and n_genes is None else "bar")
    result = read_result(adata, key)
    group = result.only_group() if group is None else result.find_group(group)
    fractions = result.table("varpart", group).reset_index(drop=True)
    labels = gene_labels(adata, gene_symbols)
    rows = np.arange(adata.n_vars) if genes is None else find_genes(adata, genes, labels)
    if not fractions.iloc[rows].notna().all(axis=1).any():
        msg = "None of these genes was fitted: there is nothing to draw."
        if has_inflation(adata, result.key):
            msg = f"Variance fractions are not defined with zero inflation, which the result {result.key!r} has."
        raise ValueError(msg)
    colours = source_colours(list(fractions.columns), palette)
    if title is None and group is not None:
        title = readable(group)

    with journal_style():
        if kind == "violin":
            shown = _sorted_sources(fractions.iloc[rows].dropna(), sort_by)
            height = 0.6 + 0.33 * shown.shape[1]
            fig, ax = axes_for(ax, figsize or (COLUMN_WIDTH, height))
            _violins(ax, shown, colours, scale)
        else:
            rows = _chosen(result, fractions, rows, sort_by, n_genes, named=genes is not None)
            height = 0.6 + 0.165 * len(rows)
            fit_height = ax is None and figsize is None
            fig, ax = axes_for(ax, figsize or (COLUMN_WIDTH, height))
            status = result.column("fit", "status", group).astype(str).to_numpy()
            legend_rows = _bars(ax, fractions.iloc[rows], labels[rows], status[rows], colours, title)
            if fit_height:
                fig.set_figheight(height + 0.16 * (legend_rows + bool(title)))
            title = None
        if title:
            ax.set_title(title, loc="left", fontsize=FONTSIZE, fontweight="bold")
        open_frame(ax)
    return finish(fig, ax, show=show, return_fig=return_fig)


def _sorted_sources(fractions: pd.DataFrame, sort_by: str | None) -> pd.DataFrame:
    last = [s for s in GREYS if s in fractions.columns]
    first = [s for s in fractions.columns if s not in last]
    if sort_by == "median":
        first = list(fractions[first].median().sort_values(ascending=False, kind="stable").index)
    elif sort_by is not None:
        msg = f"Violins can be sorted by 'median' only, not by {sort_by!r}: that is for bars (`kind='bar'`)."
        raise ValueError(msg)
    return fractions[first + last]


def _chosen(
    result: StoredResult,
    fractions: pd.DataFrame,
    rows: NDArray[np.intp],
    sort_by: str | None,
    n_genes: int | None,
    *,
    named: bool,
) -> NDArray[np.intp]:
    """Genes to draw as bars, from top to bottom."""
    if not named:
        rows = rows[fractions.iloc[rows].notna().all(axis=1).to_numpy()]
        n_genes = 20 if n_genes is None else n_genes
        sort_by = fractions.columns[0] if sort_by is None else sort_by
    if sort_by is not None:
        values = fractions[result.find_source(sort_by)].to_numpy()[rows]
        rows = rows[np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable")]
    if n_genes is not None:
        if n_genes < 1:
            msg = f"`n_genes` must be at least 1, not {n_genes}."
            raise ValueError(msg)
        rows = rows[:n_genes]
    return rows


def _violins(ax: Axes, fractions: pd.DataFrame, colours: Mapping[str, str], scale: str) -> None:
    # densities are those of what is seen: of the square root of the fractions on that scale
    power = 0.5 if scale == "sqrt" else 1.0
    grid = np.linspace(0, 1, _GRID)
    for place, source in enumerate(fractions.columns):
        values = fractions[source].to_numpy()
        seen = np.clip(values, 0, 1) ** power
        within = (grid >= seen.min()) & (grid <= seen.max())
        density = _density(seen, grid)[within]
        if density.size > 1:
            reach = _VIOLIN * density / density.max()
            ax.fill_between(
                grid[within] ** (1 / power),
                place - reach,
                place + reach,
                color=colours[source],
                linewidth=0,
                alpha=0.75,
                zorder=2,
                label=source,
            )
        _box(ax, values, place)
        ax.annotate(
            _percent(float(np.median(values))),
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    n = fractions.shape[1]
    ax.annotate(
        "median",
        (1.0, -0.75),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=6.5,
        color="#595959",
    )
    ax.set_yticks(range(n), [wrap(readable(s), 20) for s in fractions.columns])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(n - 0.45, -0.65)
    _fraction_axis(ax, scale)
    ax.set_xlabel(f"% of variance ({len(fractions):,} gene{'s' * (len(fractions) != 1)})", fontsize=FONTSIZE)


def _density(values: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kernel density of fractions, reflected at 0 and 1 so that it does not leak out of the range.

    Values are binned first, so it takes the same time for any number of genes. Bandwidth: Silverman's rule
    (1986, eq. 3.31) with the interquartile range, at least one step of the grid.
    """
    spread = min(np.std(values), np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.34)
    step = grid[1] - grid[0]
    bandwidth = max(0.9 * spread * len(values) ** -0.2, step)
    counts = np.histogram(values, bins=np.append(grid - step / 2, grid[-1] + step / 2))[0].astype(float)
    apart = np.subtract.outer(grid, grid)
    kernel = sum(np.exp(-0.5 * (d / bandwidth) ** 2) for d in (apart, np.add.outer(grid, grid)))
    kernel += np.exp(-0.5 * ((2 - np.add.outer(grid, grid)) / bandwidth) ** 2)
    return kernel @ counts


def _box(ax: Axes, values: NDArray[np.float64], place: int) -> None:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    reach = 1.5 * (high - low)
    whiskers = values[values >= low - reach].min(), values[values <= high + reach].max()
    ax.plot(whiskers, [place, place], color="black", linewidth=0.6, zorder=3, solid_capstyle="butt")
    ax.add_patch(
        Rectangle(
            (low, place - _BOX),
            high - low,
            2 * _BOX,
            facecolor="white",
            edgecolor="black",
            linewidth=0.6,
            zorder=4,
        )
    )
    ax.plot([middle, middle], [place - _BOX, place + _BOX], color="black", linewidth=1.2, zorder=5)


def _bars(
    ax: Axes,
    fractions: pd.DataFrame,
    names: NDArray,
    status: NDArray,
    colours: Mapping[str, str],
    title: str | None,
) -> int:
    """Draw the bars, and the legend above them; returns the number of its rows."""
    places = np.arange(len(fractions))
    left = np.zeros(len(fractions))
    values = fractions.fillna(0.0)
    for source in fractions.columns:
        ax.barh(
            places,
            values[source],
            left=left,
            height=0.8,
            color=colours[source],
            linewidth=0,
            label=source,
        )
        left += values[source].to_numpy()
    for place in np.flatnonzero(fractions.isna().any(axis=1)):
        ax.text(0.01, place, f"not fitted: {status[place]}", va="center", fontsize=6.5, color="#595959")
    ax.set_yticks(places, names, fontstyle="italic", parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(fractions) - 0.5, -0.5)
    _fraction_axis(ax, "linear")
    ax.set_xlabel("% of variance", fontsize=FONTSIZE)
    handles = [Patch(facecolor=colours[s], linewidth=0) for s in fractions.columns]
    labels = [readable(s) for s in fractions.columns]
    return legend_above(ax, handles, labels, title, handlelength=0.9, handleheight=0.9)


def _fraction_axis(ax: Axes, scale: str) -> None:
    if scale == "sqrt":
        # autoscaling looks a little below 0
        ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ax.set_xticks(_TICKS[scale], [f"{100 * tick:g}" for tick in _TICKS[scale]])
    ax.set_xlim(0, 1)


def _percent(fraction: float) -> str:
    percent = 100 * fraction
    if percent >= 9.95:
        return f"{percent:.0f}%"
    if percent >= 0.095:
        return f"{percent:.1f}%"
    return "<0.1%" if percent > 0 else "0%"
