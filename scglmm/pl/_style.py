"""What all figures share: colours, sizes for one column of a journal, and scanpy's way of returning them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import matplotlib as mpl
import numpy as np
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import is_color_like, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogFormatterMathtext, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray
from scanpy import settings

from scglmm.results.names import storable

COLUMN_WIDTH = 3.5
"""Width of one column of a journal, in inches."""

FONTSIZE = 8.0
"""Size of axis labels and titles, in points."""

OKABE_ITO = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "vermillion": "#D55E00",
    "yellow": "#F0E442",
}
"""Colours that the colour-blind can tell apart (Okabe & Ito 2008, https://jfly.uni-koeln.de/color/)."""

GREY_POINT = "#A6A6A6"
GREY_LINE = "#595959"
GREYS = {"CountNoise": "#595959", "Residuals": "#D4D4D4"}
"""Tones of the sources of variance that are not of interest, dark and light: without green vision the green and the
purple above look like the greys between them."""

STATUS_COLOURS = {
    "ok": OKABE_ITO["blue"],
    "singular": OKABE_ITO["orange"],
    "poisson_limit": OKABE_ITO["green"],
    "zi_boundary": OKABE_ITO["sky"],
    "separated": OKABE_ITO["vermillion"],
    "not_converged": OKABE_ITO["purple"],
    "too_few_counts": "#595959",
    "not_selected": "#D4D4D4",
}
"""Colour of every status of a gene; those that were not fitted are grey."""

_RC = {
    "font.size": FONTSIZE,
    "axes.labelsize": FONTSIZE,
    "axes.titlesize": FONTSIZE,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.title_fontsize": 7.0,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "mathtext.default": "regular",
}


@contextmanager
def journal_style() -> Iterator[None]:
    """Set type and line sizes for one column of a journal, whatever the user's settings."""
    with mpl.rc_context(_RC):
        yield


def axes_for(ax: Axes | None, figsize: tuple[float, float]) -> tuple[Figure, Axes]:
    """Axes to draw on: the user's, or those of a new figure of the given size in inches."""
    if ax is not None:
        ax.tick_params(labelsize=_RC["xtick.labelsize"])
        return ax.get_figure(root=True), ax
    fig, ax = plt.subplots(figsize=figsize, layout="constrained")
    return fig, ax


def finish(fig: Figure, ax: Axes, *, show: bool | None, return_fig: bool) -> Figure | Axes | None:
    """Return what scanpy's plots return: the figure, nothing (after showing it), or the axes."""
    if return_fig:
        return fig
    if settings.autoshow if show is None else show:
        plt.show()
        return None
    return ax


def check_level(level: float) -> None:
    """Check the coverage of an interval.

    Raises
    ------
    ValueError
        It is not between 0 and 1.
    """
    if not 0 < level < 1:
        msg = f"`level` must be between 0 and 1, not {level!r}."
        raise ValueError(msg)


def open_frame(ax: Axes) -> None:
    """Leave only the left and the bottom line of the frame."""
    ax.spines[["top", "right"]].set_visible(False)


def wrap(name: str, width: int) -> str:
    """Break a name into lines of at most `width` characters, after ":", "," or a space where there is one."""
    lines = [""]
    for part in re.split(r"(?<=[:, ])", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def log_limits(values: NDArray[np.float64], margin: float = 0.04) -> tuple[float, float]:
    """Limits of a logarithmic axis that leave a margin around positive values."""
    values = values[np.isfinite(values) & (values > 0)]
    low, high = (values.min(), values.max()) if values.size else (0.1, 1.0)
    factor = max(high / low, 10.0) ** margin
    return float(low / factor), float(high * factor)


def label_places(ax: Axes, labels: Sequence[str], alternative: Sequence[str]) -> None:
    """Write names at 0, 1, ... below the axes; where they would overlap, the alternative ones, upwards."""
    ax.set_xticks(range(len(labels)), labels, parse_math=False)
    ax.tick_params(axis="x", length=0)
    ax.get_figure(root=True).draw_without_rendering()
    extents = [label.get_window_extent() for label in ax.get_xticklabels()]
    if any(a.padded(2).overlaps(b) for a, b in pairwise(extents)):
        ax.set_xticks(range(len(labels)), alternative, parse_math=False)
        ax.tick_params(axis="x", rotation=90)


def label_log_axis(axis: Axis, low: float, high: float) -> None:
    """Put plain numbers on a logarithmic axis: powers of ten, with 2 and 5 between them where there are few.

    Parameters
    ----------
    axis
        The axis.
    low, high
        Its limits.
    """
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [digit * 10.0**power for power in decades for digit in digits if low <= digit * 10.0**power <= high]
        if len(ticks) >= 3:
            break
    # powers of ten, but not more than six of them
    ticks = ticks[:: -(-len(ticks) // 6)] if len(digits) == 1 else ticks
    large = max(ticks, default=1.0) > 1e4 or min(ticks, default=1.0) < 1e-3
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(LogFormatterMathtext() if large and len(digits) == 1 else "{x:g}")
    axis.set_minor_locator(NullLocator() if len(digits) > 3 else LogLocator(10, subs=range(2, 10), numticks=99))
    axis.set_minor_formatter(NullFormatter())


def legend_above(
    ax: Axes, handles: Sequence[Artist], labels: Sequence[str], title: str | None = None, **spacing: float
) -> int:
    """Put a legend above the axes, in as few rows as its entries fit into, read row by row.

    Returns
    -------
    Number of rows.
    """
    ax.get_figure(root=True).draw_without_rendering()
    frame, tight = ax.get_window_extent(), ax.get_tightbbox()
    # over the axes, or else from the left end of the tick labels
    starts = (0.0, (tight.x0 - frame.x0) / frame.width)
    n = len(handles)
    if title is not None:
        # a bold character is about 0.65 of its size wide
        points = frame.width / ax.get_figure(root=True).dpi * 72
        title = wrap(title, max(int(points / (0.68 * FONTSIZE)), 10))
    for rows in range(1, n + 1):
        ncols = -(-n // rows)
        # matplotlib fills column by column
        order = [row * ncols + column for column in range(ncols) for row in range(rows)]
        order = [i for i in order if i < n]
        for start in starts:
            legend = ax.legend(
                [handles[i] for i in order],
                [labels[i] for i in order],
                title=title,
                title_fontproperties={"size": FONTSIZE, "weight": "bold"},
                loc="lower left",
                bbox_to_anchor=(start, 1.0),
                ncols=ncols,
                alignment="left",
                frameon=False,
                borderaxespad=0.3,
                borderpad=0.0,
                **{"handletextpad": 0.4, "columnspacing": 1.0} | spacing,
            )
            # type is a little wider at some resolutions than at others
            if legend.get_window_extent().width <= 0.97 * frame.width * (1 - start):
                return rows
    return n


def source_colours(sources: Sequence[str], palette: str | Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Colour of every source of variance: Okabe and Ito's, and greys for `CountNoise` and `Residuals`.

    Parameters
    ----------
    sources
        Names of the sources.
    palette
        As in :func:`colours_of`; a list is for the sources that are not grey.

    Raises
    ------
    ValueError
        As in :func:`colours_of`.
    """
    named = GREYS | dict(palette) if isinstance(palette, Mapping) else GREYS
    coloured = [source for source in sources if source not in named]
    return colours_of(sources, dict(named) | colours_of(coloured, None if isinstance(palette, Mapping) else palette))


def category_colours(
    adata: AnnData, column: str | None, levels: Sequence[str], palette: str | Sequence[str] | Mapping[str, str] | None
) -> dict[str, str]:
    """Colour of every level of an obs column: the palette's, scanpy's ``adata.uns["{column}_colors"]``, or ours.

    Raises
    ------
    ValueError
        As in :func:`colours_of`.
    """
    stored = adata.uns.get(f"{column}_colors")
    if palette is None and stored is not None and column in adata.obs and hasattr(adata.obs[column], "cat"):
        known = dict(zip((storable(c) for c in adata.obs[column].cat.categories), map(str, stored), strict=False))
        if all(is_color_like(known.get(storable(level))) for level in levels):
            palette = {level: known[storable(level)] for level in levels}
    return colours_of(levels, palette)


def colours_of(names: Sequence[str], palette: str | Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Colour of every name.

    Parameters
    ----------
    names
        What needs a colour.
    palette
        Colours of some by name, a list of colours, or the name of a colormap. The others get Okabe and Ito's.

    Raises
    ------
    ValueError
        The palette is too short, or holds something that is not a colour.
    """
    named = dict(palette) if isinstance(palette, Mapping) else {}
    others = [name for name in names if name not in named]
    if palette is None or isinstance(palette, Mapping):
        base = list(OKABE_ITO.values())
        # lighter rounds of the same colours where there are more names than colours
        colours = [_lighter(base[i % len(base)], i // len(base)) for i in range(len(others))]
    elif isinstance(palette, str):
        if palette not in mpl.colormaps:
            msg = f"`palette` {palette!r} is not the name of a colormap."
            raise ValueError(msg)
        colormap = mpl.colormaps[palette]
        steps = range(len(others))
        colours = [to_hex(colormap(i if colormap.N < 64 else i / max(len(others) - 1, 1))) for i in steps]
    else:
        colours = list(palette)
        if len(colours) < len(others):
            msg = f"`palette` has {len(colours)} colours for {len(others)} names: {', '.join(map(str, others))}."
            raise ValueError(msg)
    out = dict(zip(others, colours, strict=False)) | named
    for name in names:
        if not is_color_like(out[name]):
            msg = f"`palette` gives {name!r} the colour {out[name]!r}, which is not a colour."
            raise ValueError(msg)
    return {name: to_hex(out[name]) for name in names}


def _lighter(colour: str, rounds: int) -> str:
    keep = 0.55**rounds
    return to_hex([1 - keep * (1 - channel) for channel in to_rgb(colour)])
