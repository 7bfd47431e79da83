"""Nodes where rows of the design differ within strata: along covariates of the cells as well as along the offset.

A covariate that differs in every cell (percent of mitochondrial counts, pseudotime) would make every cell a stratum.
Leave the columns that do so out of what defines strata, and look at them inside the strata that remain: where they are
affine functions of one or two numbers u of the cell, as `x`, `x:Dx` and the slopes of `(x|g)` all are of x, the linear
predictor of a cell of stratum s is

    t_i = o_i + const_s + slope_s'u_i

so the log-likelihood is a sum of smooth functions of (o, u), which products of Chebyshev nodes in each coordinate
interpolate. Every node of u becomes a row of the design with nodes of the offset, and the engine sees nothing new.

The error along u depends on how far the linear predictor moves over the range of u, half of which is
``reach = |slope| (max u - min u) / 2``. The nodes are placed for slopes up to a bound; whether those of a fit stay
below it is seen afterwards (`Limits`). Outlying cells would widen the range for all others: boxes are halved, and
cells kept as they are, wherever that is cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .nodes import Axes, Nodes, cell_weights, n_nodes, place_axis, reach_of, width_of

MOST_COORDINATES = 2
MOST_COLUMNS = 24  # varying columns that are looked at
CELLS_PER_STRATUM = 16  # a column that leaves fewer cells in a stratum than that on average is a covariate of the cells
ROW = 12.0  # cost of a row of the design, in nodes
AFFINE = 1e-9  # what columns may be off, relative to their largest value
LEAST_NODES = 3  # along a covariate: sums of squares of the design stay exact
SMALLEST = 32  # boxes with fewer cells are not halved,
WIDE = 1.0  # nor boxes whose widest side moves the linear predictor by less than this on either side of the middle


@dataclass(frozen=True)
class Variation:
    """How rows of the design vary within strata.

    Attributes
    ----------
    stratum, first
        (n,) stratum of every cell by the columns that do not vary, and (S,) one cell of each.
    varying
        Positions of the m columns that vary.
    coordinates
        (D, n) the numbers u of every cell, D at most 2; 0 where a stratum needs fewer.
    scale
        (D,) their standard deviations within strata.
    origin, slope
        (S, m), (S, m, D): varying columns are ``origin + slope @ u``.
    affine
        (S,) whether they are.
    """

    stratum: np.ndarray
    first: np.ndarray
    varying: np.ndarray
    coordinates: np.ndarray
    scale: np.ndarray
    origin: np.ndarray
    slope: np.ndarray
    affine: np.ndarray


def may_vary(stratum: np.ndarray) -> bool:
    """Whether the strata of a whole design leave few enough cells in each for `find_variation` to find anything."""
    return (int(stratum.max()) + 1) * CELLS_PER_STRATUM > stratum.size


def find_variation(codes: Sequence[np.ndarray], columns: Sequence[np.ndarray]) -> Variation | None:
    """Look for covariates of the cells in a design.

    Parameters
    ----------
    codes
        Levels of the grouping factors, each (n,): these always define strata.
    columns
        The numeric columns, each (n,): fixed effects, covariates of random effects.

    Returns
    -------
    None where there are none, where there are more than two, or where too few cells share the rest of the design.
    """
    if not columns:
        return None
    n = columns[0].size
    stratum = np.zeros(n, np.int64)
    for code in codes:
        stratum, _ = _refine(stratum, code)
    if (int(stratum.max()) + 1) * CELLS_PER_STRATUM > n:
        return None
    varying = []
    known = [(pd.factorize(column)[0], k) for k, column in enumerate(columns)]
    for code, k in sorted(known, key=lambda each: each[0].max()):
        finer, count = _refine(stratum, code)
        if count * CELLS_PER_STRATUM > n:
            varying.append(k)
        else:
            stratum = finer
    if not varying or len(varying) > MOST_COLUMNS:
        return None
    varying.sort()
    return _affine(stratum, np.stack([columns[k] for k in varying], axis=1), np.array(varying))


def _refine(stratum: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, int]:
    finer, pairs = pd.factorize(stratum * (int(code.max(initial=0)) + 1) + code)
    return finer.astype(np.int64), len(pairs)


def _affine(stratum: np.ndarray, C: np.ndarray, varying: np.ndarray) -> Variation | None:
    """Write the varying columns as functions of one or two of them, stratum by stratum."""
    n, m = C.shape
    order = np.argsort(stratum, kind="stable")
    cells = np.bincount(stratum)
    S = cells.size
    begin = np.concatenate([[0], np.cumsum(cells)[:-1]])
    first = order[begin]
    largest = np.abs(C).max(axis=0)
    mean = np.add.reduceat(C[order], begin) / cells[:, None]
    centred = C - mean[stratum]
    moments = np.empty((S, m, m))
    for a in range(m):
        for b in range(a + 1):
            moments[:, a, b] = moments[:, b, a] = np.bincount(stratum, centred[:, a] * centred[:, b], S)
    # Columns in turn: one that is no function of those before it is a coordinate.
    noise = cells[:, None] * (AFFINE * largest) ** 2
    left, pivots, rank = moments.copy(), np.full((S, MOST_COORDINATES), -1), np.zeros(S, np.int64)
    for j in range(m):
        rest = left[:, j, j]
        new = np.flatnonzero((rest > noise[:, j]) & (rest > 1e-12 * moments[:, j, j]))
        kept = new[rank[new] < MOST_COORDINATES]
        pivots[kept, rank[kept]] = j
        rank[new] += 1
        left[new] -= left[new, :, j, None] * left[new, None, j, :] / left[new, j, j][:, None, None]
    affine = rank <= MOST_COORDINATES
    D = int(rank[affine].max(initial=0))
    if D == 0:
        return None

    coordinates, slope = np.zeros((D, n)), np.zeros((S, m, D))
    for d in range(D):
        with_d = pivots[:, d] >= 0
        coordinates[d] = np.where(with_d[stratum], C[np.arange(n), pivots[stratum, d]], 0.0)
    for r in range(1, D + 1):
        at = np.flatnonzero(affine & (rank == r))
        if at.size:
            own = pivots[at, :r]
            inner = moments[at[:, None, None], own[:, :, None], own[:, None, :]]
            cross = moments[at[:, None], own, :]
            slope[at, :, :r] = np.linalg.solve(inner, cross).transpose(0, 2, 1)
    # Rounding would spoil what is exactly 0 or 1, such as the slope of x:Dx in x.
    slope = np.where(np.abs(slope - np.round(slope)) < 1e-11, np.round(slope), slope)
    mean_u = np.stack([np.bincount(stratum, u, S) / cells for u in coordinates], axis=1)
    origin = mean - np.einsum("smd,sd->sm", slope, mean_u)
    origin = np.where(np.abs(origin) < 1e-11 * largest, 0.0, origin)
    constant = (slope == 0).all(axis=2)
    origin = np.where(constant, C[first], origin)
    error = np.abs(C - origin[stratum] - np.einsum("nmd,dn->nm", slope[stratum], coordinates))
    far = (error > AFFINE * largest).any(axis=1)
    affine &= np.bincount(stratum, far, S) == 0
    scale = np.empty(D)
    for d in range(D):
        own = (pivots[:, d] >= 0) & affine
        spread = moments[np.flatnonzero(own), pivots[own, d], pivots[own, d]].sum()
        scale[d] = np.sqrt(spread / max(1, cells[own].sum()))
    return Variation(stratum, first, varying, coordinates, np.where(scale > 0, scale, 1.0), origin, slope, affine)


@dataclass(frozen=True)
class Limits:
    """How far the linear predictor may move over the boxes of the nodes.

    Attributes
    ----------
    first, last
        First and last row along each side of each box.
    limit
        Largest difference of the linear predictor between them.
    """

    first: np.ndarray
    last: np.ndarray
    limit: np.ndarray

    def hold(self, eta: np.ndarray) -> bool:
        """Whether linear predictors (R,) keep the tolerance."""
        return bool((np.abs(eta[self.last] - eta[self.first]) <= self.limit).all())


@dataclass(frozen=True)
class Tensor:
    """Nodes along the offset and along covariates of the cells.

    Attributes
    ----------
    nodes
        The nodes. Their strata are boxes of those of the variation.
    cell
        (R,) for each row of the design a cell with which it shares the columns that do not vary.
    stratum
        (R,) stratum of the variation for rows that are nodes; -1 for rows that are cells.
    coordinates
        (D, R) their numbers u.
    limits
        What the nodes were placed for.
    """

    variation: Variation
    nodes: Nodes
    cell: np.ndarray
    stratum: np.ndarray
    coordinates: np.ndarray
    limits: Limits

    @property
    def cost(self) -> float:
        """Cost of a fit in nodes."""
        return cost(self.nodes)

    def rows(self, column: np.ndarray, position: int) -> np.ndarray:
        """Values of a column on the rows; `position` is that among the columns of `find_variation`."""
        values = column[self.cell].astype(np.float64)
        where = np.flatnonzero(self.variation.varying == position)
        if where.size:
            at = self.stratum >= 0
            s, j = self.stratum[at], int(where[0])
            slope = self.variation.slope[s, j]
            values[at] = self.variation.origin[s, j] + np.einsum("rd,dr->r", slope, self.coordinates[:, at])
        return values


def cost(nodes: Nodes) -> float:
    """Cost of a fit in nodes."""
    return ROW * nodes.n_strata + nodes.size


@dataclass(frozen=True)
class _Box:
    """Some cells of a stratum, and how many nodes they get along each coordinate; None where they are their nodes."""

    stratum: int
    cells: np.ndarray
    low: np.ndarray
    high: np.ndarray
    number: np.ndarray | None


def make_tensor(
    variation: Variation, offset: np.ndarray, tolerance: float, bound: float, singularity: float = np.pi
) -> Tensor:
    """Choose and place nodes.

    Parameters
    ----------
    variation
        From `find_variation`.
    offset
        (n,) offset of every cell, natural log.
    tolerance
        Relative error of the interpolation.
    bound
        Largest change of the linear predictor with one standard deviation (`Variation.scale`) of a covariate, natural
        log, for which the tolerance holds.
    singularity
        Along the offset, see `scglmm.compression.nodes.n_nodes`.
    """
    coordinates = np.ascontiguousarray(np.vstack([offset, variation.coordinates]), np.float64)
    # The error along one coordinate comes in with the Lebesgue constants of the others, about 3 each.
    each = tolerance / 4**variation.scale.size
    chooser = _Chooser(coordinates, np.concatenate([[1.0], bound / variation.scale]), each, singularity)
    order = np.argsort(variation.stratum, kind="stable")
    boxes: list[_Box] = []
    for s, cells in enumerate(np.split(order, np.cumsum(np.bincount(variation.stratum))[:-1])):
        boxes += chooser.boxes(s, cells) if variation.affine[s] else [chooser.cells(s, cells)]
    return _place(variation, coordinates, boxes, each)


class _Chooser:
    """The cheapest boxes for the cells of a stratum."""

    def __init__(self, coordinates: np.ndarray, reach: np.ndarray, tolerance: float, singularity: float) -> None:
        self.coordinates, self.reach = coordinates, reach
        self.tolerance, self.singularity = tolerance, singularity

    def cells(self, s: int, cells: np.ndarray) -> _Box:
        """Keep cells as they are."""
        values = self.coordinates[:, cells]
        return _Box(s, cells, values.min(axis=1), values.max(axis=1), None)

    def boxes(self, s: int, cells: np.ndarray) -> list[_Box]:
        """Share the cells of a stratum out among boxes."""
        return self._best(s, cells)[1]

    def _best(self, s: int, cells: np.ndarray) -> tuple[float, list[_Box]]:
        values = self.coordinates[:, cells]
        low, high = values.min(axis=1), values.max(axis=1)
        half = self.reach * width_of(low, high) / 2
        number = n_nodes(half, self.tolerance)
        number[1:] = np.where(half[1:] > 0, np.maximum(number[1:], LEAST_NODES), 1)
        number[0] = n_nodes(half[:1], self.tolerance, self.singularity)[0]
        as_nodes = float(number[1:].prod() * (ROW + number[0]))
        as_cells = cells.size * (ROW + 1.0)
        if as_nodes < as_cells:
            best, boxes = as_nodes, [_Box(s, cells, low, high, number)]
        else:
            best, boxes = as_cells, [_Box(s, cells, low, high, None)]
        if np.isinf(self.singularity):
            half[0] = 0.0
        d = int(half.argmax())
        if cells.size >= SMALLEST and half[d] > WIDE:
            above = values[d] > 0.5 * (low[d] + high[d])
            parts = [self._best(s, cells[~above]), self._best(s, cells[above])]
            if parts[0][0] + parts[1][0] < best:
                best, boxes = parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
        return best, boxes


def _place(variation: Variation, coordinates: np.ndarray, boxes: list[_Box], tolerance: float) -> Tensor:
    """Lay the nodes of all boxes out, one after another."""
    n_axes, n = coordinates.shape
    exact = np.array([box.number is None for box in boxes])
    n_cells = np.array([box.cells.size for box in boxes])
    number = np.array([np.zeros(n_axes, np.int64) if box.number is None else box.number for box in boxes])
    blocks = _starts(np.where(exact, n_cells, number.prod(axis=1)))
    order = np.concatenate([box.cells for box in boxes])
    stratum = np.empty(n, np.int64)
    stratum[order] = np.repeat(np.arange(exact.size), n_cells)

    starts = _starts(number.ravel())
    low, high = np.array([box.low for box in boxes]).ravel(), np.array([box.high for box in boxes]).ravel()
    position, weight = place_axis(starts, low, high)
    at = np.column_stack([starts[:-1].reshape(-1, n_axes), starts[1:].reshape(-1, n_axes)[:, -1]])
    axes = Axes(np.ascontiguousarray(at), position, weight, coordinates)

    tau, per_row, cell, of_stratum, u = [], [], [], [], []
    first, last, limit = [], [], []
    row = 0
    for b, box in enumerate(boxes):
        if box.number is None:
            n_rows = box.cells.size
            tau.append(coordinates[0, box.cells])
            per_row.append(np.ones(n_rows, np.int64))
            cell.append(box.cells)
            of_stratum.append(np.full(n_rows, -1))
            u.append(coordinates[1:, box.cells])
        else:
            sides = [position[at[b, d] : at[b, d + 1]] for d in range(n_axes)]
            n_rows = int(box.number[1:].prod())
            tau.append(np.tile(sides[0], n_rows))
            per_row.append(np.full(n_rows, box.number[0]))
            cell.append(np.full(n_rows, variation.first[box.stratum]))
            of_stratum.append(np.full(n_rows, box.stratum))
            # the first covariate runs fastest
            u.append(np.stack([side.ravel() for side in np.meshgrid(*sides[:0:-1], indexing="ij")][::-1]))
            stride = 1
            for k in box.number[1:]:
                if k > 1:
                    first.append(row)
                    last.append(row + (k - 1) * stride)
                    # nodes end before the box does
                    limit.append(2 * np.cos(np.pi / (2 * k)) * reach_of(k, tolerance))
                stride *= k
        row += n_rows
    start, cell_start = _starts(np.concatenate(per_row)), _starts(n_cells)
    weights = cell_weights(order, cell_start, blocks, exact, axes)
    nodes = Nodes(start, np.concatenate(tau), weights, blocks, stratum, order, cell_start, exact, axes)
    limits = Limits(np.array(first, np.int64), np.array(last, np.int64), np.array(limit))
    return Tensor(variation, nodes, np.concatenate(cell), np.concatenate(of_stratum), np.concatenate(u, axis=1), limits)


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
