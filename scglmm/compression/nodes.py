"""Chebyshev nodes of every stratum's offset range, and the weights of the cells on them.

Inside a stratum the likelihood is a sum over cells of smooth functions of the offset o_i alone. Interpolated at K
Chebyshev nodes tau_k with Lagrange basis L_k,

    sum_i w_i F(o_i)  =  sum_k ( sum_i w_i L_k(o_i) ) F(tau_k)   + error

so A_k = sum_i L_k(o_i) and, for each gene, Y_k = sum_i y_i L_k(o_i) replace the cells (barycentric form: Berrut and
Trefethen 2004, doi 10.1137/S0036144502417715). log(1 + e^t) is analytic up to +-i pi, so on an interval of half width h
its interpolation error falls like rho^-K with rho = pi/h + sqrt((pi/h)^2 + 1) (Trefethen 2013, theorem 8.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from scglmm._jit import entry, kernel

from .threads import cut, on_threads

# Largest error of log(1 + e^(t + c)) and of its derivative, relative to their maximum, times rho^K, over half widths
# from 0.02 to 8 and all c: 10.2 (tests/compression/test_nodes.py measures it again).
CONSTANT = 12.0

# The log-probability of a zero that is zero-inflated, log(e^zeta + exp(-e^t)) at its worst, is singular where
# e^t = -zeta +- i pi: this far from the real axis for a zero-inflation probability of 1e-4.
ZERO_INFLATED = 0.32


def n_nodes(half_width: np.ndarray, tolerance: float, singularity: float = np.pi) -> np.ndarray:
    """Choose how many nodes keep the relative error of the log-likelihood and its derivative below `tolerance`.

    Parameters
    ----------
    half_width
        Half the width of the offset range (natural log), any shape.
    tolerance
        Relative error, for instance 1e-10.
    singularity
        Distance from the real axis of the nearest singularity: pi for log(1 + e^t), `ZERO_INFLATED` for the zeros of
        zero-inflated counts. Infinity asks for no more than keeps sum y o exact, which is all that Poisson needs.
    """
    ratio = singularity / np.maximum(half_width, 1e-12)
    rho = ratio + np.sqrt(ratio**2 + 1)
    needed = np.ceil(np.log(CONSTANT / tolerance) / np.log(rho)).astype(np.int64)
    # One node represents a constant offset; two are the least that keep sum y o exact.
    return np.where(half_width == 0, 1, np.maximum(needed, 2))


def reach_of(n_nodes: np.ndarray, tolerance: float) -> np.ndarray:
    """Half width of the linear predictor up to which so many nodes keep the tolerance: the inverse of `n_nodes`."""
    return np.pi / np.sinh(np.log(CONSTANT / tolerance) / n_nodes)


class Axes(NamedTuple):
    """Where the nodes of every stratum lie along each coordinate; the first coordinate is the offset.

    Without covariates that differ between the cells of a stratum there is no other coordinate.
    """

    at: np.ndarray  # (S, D + 1): coordinate d of stratum s has the positions at[s, d] to at[s, d + 1]
    position: np.ndarray  # (P,)
    weight: np.ndarray  # (P,) barycentric weights
    coordinates: np.ndarray  # (D, n) of every cell


@dataclass(frozen=True)
class Grid:
    """The nodes themselves: all that a fit needs to know of the cells.

    Attributes
    ----------
    start
        (R + 1,) first node of each row of the design that a fit sees.
    tau
        (N,) offsets of the nodes, natural log.
    weights
        (N,) the table A.
    blocks
        (S + 1,) first node of each stratum. A stratum is one row of the design, unless rows differ within it
        (`scglmm.compression.tensor`).
    """

    start: np.ndarray
    tau: np.ndarray
    weights: np.ndarray
    blocks: np.ndarray

    @property
    def n_strata(self) -> int:
        """Number of rows of the design."""
        return self.start.size - 1

    @property
    def size(self) -> int:
        """Number of nodes."""
        return int(self.start[-1])

    @property
    def is_tensor(self) -> bool:
        """Whether there are nodes along other coordinates than the offset."""
        return self.blocks.size != self.start.size


@dataclass(frozen=True)
class Nodes(Grid):
    """Nodes, and the cells that they stand for.

    Attributes
    ----------
    stratum
        (n,) stratum of every cell.
    order
        (n,) cells sorted by stratum, within a stratum in the order of the data.
    cell_start
        (S + 1,) first cell of each stratum in `order`.
    exact
        (S,) whether the nodes of the stratum are its cells: there are no more of them than nodes were needed.
    axes
        Positions of the nodes, coordinates of the cells.
    """

    stratum: np.ndarray
    order: np.ndarray
    cell_start: np.ndarray
    exact: np.ndarray
    axes: Axes

    @property
    def offset(self) -> np.ndarray:
        """(n,) offset of every cell, natural log."""
        return self.axes.coordinates[0]

    @property
    def n_cells(self) -> np.ndarray:
        """(S,) cells in each stratum."""
        return np.diff(self.cell_start)

    @property
    def grid(self) -> Grid:
        """The nodes without the cells."""
        return Grid(self.start, self.tau, self.weights, self.blocks)


def make_nodes(
    stratum: np.ndarray,
    offset: np.ndarray,
    tolerance: float = 1e-10,
    *,
    compress: bool = True,
    singularity: float = np.pi,
    finer: Nodes | None = None,
    n_jobs: int = 1,
) -> Nodes:
    """Choose and place the nodes.

    Parameters
    ----------
    stratum
        (n,) stratum of every cell, 0 to S - 1, none empty.
    offset
        (n,) offset of every cell, natural log, finite.
    tolerance
        Relative error of the interpolation.
    compress
        False keeps every cell as a node: the uncompressed model, for comparison.
    singularity
        See `n_nodes`.
    finer
        Nodes of the same cells with a smaller tolerance, whose weights then give those of the new ones
        (`scglmm.compression.prepared` says how) without a look at the cells.
    n_jobs
        Threads.
    """
    stratum = np.ascontiguousarray(stratum, np.int64)
    offset = np.ascontiguousarray(offset, np.float64)
    order = np.argsort(stratum, kind="stable") if finer is None else finer.order
    cells = np.bincount(stratum)
    cell_start = np.concatenate([[0], np.cumsum(cells)])
    low = np.minimum.reduceat(offset[order], cell_start[:-1])
    high = np.maximum.reduceat(offset[order], cell_start[:-1])
    width = width_of(low, high)
    needed = n_nodes(width / 2, tolerance, singularity)
    exact = cells <= needed if compress else np.ones(cells.size, np.bool_)
    number = np.where(exact, cells, needed)
    start = np.concatenate([[0], np.cumsum(number)])
    tau, weight = place_axis(start, low, high)
    within = np.repeat(exact, number)
    tau[within] = offset[order[np.repeat(exact, cells)]]
    axes = Axes(np.stack([start[:-1], start[1:]], axis=1), tau, weight, offset[None])
    if finer is None:
        weights = cell_weights(order, cell_start, start, exact, axes, n_jobs)
    else:
        weights = project(finer.weights, 1, finer, np.zeros(1, np.int64), start, tau, weight, n_jobs)
    return Nodes(start, tau, weights, start, stratum, order, cell_start, exact, axes)


def width_of(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Width of ranges; values that differ by rounding only are one, as nodes between them would coincide."""
    same = high - low <= 8 * np.spacing(np.maximum(np.abs(low), np.abs(high)))
    return np.where(same, 0.0, high - low)


@entry
def place_axis(start, low, high):
    """Chebyshev points of the first kind on each range, from `start[s]` on, and their barycentric weights."""
    position, weight = np.empty(start[-1]), np.empty(start[-1])
    for s in range(start.size - 1):
        n = start[s + 1] - start[s]
        sign = 1.0
        for k in range(n):
            x = np.cos((2 * k + 1) * np.pi / (2 * n))
            position[start[s] + k] = 0.5 * (low[s] + high[s]) + 0.5 * (high[s] - low[s]) * x
            weight[start[s] + k] = sign * np.sin((2 * k + 1) * np.pi / (2 * n))
            sign = -sign
    return position, weight


@kernel
def lagrange_basis(o, position, weight, start, stop, basis):
    """Values at o of the Lagrange basis on the positions `start` to `stop`, into basis[: stop - start]."""
    n = stop - start
    if n == 1:
        basis[0] = 1.0
        return
    total = 0.0
    for k in range(n):
        distance = o - position[start + k]
        if distance == 0.0:
            for j in range(n):
                basis[j] = 1.0 if j == k else 0.0
            return
        basis[k] = weight[start + k] / distance
        total += basis[k]
    scale = 1.0 / total
    for k in range(n):
        basis[k] *= scale


@kernel
def cell_basis(cell, s, axes, one, basis):
    """Values of the basis of stratum s at a cell, into `basis`: products over the coordinates, the offset's fastest.

    `one` is scratch for the basis along one coordinate.
    """
    at = axes.at
    lagrange_basis(axes.coordinates[0, cell], axes.position, axes.weight, at[s, 0], at[s, 1], basis)
    size = at[s, 1] - at[s, 0]
    for d in range(1, axes.coordinates.shape[0]):
        lagrange_basis(axes.coordinates[d, cell], axes.position, axes.weight, at[s, d], at[s, d + 1], one)
        n = at[s, d + 1] - at[s, d]
        for j in range(n - 1, -1, -1):  # the first copy is overwritten last
            for k in range(size):
                basis[j * size + k] = one[j] * basis[k]
        size *= n


@entry
def widest(blocks, exact):
    """Count the most nodes of a stratum whose cells are interpolated."""
    most = 1
    for s in range(exact.size):
        if not exact[s]:
            most = max(most, blocks[s + 1] - blocks[s])
    return most


def cell_weights(
    order: np.ndarray, cell_start: np.ndarray, blocks: np.ndarray, exact: np.ndarray, axes: Axes, n_jobs: int = 1
) -> np.ndarray:
    """Sum of the cells' basis values: the table A."""
    return _sum_values(order, cell_start, blocks, exact, axes, np.ones(order.size), n_jobs)


def sum_on_nodes(nodes: Nodes, values: np.ndarray) -> np.ndarray:
    """Sum one number of each cell (n,) onto the nodes (N,)."""
    of_cells = np.ascontiguousarray(values, np.float64)
    return _sum_values(nodes.order, nodes.cell_start, nodes.blocks, nodes.exact, nodes.axes, of_cells)


def _sum_values(
    order: np.ndarray,
    cell_start: np.ndarray,
    blocks: np.ndarray,
    exact: np.ndarray,
    axes: Axes,
    values: np.ndarray,
    n_jobs: int = 1,
) -> np.ndarray:
    """Sum values of the cells, those of every stratum on one thread."""
    total = np.zeros(blocks[-1])
    # in the order in which they are used: cells of a stratum may be far from each other
    axes = axes._replace(coordinates=np.ascontiguousarray(axes.coordinates[:, order]))
    values = values[order]
    on_threads(
        [
            partial(_add_values, cell_start, blocks, exact, axes, values, first, last, total)
            for first, last in cut(cell_start, n_jobs)
        ]
    )
    return total


def sum_on_rows(nodes: Nodes, values: np.ndarray) -> np.ndarray:
    """Sum one number of each cell (n,) onto the rows of the design."""
    if not nodes.is_tensor:
        return np.bincount(nodes.stratum, values, nodes.n_strata)
    return np.add.reduceat(sum_on_nodes(nodes, values), nodes.start[:-1])


@entry
def _add_values(cell_start, blocks, exact, axes, values, first_stratum, last_stratum, total):
    most = widest(blocks, exact)
    basis, one = np.empty(most), np.empty(most)
    for s in range(first_stratum, last_stratum):
        for i in range(cell_start[s], cell_start[s + 1]):
            value = values[i]
            if value == 0.0:
                continue
            if exact[s]:
                total[blocks[s] + i - cell_start[s]] += value
                continue
            cell_basis(i, s, axes, one, basis)
            first = np.uint64(blocks[s])
            for k in range(blocks[s + 1] - blocks[s]):
                total[first + np.uint64(k)] += value * basis[k]


def project(
    values: np.ndarray,
    n_genes: int,
    finer: Grid,
    genes: np.ndarray,
    start: np.ndarray,
    position: np.ndarray,
    weight: np.ndarray,
    n_jobs: int = 1,
) -> np.ndarray:
    """Sum what is on finer nodes onto fewer, whose Lagrange basis is a polynomial that the finer ones represent.

    Parameters
    ----------
    values
        (N' * `n_genes`,) table of `n_genes` genes on the nodes `finer`, laid out as `scglmm.compression.tables.Tables`.
    genes
        (G,) which of those genes are wanted.
    start, position, weight
        First node of every stratum, (N,) nodes and their barycentric weights.
    n_jobs
        Threads.

    Returns
    -------
    (N * G,) their table.
    """
    out = np.empty(start[-1] * genes.size)
    on_threads(
        [
            partial(_project, values, n_genes, finer.start, finer.tau, genes, start, position, weight, first, last, out)
            for first, last in cut(start, n_jobs)
        ]
    )
    return out


@entry
def _project(values, n_genes, start_from, tau_from, genes, start, position, weight, first, last, out):
    widest = 0
    for s in range(first, last):
        widest = max(widest, start[s + 1] - start[s], start_from[s + 1] - start_from[s])
    bases = np.empty((widest, widest))
    for s in range(first, last):
        m, n = start_from[s + 1] - start_from[s], start[s + 1] - start[s]
        if m != n:
            for k in range(m):
                lagrange_basis(tau_from[start_from[s] + k], position, weight, start[s], start[s + 1], bases[k])
        for g in range(genes.size):
            source = start_from[s] * n_genes + genes[g] * m
            target = start[s] * genes.size + g * n
            # slices, as in `scglmm.engine.nb2`
            given, own = values[source : source + m], out[target : target + n]
            if m == n:
                for j in range(n):
                    own[j] = given[j]
                continue
            for j in range(n):
                own[j] = 0.0
            for k in range(m):
                value = given[k]
                if value == 0.0:
                    continue
                basis = bases[k, :n]
                for j in range(n):
                    own[j] += value * basis[j]
