"""A point per gene, coloured by what the test says: what the volcano and the MA plot have in common."""

from __future__ import annotations

import importlib.util

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scanpy import logging as logg

from scglmm.pl._labels import PointLabels
from scglmm.pl._style import GREY_LINE, GREY_POINT, OKABE_ITO, legend_above

CLASSES = ("not significant", "down", "up")
COLOURS = {"not significant": GREY_POINT, "down": OKABE_ITO["blue"], "up": OKABE_ITO["vermillion"]}
CUT_OFF_STYLE = {"color": GREY_LINE, "linewidth": 0.6, "zorder": 1}
_MARKERS = {"inside": "o", "top": "^", "bottom": "v", "left": "<", "right": ">"}


def classify(log2_fc: NDArray[np.float64], significant: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Class of every gene."""
    return np.where(significant, np.where(log2_fc > 0, "up", "down"), "not significant")


def reach(size: NDArray[np.float64], significant: NDArray[np.bool_]) -> float:
    """Limit of the absolute fold change: all genes, unless a few that mean nothing would take most of the room."""
    largest = float(size.max())
    enough = max(float(size[significant].max(initial=0.0)) * 1.1, float(np.quantile(size, 0.995)))
    return max(largest if largest < 1.3 * enough else enough, 0.1)


def point_size(n: int, size: float | None) -> float:
    """Area of a point in square points: as given, or smaller for more genes."""
    return float(np.clip(6000 / n, 3.5, 10.0)) if size is None else size


def draw_points(
    ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], kind: NDArray, place: NDArray, size: float
) -> None:
    """Draw the genes of all classes; those at a limit (`place`) are triangles that point outwards."""
    for order, name in enumerate(CLASSES):
        for where, marker in _MARKERS.items():
            rows = (kind == name) & (place == where)
            if not rows.any():
                continue
            ax.scatter(
                x[rows],
                y[rows],
                s=size if where == "inside" else 2.2 * size + 6,
                c=COLOURS[name],
                marker=marker,
                alpha=0.55 if name == "not significant" else 0.85,
                linewidths=0,
                # points, not their 10,000 outlines, in a PDF
                rasterized=len(x) > 3000,
                clip_on=False,
                zorder=2 + order,
                label=f"{name}, {where}",
            )


def class_legend(ax: Axes, kind: NDArray, title: str, extra: tuple[Line2D, str] | None = None) -> None:
    """Numbers of genes by class, above the axes."""
    names = {"down": "down", "up": "up", "not significant": "n.s."}
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=3.5, markeredgewidth=0, color=COLOURS[name])
        for name in names
    ]
    labels = [f"{short} {(kind == name).sum():,}" for name, short in names.items()]
    if extra is not None:
        handles.append(extra[0])
        labels.append(extra[1])
    legend_above(ax, handles, labels, title or None, handlelength=1.4, handletextpad=0.3)


def name_points(
    ax: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    chosen: NDArray[np.intp],
    names: list[str],
    significant: NDArray[np.bool_],
    size: float,
    *,
    adjust_text: bool,
) -> None:
    """Write the names of some genes beside their points, and say which found no room."""
    xy = np.column_stack([x, y])
    if adjust_text:
        _name_with_adjust_text(ax, xy, chosen, names)
        return
    weights = np.where(significant, 4.0, 0.8)
    written = PointLabels(ax, xy[chosen], names, xy, weights, radius=np.sqrt(size / np.pi))
    ax.get_figure(root=True).draw_without_rendering()
    if left_out := written.left_out:
        logg.warning(f"No room for the names of {', '.join(left_out)}: enlarge the figure or name fewer genes.")


def check_adjust_text(adjust_text: bool) -> None:
    """Check that adjustText is there if it is wanted.

    Raises
    ------
    ImportError
        It is not; the message says how to install it.
    """
    if adjust_text and importlib.util.find_spec("adjustText") is None:
        msg = "`adjust_text=True` needs the package adjustText: install it with `pip install 'scglmm[labels]'`."
        raise ImportError(msg)


def _name_with_adjust_text(ax: Axes, xy: NDArray[np.float64], chosen: NDArray[np.intp], names: list[str]) -> None:
    """Place names with adjustText, which moves them once and for all: the layout has to be final."""
    from adjustText import adjust_text

    ax.get_figure(root=True).draw_without_rendering()
    halo = [patheffects.withStroke(linewidth=1.2, foreground="white", alpha=0.85)]
    texts = [
        ax.text(*xy[row], name, fontsize=6.5, fontstyle="italic", parse_math=False, zorder=7, path_effects=halo)
        for row, name in zip(chosen, names, strict=True)
    ]
    for text in texts:
        text.set_in_layout(False)
    if texts:
        lines = {"arrowstyle": "-", "linewidth": 0.4, "color": GREY_LINE}
        # among thousands of points names would rather overlap each other; as many steps as it takes on any machine
        named = xy[chosen]
        adjust_text(texts, x=named[:, 0], y=named[:, 1], ax=ax, arrowprops=lines, expand=(1.1, 1.4), iter_lim=500)
