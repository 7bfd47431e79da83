"""Placing the names of points so that they hide neither each other nor the points.

Every name has the same set of positions around its point, each with a cost of its own (points that it would
cover, its distance, points that it could be mistaken to name) and a cost for every pair of positions of two
names (overlaps, connecting lines through names). The sum is lowered by moving one name at a time, from
several starts. Deterministic. A name that cannot be placed without overlap is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from scglmm.pl._style import GREY_LINE

# lengths in points (1/72 inch)
_GAPS = (1.0, 4.0, 8.0, 12.0, 17.0, 23.0, 30.0, 38.0, 48.0, 60.0, 75.0, 95.0, 120.0)
_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_PAD = 1.0
_CONNECT_FROM = 2.6
_KEEP = 90
"""Number of positions of a name that are considered, the best on their own."""

# costs; a length costs 0.25 per point
_COVERS_NAMED, _AMBIGUOUS, _DIAGONAL, _INWARD = 12.0, 1.2, 0.8, 0.8
_CROSSES, _OVERLAPS = 15.0, 1e4
_STARTS, _ROUNDS = 12, 20


@dataclass
class _Label:
    """A name, and the positions it can take (centres, in pixels) with what they cost on their own."""

    anchor: NDArray
    half: NDArray
    centres: NDArray
    distance: NDArray
    cost: NDArray

    @property
    def low(self) -> NDArray:
        return self.centres - self.half

    @property
    def high(self) -> NDArray:
        return self.centres + self.half

    @property
    def reach(self) -> tuple[NDArray, NDArray]:
        return np.minimum(self.low.min(axis=0), self.anchor), np.maximum(self.high.max(axis=0), self.anchor)


class PointLabels(Artist):
    """Names beside points, placed again whenever the size or the limits of the axes have changed.

    A layout engine decides on the size of the axes when the figure is drawn, and a user may resize it or
    zoom, so this invisible artist is drawn before the names and moves them.

    Parameters
    ----------
    ax
        Axes to write on.
    xy
        Points to name, n × 2 in data coordinates.
    names
        Their names.
    avoid
        All points of the figure, m × 2 in data coordinates.
    weights
        How much each of them matters (m).
    radius
        Radius of a point, in points (1/72 inch).
    fontsize, style
        Size in points, and style of the type.

    Attributes
    ----------
    notes
        The names, as annotations; those that found no place are not visible.
    """

    def __init__(
        self,
        ax: Axes,
        xy: NDArray[np.float64],
        names: Sequence[str],
        avoid: NDArray[np.float64],
        weights: NDArray[np.float64] | float = 1.0,
        *,
        radius: float = 1.5,
        fontsize: float = 6.5,
        style: str = "italic",
    ) -> None:
        super().__init__()
        self._xy, self._avoid, self._radius = xy, avoid, radius
        self._weights = np.broadcast_to(weights, len(avoid))
        self._placed_for: tuple | None = None
        self.lines = [_line(ax, point, radius) for point in xy]
        self.notes = [_note(ax, name, point, fontsize, style) for point, name in zip(xy, names, strict=True)]
        self.set_zorder(-1)
        self.set_in_layout(False)
        ax.add_artist(self)

    @property
    def left_out(self) -> list[str]:
        """Names that found no place."""
        return [note.get_text() for note in self.notes if not note.get_visible()]

    def draw(self, renderer: RendererBase) -> None:
        """Place the names, unless nothing has changed since they were placed."""
        self.place(renderer)

    def place(self, renderer: RendererBase) -> None:
        """Place the names for the current size and limits of the axes."""
        ax = self.axes
        scale = ax.get_figure(root=True).dpi / 72
        frame = ax.get_window_extent()
        now = (round(frame.width / scale, 1), round(frame.height / scale, 1), ax.get_xlim(), ax.get_ylim())
        if now == self._placed_for or not self.notes:
            return
        self._placed_for = now
        anchors = ax.transData.transform(self._xy)
        points, weights = _merge(ax.transData.transform(self._avoid), self._weights, scale)

        labels: list[_Label] = []
        for note, anchor in zip(self.notes, anchors, strict=True):
            note.set_visible(True)
            extent = note.get_window_extent(renderer)
            half = np.array([extent.width, extent.height]) / 2 + _PAD * scale
            centres, distance = _candidates(anchor, half, self._radius, scale)
            cost = _own_cost(centres, distance, half, anchor, anchors, points, weights, self._radius, frame, scale)
            best = np.argsort(cost, kind="stable")[:_KEEP]
            labels.append(_Label(anchor, half, centres[best], distance[best], cost[best]))

        taken: list[tuple[NDArray, NDArray]] = []
        for note, line, label, choice in zip(self.notes, self.lines, labels, _choose(labels), strict=True):
            low, high = label.low[choice], label.high[choice]
            fits = np.isfinite(label.cost[choice]) and not any(
                np.all(low < other_high) and np.all(high > other_low) for other_low, other_high in taken
            )
            note.set_visible(fits)
            connected = fits and label.distance[choice] > (_CONNECT_FROM + self._radius) * scale
            line.set_visible(connected)
            if fits:
                taken.append((low, high))
                note.set_position(tuple((label.centres[choice] - label.anchor) / scale))
            if connected:
                inner = label.half - _PAD * scale
                nearest = np.clip(label.anchor, label.centres[choice] - inner, label.centres[choice] + inner)
                line.set_position(tuple((nearest - label.anchor) / scale))


def _note(ax: Axes, name: str, xy: NDArray, fontsize: float, style: str) -> Annotation:
    note = ax.annotate(
        name,
        tuple(xy),
        xytext=(0, 0),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=fontsize,
        fontstyle=style,
        zorder=7,
        path_effects=[patheffects.withStroke(linewidth=1.2, foreground="white", alpha=0.85)],
        annotation_clip=False,
        # gene names are never mathematics
        parse_math=False,
    )
    note.set_in_layout(False)
    return note


def _line(ax: Axes, xy: NDArray, radius: float) -> Annotation:
    """Thin line that connects a point with a name which is not right beside it."""
    line = ax.annotate(
        "",
        tuple(xy),
        xytext=(0, 0),
        textcoords="offset points",
        arrowprops={
            "arrowstyle": "-",
            "linewidth": 0.4,
            "color": GREY_LINE,
            "shrinkA": 0.0,
            "shrinkB": radius,
        },
        zorder=6,
        annotation_clip=False,
        visible=False,
    )
    line.set_in_layout(False)
    return line


def _merge(points: NDArray, weights: NDArray, cell: float) -> tuple[NDArray, NDArray]:
    """Merge points that fall into the same square of a grid: thousands lie on top of each other near p = 1."""
    squares, member = np.unique(np.floor(points / cell), axis=0, return_inverse=True)
    total = np.bincount(member.ravel(), weights=weights, minlength=len(squares))
    return (squares + 0.5) * cell, np.minimum(total, 2 * weights.max(initial=1.0))


def _candidates(anchor: NDArray, half: NDArray, radius: float, scale: float) -> tuple[NDArray, NDArray]:
    """Centres of the boxes that can carry a name, and how far each box is from the point (pixels)."""
    direction = np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)])
    gaps = (np.array(_GAPS) + radius) * scale
    # the box starts where the circle of radius `gap` around the point ends in that direction
    offsets = direction[None] * gaps[:, None, None] + np.clip(direction * 1.6, -1, 1)[None] * half
    centres = (anchor + offsets).reshape(-1, 2)
    nearest = np.clip(anchor, centres - half, centres + half)
    return centres, np.hypot(*(nearest - anchor).T)


def _own_cost(
    centres: NDArray,
    distance: NDArray,
    half: NDArray,
    anchor: NDArray,
    anchors: NDArray,
    points: NDArray,
    weights: NDArray,
    radius: float,
    frame: Bbox,
    scale: float,
) -> NDArray:
    """Cost of every position, whatever the other names do; infinite outside the axes."""
    low, high = centres - half, centres + half
    cost = 0.25 * distance / scale
    direction = np.tile(_ANGLES, len(_GAPS))
    cost += _DIAGONAL * np.abs(np.sin(2 * direction))
    # a name reads best on the side away from the middle of the figure
    outward = 1.0 if anchor[0] >= (frame.x0 + frame.x1) / 2 else -1.0
    cost -= _INWARD * outward * np.cos(direction)

    reach = 2 * half + (_GAPS[-1] + 10) * scale
    near = np.all(np.abs(points - anchor) < reach, axis=1)
    away = _distances(low, high, points[near])
    cost += (away < radius * scale) @ weights[near]
    # points that are as close to the name as its own (which is one of them)
    closer = (away < distance[:, None] + scale) @ np.minimum(weights[near], 1.0)
    cost += _AMBIGUOUS * np.clip(closer - 1, 0, 4)
    cost += _COVERS_NAMED * (_distances(low, high, anchors) < radius * scale).sum(axis=1)
    outside = (low < [frame.x0, frame.y0]).any(axis=1) | (high > [frame.x1, frame.y1]).any(axis=1)
    return np.where(outside, np.inf, cost)


def _distances(low: NDArray, high: NDArray, points: NDArray) -> NDArray:
    """Distance of every point from every box, boxes × points; 0 inside."""
    away = np.maximum(np.maximum(low[:, None] - points, points - high[:, None]), 0)
    return np.hypot(away[..., 0], away[..., 1])


def _choose(labels: list[_Label]) -> list[int]:
    """Position of every name: coordinate descent on the total cost from several starts, the best end."""
    n = len(labels)
    shared = [[np.zeros((1, 1), dtype=np.float32)] * n for _ in range(n)]
    for i in range(n):
        for j in range(i):
            shared[i][j] = _pair_cost(labels[i], labels[j])
            shared[j][i] = shared[i][j].T

    def cost_of(i: int, choices: list[int]) -> NDArray:
        others = (shared[i][j][:, choices[j]] for j in range(n) if j != i and choices[j] >= 0)
        return sum(others, start=labels[i].cost)

    best: list[int] = []
    lowest = np.inf
    rng = np.random.default_rng(0)
    for start in range(_STARTS if n > 1 else 1):
        order = np.arange(n) if start == 0 else rng.permutation(n)
        choices = [-1] * n
        for _ in range(_ROUNDS):
            before = list(choices)
            for i in order:
                choices[i] = int(np.argmin(cost_of(i, choices)))
            if before == choices:
                break
        # a shared cost counts once for each of the two names
        total = sum(float(labels[i].cost[choices[i]] + cost_of(i, choices)[choices[i]]) / 2 for i in range(n))
        if not best or total < lowest:
            best, lowest = choices, total
    return best


def _pair_cost(a: _Label, b: _Label) -> NDArray[np.float32]:
    """Cost of every pair of positions of two names."""
    if (a.reach[0] > b.reach[1]).any() or (b.reach[0] > a.reach[1]).any():
        return np.zeros((len(a.centres), len(b.centres)), dtype=np.float32)
    overlap = np.all(a.low[:, None] < b.high, axis=2) & np.all(a.high[:, None] > b.low, axis=2)
    crossing = _runs_through(a, b) | _runs_through(b, a).T | _lines_cross(a, b)
    return (_OVERLAPS * overlap + _CROSSES * crossing).astype(np.float32)


def _lines_cross(a: _Label, b: _Label) -> NDArray[np.bool_]:
    """Whether the lines to position i of `a` and to position j of `b` cross."""

    def side(start: NDArray, end: NDArray, point: NDArray) -> NDArray:
        along, to = end - start, point - start
        return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0] > 0

    ends_a, ends_b = a.centres[:, None], b.centres[None]
    return (side(a.anchor, ends_a, b.anchor) != side(a.anchor, ends_a, ends_b)) & (
        side(b.anchor, ends_b, a.anchor) != side(b.anchor, ends_b, ends_a)
    )


def _runs_through(a: _Label, b: _Label) -> NDArray[np.bool_]:
    """Whether the line to position i of `a` runs through position j of `b`.

    The line enters a box at the later of the two places where it enters the box's strips, and leaves at the earlier.
    """
    enters, leaves = 0.0, 1.0
    # one coordinate at a time: a third axis of length 2 takes five times as long
    for axis in (0, 1):
        along = a.centres[:, None, axis] - a.anchor[axis]
        # a line along the strip is within it all the way, or never
        along = np.where(np.abs(along) < 1e-9, 1e-9, along)
        first, second = (b.low[:, axis] - a.anchor[axis]) / along, (b.high[:, axis] - a.anchor[axis]) / along
        enters = np.maximum(enters, np.minimum(first, second))
        leaves = np.minimum(leaves, np.maximum(first, second))
    return np.asarray(enters < leaves)
