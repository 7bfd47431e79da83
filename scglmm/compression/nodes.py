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

import numpy as np

from scglmm._jit import entry, kernel

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


@dataclass(frozen=True)
class Grid:
    """The nodes themselves: all that a fit needs to know of the cells.

    Attributes
    ----------
    start
        (S + 1,) first node of each stratum.
    tau
        (N,) offsets of the nodes, natural log.
    weights
        (N,) the table A.
    """

    start: np.ndarray
    tau: np.ndarray
    weights: np.ndarray

    @property
    def n_strata(self) -> int:
        """Number of strata."""
        return self.start.size - 1

    @property
    def size(self) -> int:
        """Number of nodes."""
        return int(self.start[-1])


@dataclass(frozen=True)
class Nodes(Grid):
    """Nodes, and the cells that they stand for.

    Attributes
    ----------
    stratum
        (n,) stratum of every cell.
    offset
        (n,) offset of every cell, natural log.
    order
        (n,) cells sorted by stratum, within a stratum in the order of the data.
    cell_start
        (S + 1,) first cell of each stratum in `order`.
    exact
        (S,) whether the nodes of the stratum are its cells: there are no more of them than nodes were needed.
    """

    stratum: np.ndarray
    offset: np.ndarray
    order: np.ndarray
    cell_start: np.ndarray
    exact: np.ndarray

    @property
    def n_cells(self) -> np.ndarray:
        """(S,) cells in each stratum."""
        return np.diff(self.cell_start)

    @property
    def grid(self) -> Grid:
        """The nodes without the cells."""
        return Grid(self.start, self.tau, self.weights)


def make_nodes(
    stratum: np.ndarray,
    offset: np.ndarray,
    tolerance: float = 1e-10,
    *,
    compress: bool = True,
    singularity: float = np.pi,
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
    """
    stratum = np.ascontiguousarray(stratum, np.int64)
    offset = np.ascontiguousarray(offset, np.float64)
    order = np.argsort(stratum, kind="stable")
    cells = np.bincount(stratum)
    cell_start = np.concatenate([[0], np.cumsum(cells)])
    low = np.minimum.reduceat(offset[order], cell_start[:-1])
    high = np.maximum.reduceat(offset[order], cell_start[:-1])
    # Offsets that differ by rounding only are one offset: nodes between them would coincide.
    width = np.where(high - low <= 8 * np.spacing(np.maximum(np.abs(low), np.abs(high))), 0.0, high - low)
    needed = n_nodes(width / 2, tolerance, singularity)
    exact = cells <= needed if compress else np.ones(cells.size, np.bool_)
    number = np.where(exact, cells, needed)
    start = np.concatenate([[0], np.cumsum(number)])
    tau = _place(order, cell_start, offset, start, low, high, exact)
    weights = np.zeros(start[-1])
    _add_weights(order, cell_start, offset, start, tau, exact, weights)
    return Nodes(start, tau, weights, stratum, offset, order, cell_start, exact)


@entry
def _place(order, cell_start, offset, start, low, high, exact):
    """Offsets of the nodes: the cells' own, or Chebyshev points of the first kind."""
    tau = np.empty(start[-1])
    for s in range(exact.size):
        n = start[s + 1] - start[s]
        for k in range(n):
            if exact[s]:
                tau[start[s] + k] = offset[order[cell_start[s] + k]]
            else:
                x = np.cos((2 * k + 1) * np.pi / (2 * n))
                tau[start[s] + k] = 0.5 * (low[s] + high[s]) + 0.5 * (high[s] - low[s]) * x
    return tau


@kernel
def lagrange_basis(o, tau, start, stop, basis):
    """Values at offset o of the Lagrange basis on the nodes `start` to `stop`, into basis[: stop - start]."""
    n = stop - start
    if n == 1:
        basis[0] = 1.0
        return
    total = 0.0
    sign = 1.0
    for k in range(n):
        distance = o - tau[start + k]
        if distance == 0.0:
            for j in range(n):
                basis[j] = 1.0 if j == k else 0.0
            return
        weight = sign * np.sin((2 * k + 1) * np.pi / (2 * n)) / distance
        basis[k] = weight
        total += weight
        sign = -sign
    for k in range(n):
        basis[k] /= total


@entry
def _add_weights(order, cell_start, offset, start, tau, exact, weights):
    """Sum of the cells' basis values: the table A."""
    basis = np.empty(np.max(start[1:] - start[:-1]))
    for s in range(exact.size):
        n = start[s + 1] - start[s]
        if exact[s]:
            for k in range(n):
                weights[start[s] + k] = 1.0
            continue
        for i in range(cell_start[s], cell_start[s + 1]):
            lagrange_basis(offset[order[i]], tau, start[s], start[s + 1], basis)
            for k in range(n):
                weights[start[s] + k] += basis[k]


def sum_on_nodes(nodes: Nodes, values: np.ndarray) -> np.ndarray:
    """Sum one number of each cell (n,) onto the nodes (N,)."""
    total = np.zeros(nodes.size)
    of_cells = np.ascontiguousarray(values, np.float64)
    _add_values(nodes.order, nodes.cell_start, nodes.offset, nodes.start, nodes.tau, nodes.exact, of_cells, total)
    return total


@entry
def _add_values(order, cell_start, offset, start, tau, exact, values, total):
    basis = np.empty(np.max(start[1:] - start[:-1]))
    for s in range(exact.size):
        for i in range(cell_start[s], cell_start[s + 1]):
            value = values[order[i]]
            if value == 0.0:
                continue
            if exact[s]:
                total[start[s] + i - cell_start[s]] += value
                continue
            lagrange_basis(offset[order[i]], tau, start[s], start[s + 1], basis)
            for k in range(start[s + 1] - start[s]):
                total[start[s] + k] += value * basis[k]
