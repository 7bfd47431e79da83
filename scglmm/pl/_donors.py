"""`scglmm.pl.donors`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from scanpy import logging as logg
from scipy import stats

from scglmm.formula.columns import in_memory
from scglmm.pl._docs import document
from scglmm.pl._donor_rates import (
    Estimate,
    choose_donor,
    choose_x,
    contrasts_of,
    donor_rates,
    exposure_scale,
    interval,
    is_number,
    levels_of,
    stored_estimate,
)
from scglmm.pl._genes import find_gene
from scglmm.pl._refit import fitted_cells, without_donors
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
    label_log_axis,
    label_places,
    legend_above,
    open_frame,
    wrap,
)
from scglmm.results import StoredResult, read_result
from scglmm.results.names import readable, storable

_AREA = (5.0, 60.0)
"""Area of the points with the fewest and the most cells, in square points."""
_SPREAD = 0.3
_MARGIN, _TEXT, _LEGEND = 6.0, 24.0, 34.0
"""Heights in points: of the margin above the points, of what is written there, of the legend above the axes."""
_NAIVE = OKABE_ITO["purple"]


@document
def donors(
    adata: AnnData,
    gene: str,
    *,
    x: str | None = None,
    key: str = "nbmm",
    group: str | None = None,
    donor: str | None = None,
    level: float = 0.95,
    compare_cells: bool = False,
    exposure: float | None = None,
    palette: str | Sequence[str] | Mapping[str, str] | None = None,
    gene_symbols: str | None = None,
    title: str | None = None,
    figsize: tuple[float, float] = (COLUMN_WIDTH, 2.9),
    show: bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """One gene, a point per donor, and over the points what the model makes of them.

    A point is the count of a donor's cells over their exposure (the exponential of the offset), on a logarithmic axis;
    its area grows with the number of cells. Donors without a count of the gene are triangles at the bottom, and donors
    seen in several conditions are connected. The diamond is the estimate for a donor whose random effects are 0,
    averaged over the covariates of all donors, with its interval; for a numeric `x` it is a line. The interval says how
    well the mean of *donors* is known: with `compare_cells` the one beside it says what comes out where cells count as
    replicates.

    Estimates are those stored in `adata`, the interval has the smallest degrees of freedom of the coefficients that
    take part. The donors' counts are read from where the fit had them; nothing is stored.

    Parameters
    ----------
    {adata}
    gene
        The gene.
    x
        Column of `adata.obs` in the fixed part of the formula: a factor, or a number. By default the first factor.
    {key}
    {group}
    donor
        Column of `adata.obs` that makes a point. By default the first grouping factor of the formula.
    level
        Coverage of the interval.
    compare_cells
        Also draw the interval of the same model without random effects.
    exposure
        Exposure that counts are scaled to. By default 10,000 where exposures are library sizes (median of 50 or
        more), otherwise the median.
    palette
        Colours by level of `x`, a list of colours, or the name of a colormap. By default those that scanpy keeps in
        ``adata.uns["{x}_colors"]``, otherwise Okabe and Ito's.
    gene_symbols
        Column of `adata.var` in which `gene` is looked up as well.
    {figure}

    Returns
    -------
    {returns}

    Raises
    ------
    KeyError
        No such result, group, gene, or column, or the model is no longer in `adata.uns`.
    ValueError
        `group` is needed and was not given, there is no `x` or `donor` to choose, or `level`, `exposure` or `palette`
        are not valid.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Age + (1|SubID)")
    >>> ax = scglmm.pl.donors(adata, "PTPRG", show=False)
    >>> ax = scglmm.pl.donors(adata, "PTPRG", x="Age", show=False)
    """
    check_level(level)
    result = read_result(adata, key)
    group = result.only_group() if group is None else result.find_group(group)
    row, label = find_gene(adata, gene, gene_symbols)
    cells = fitted_cells(adata, result, group)
    x = choose_x(cells, x)
    unit = choose_donor(cells, adata, donor)
    obs = in_memory(adata.obs).iloc[cells.rows]
    numeric = is_number(obs[x])
    scale, y_label = exposure_scale(cells.offset, exposure)
    points = donor_rates(obs, x, unit, cells, row)
    levels = None if numeric else levels_of(obs[x])
    contrasts, at = contrasts_of(cells, obs, unit, x, levels)
    estimate = stored_estimate(result, cells.design.columns, group, row, contrasts, at, level)
    if estimate is None:
        status = result.column("fit", "status", group).astype(str).iloc[row]
        logg.warning(f"{label} has no estimate (status {status}): only its donors are drawn.")
    naive = None
    if compare_cells and (found := without_donors(cells, row, contrasts)) is not None:
        naive = interval(*found, at, level)
    colours = {None: OKABE_ITO["blue"]} if numeric else category_colours(adata, x, levels, palette)

    with journal_style():
        fig, ax = axes_for(ax, figsize)
        open_frame(ax)
        ax.set_yscale("log")
        fig.draw_without_rendering()
        room = _MARGIN if numeric else _TEXT
        zero = _limits(ax, scale * points["rate"].to_numpy(), estimate, scale, room)
        places = points["x"].to_numpy(dtype=float) if numeric else _places(points, levels)
        kinds = [None] * len(points) if numeric else list(points["x"])
        _draw_points(ax, points, places, scale, zero, kinds, colours, connect=not numeric)
        handles, names = _size_legend(points["n_cells"].to_numpy())
        if (points["rate"] == 0).any():
            handles.append(_zero_handle())
            names.append("no counts")
        draw = _draw_curve if numeric else _draw_estimates
        # right of the points, where many donors take more room
        right = 0.17 if numeric else max(0.17, 0.08 + np.max(places - np.round(places)))
        for found, colour, beside in ((naive, _NAIVE, right), (estimate, "black", 0.0)):
            if found is not None:
                handles.append(draw(ax, found, scale, colour, beside))
                names.append(f"{'estimate' if colour == 'black' else 'cells as replicates'}, {100 * level:g}%")
        if numeric:
            ax.set_xlabel(x, fontsize=FONTSIZE)
        else:
            ax.set_xlim(-0.6, len(levels) - 0.4)
            _name_levels(ax, points["x"], levels)
            if estimate is not None:
                _write_tests(ax, result, group, row, x, levels)
        ax.set_ylabel(y_label, fontsize=FONTSIZE)
        if title is None:
            title = label if group is None else f"{label}, {readable(group)}"
        legend_above(ax, handles, names, title or None, handlelength=1.2, columnspacing=0.8)
    return finish(fig, ax, show=show, return_fig=return_fig)


def _limits(ax: Axes, rates: np.ndarray, estimate: Estimate | None, scale: float, room: float) -> float:
    """Set the limits of the logarithmic axis, with some room (points) above; returns where 0 is drawn."""
    positive = rates[rates > 0]
    if not positive.size:
        positive = np.array([0.1, 1.0])
    low, high = positive.min(), positive.max()
    if estimate is not None:
        # an interval without an end must not take the room
        low = min(low, max(scale * np.exp(estimate.low.min()), low / 30))
        high = max(high, min(scale * np.exp(estimate.high.max()), high * 30))
    step = max(high / low, 3.0) ** 0.06
    zero = low / step**1.5
    bottom = (zero if (rates == 0).any() else low) / step
    # points of 1/72 inch: the axes without the legend
    height = ax.get_window_extent().height / ax.get_figure(root=True).dpi * 72
    room = room / max(height - _LEGEND, 2 * _TEXT)
    ax.set_ylim(bottom, bottom * (high / bottom) ** (1 / (1 - room)))
    label_log_axis(ax.yaxis, *ax.get_ylim())
    return float(zero)


def _areas(n_cells: np.ndarray, most: float | None = None) -> np.ndarray:
    """Area of every point, proportional to its number of cells above a smallest one."""
    most = n_cells.max() if most is None else most
    return _AREA[0] + (_AREA[1] - _AREA[0]) * n_cells / most


def _places(points: pd.DataFrame, levels: list) -> np.ndarray:
    """Horizontal places: quasi-random within the width that the density of the donors gives them."""
    out = np.zeros(len(points))
    for place, value in enumerate(levels):
        rows = np.flatnonzero((points["x"] == value).to_numpy())
        y = np.log(np.maximum(points["rate"].to_numpy()[rows], points.loc[points["rate"] > 0, "rate"].min() / 2))
        width = np.ones(len(rows))
        if len(rows) > 3 and np.ptp(y) > 0:
            density = stats.gaussian_kde(y)(y)
            width = density / density.max()
        spread = np.empty(len(rows))
        # neighbours in height lie far apart: the van der Corput sequence in their order
        spread[np.argsort(y, kind="stable")] = stats.qmc.Halton(1, scramble=False).random(len(rows) + 1)[1:, 0] - 0.5
        out[rows] = place + 2 * _SPREAD * width * spread * min(1.0, len(rows) / 12)
    return out


def _draw_points(
    ax: Axes,
    points: pd.DataFrame,
    places: np.ndarray,
    scale: float,
    zero: float,
    kinds: list,
    colours: dict,
    connect: bool,
) -> None:
    rates = points["rate"].to_numpy()
    y = np.where(rates > 0, scale * rates, zero)
    sizes = _areas(points["n_cells"].to_numpy())
    if connect:
        for _, rows in points.groupby("donor").indices.items():
            if len(rows) > 1:
                order = rows[np.argsort(places[rows])]
                ax.plot(places[order], y[order], color="#BFBFBF", linewidth=0.5, zorder=1)
    # large points first, so that none is hidden
    order = np.argsort(-sizes, kind="stable")
    for seen, marker in ((rates > 0, "o"), (rates == 0, "v")):
        rows = order[seen[order]]
        if rows.size:
            ax.scatter(
                places[rows],
                y[rows],
                s=sizes[rows],
                c=[colours[kinds[row]] for row in rows],
                marker=marker,
                alpha=0.55,
                edgecolors="white",
                linewidths=0.3,
                zorder=2,
                clip_on=False,
                label="donors" if marker == "o" else "no counts",
            )


def _draw_estimates(ax: Axes, found: Estimate, scale: float, colour: str, beside: float) -> Line2D:
    at, y = found.at + beside, scale * np.exp(found.mean)
    ends = scale * np.exp(np.stack([found.low, found.high]))
    halo = [withStroke(linewidth=3.0, foreground="white")]
    marker = {
        "marker": "D" if colour == "black" else "s",
        "markersize": 3.6 if colour == "black" else 2.6,
        "markeredgecolor": "white",
    }
    for place, low, high in zip(at, *ends, strict=True):
        ax.plot([place, place], [low, high], color=colour, linewidth=1.4, zorder=4, path_effects=halo)
    ax.plot(at, y, linestyle="", color=colour, markeredgewidth=0.5, zorder=5, label="estimate", **marker)
    return Line2D([], [], color=colour, linewidth=1.4, markeredgewidth=0.5, **marker)


def _draw_curve(ax: Axes, found: Estimate, scale: float, colour: str, beside: float) -> Line2D:
    del beside
    low, high = (np.clip(scale * np.exp(end), *ax.get_ylim()) for end in (found.low, found.high))
    ax.fill_between(found.at, low, high, color=colour, alpha=0.22, linewidth=0, zorder=3)
    style = {"color": colour, "linewidth": 1.3, "linestyle": "-" if colour == "black" else (0, (3, 1.5))}
    ax.plot(found.at, scale * np.exp(found.mean), zorder=4, label="estimate", **style)
    return Line2D([], [], **style)


def _size_legend(n_cells: np.ndarray) -> tuple[list[Line2D], list[str]]:
    """Make handles for two round numbers of cells."""
    most = float(n_cells.max())
    round_down = [m * 10**e for e in range(7) for m in (1, 2, 5) if m * 10**e <= most]
    large = round_down[-1]
    small = max((v for v in round_down if v <= large / 10), default=None)
    shown = [large] if small is None else [small, large]
    style = {"linestyle": "", "marker": "o", "color": GREY_LINE, "alpha": 0.6, "markeredgewidth": 0}
    # markersize is a diameter; the area of a scatter marker is its square
    handles = [Line2D([], [], markersize=float(np.sqrt(_areas(np.array(n), most))), **style) for n in shown]
    return handles, [f"{n:,} cell{'s' * (n != 1)}" for n in shown]


def _zero_handle() -> Line2D:
    return Line2D([], [], linestyle="", marker="v", color=GREY_LINE, alpha=0.6, markersize=4.0, markeredgewidth=0)


def _name_levels(ax: Axes, column: pd.Series, levels: list) -> None:
    n = column.value_counts()
    names = [(str(value), f"(n = {n.get(value, 0)})") for value in levels]
    label_places(
        ax,
        [f"{wrap(name, 14)}\n{number}" for name, number in names],
        [f"{wrap(name, 30)} {number}" for name, number in names],
    )


def _write_tests(ax: Axes, result: StoredResult, group: str | None, gene: int, x: str, levels: list) -> None:
    """Write what the tests of the levels of a treatment-coded factor say.

    Not where an interaction makes them partial, and not where there is no room.
    """
    names = [f"{storable(x)}[T.{storable(str(level))}]" for level in levels]
    own = [c for c in result.coefficients_in(group) if x in c]
    if not own or set(own) - set(names):
        return
    notes: dict[int, str] = {}
    for place, name in enumerate(names):
        if name not in own:
            notes[place] = "reference"
            continue
        test = result.gene_rows(name, group).iloc[gene]
        if np.isfinite(test["pval"]):
            notes[place] = f"log$_2$FC {test['log2_fc']:.2f}\nFDR {_number(test['padj'])}".replace("-", "−")
    written = [
        ax.annotate(text, (place, 1.0), xycoords=("data", "axes fraction"), **_NOTE) for place, text in notes.items()
    ]
    ax.get_figure(root=True).draw_without_rendering()
    extents = [note.get_window_extent() for note in written]
    if any(a.overlaps(b) for a, b in pairwise(extents)):
        for note in written:
            note.remove()


_NOTE = {
    "xytext": (0, -1),
    "textcoords": "offset points",
    "ha": "center",
    "va": "top",
    "fontsize": 6.5,
    "color": GREY_LINE,
}


def _number(p: float) -> str:
    if p >= 0.001:
        return f"{p:.2g}"
    if p < 1e-300:
        return "< 10$^{-300}$"
    exponent = int(np.floor(np.log10(p)))
    return f"{p / 10.0**exponent:.1f}×10$^{{{exponent}}}$"
