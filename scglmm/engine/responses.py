"""One gene of the tables, or one vector of responses, as the engine wants it."""

from __future__ import annotations

import numpy as np

from scglmm._jit import entry
from scglmm.compression.nodes import Grid, Nodes, sum_on_nodes
from scglmm.compression.tables import Tables

from .families import GAUSSIAN, NB2, POISSON
from .histogram import exceedance, log_factorials
from .layout import NODE_A, NODE_E, NODE_Y, Data, Extra


class Responses:
    """Genes of a block of tables, one after another, in arrays that are used again.

    An instance belongs to one thread.

    Parameters
    ----------
    grid
        The nodes, shared by all genes.
    tables
        The counts of a block of genes.
    shift
        Subtracted from the offsets, so that enormous ones do not overflow.
    family
        `NB2` or `POISSON`, see `scglmm.engine.families`.
    exposure
        (S,) sums over the cells of exp(offset - shift), for Poisson without zero inflation.
    zi
        (S, k) design of the logit of the zero-inflation probability; the tables have `presence` then.
    """

    def __init__(
        self,
        grid: Grid,
        tables: Tables,
        shift: float = 0.0,
        family: int = NB2,
        exposure: np.ndarray | None = None,
        zi: np.ndarray | None = None,
    ) -> None:
        self._grid, self._tables = grid, tables
        self.shift, self._family = shift, family
        self._table = np.empty((3, grid.size))
        self._tau = grid.tau - self.shift
        self._table[NODE_E] = np.exp(self._tau)
        self._table[NODE_A] = grid.weights
        self._sums = np.empty(grid.n_strata)
        self._extra, self._single = None, None
        if family == POISSON or zi is not None:
            columns = np.empty((grid.n_strata, 0)) if zi is None else np.ascontiguousarray(zi)
            self._extra = Extra(columns, np.empty(0 if zi is None else grid.size), np.zeros((4, grid.n_strata)))
        if family == POISSON and zi is None:
            self._single = np.stack([exposure, np.ones(grid.n_strata), self._sums])

    def __getitem__(self, g: int) -> Data:
        """Gene g of the block; the arrays are overwritten by the next one."""
        grid, tables = self._grid, self._tables
        # sum y (o - shift) from the nodes is exact: interpolation reproduces a linear function.
        y_offset = self._gather(tables.values, g, self._table[NODE_Y], self._sums)
        counts = tables.histogram[g].astype(np.float64)
        exceed = counts[::-1].cumsum()[::-1][1:]
        exceed = np.ascontiguousarray(exceed[: max(1, np.count_nonzero(exceed))])
        tail = np.stack(tables.tails.get(g, (np.empty(0), np.empty(0))))
        constant = y_offset - log_factorials(exceed, tail)
        if self._single is not None:
            self._single[NODE_Y] = self._sums
            start = np.arange(grid.n_strata + 1)
            return Data(self._family, start, self._single, self._sums, exceed, tail, constant, self._extra)
        if self._extra is not None:
            zeros = self._extra.zeros
            self._gather(tables.presence, g, zeros, np.empty(grid.n_strata))
            np.subtract(grid.weights, zeros, out=zeros)
        return Data(self._family, grid.start, self._table, self._sums, exceed, tail, constant, self._extra)

    def _gather(self, values: np.ndarray, g: int, table: np.ndarray, sums: np.ndarray) -> float:
        grid = self._grid
        # counts are whole numbers, but not what is interpolated of them on one of several rows
        whole = np.bool_(not grid.is_tensor)
        return _gather(values, grid.blocks, grid.start, g, self._tables.genes.size, self._tau, whole, table, sums)


def response_data(nodes: Nodes, y: np.ndarray, family: int, zi: np.ndarray | None = None, shift: float = 0.0) -> Data:
    """One response.

    Parameters
    ----------
    nodes
        The rows' nodes. Poisson needs them for zero inflation only, Gaussian not at all.
    y
        (n,) response of every row; for Gaussian with its offset taken off.
    family
        Code, see `scglmm.engine.families`.
    zi
        (S, k) design of the logit of the zero-inflation probability.
    shift
        Subtracted from the offsets, so that enormous ones do not overflow.
    """
    stratum, n_strata = nodes.stratum, nodes.n_strata
    single = np.arange(n_strata + 1)
    empty = np.empty(0), np.empty((2, 0))
    extra = Extra(np.empty((n_strata, 0)), np.empty(0), np.zeros((4, n_strata)))
    if family == GAUSSIAN:
        sums = np.bincount(stratum, y, n_strata)
        within = y - (sums / nodes.n_cells)[stratum]
        table = np.stack([np.ones(n_strata), nodes.n_cells.astype(float), sums])
        return Data(family, single, table, sums, *empty, float(within @ within), extra)
    sums = np.bincount(stratum, y, n_strata)
    offset = nodes.offset - shift
    exceed, tail = exceedance(*np.unique(y, return_counts=True))
    constant = float(y @ offset - log_factorials(exceed, tail))
    if family == POISSON and zi is None:
        table = np.stack([np.bincount(stratum, np.exp(offset), n_strata), np.ones(n_strata), sums])
        return Data(family, single, table, sums, *empty, constant, extra)
    table = np.stack([np.exp(nodes.tau - shift), nodes.weights, sum_on_nodes(nodes, y)])
    if zi is not None:
        zeros = sum_on_nodes(nodes, (y == 0).astype(float))
        extra = extra._replace(zi=np.ascontiguousarray(zi), zeros=zeros)
    return Data(family, nodes.start, table, sums, exceed, tail, constant, None if zi is None else extra)


@entry
def _gather(values, blocks, start, g, n_genes, tau, whole, table, sums):
    """Copy the nodes of a gene out of the tables; returns the sum of y tau."""
    for b in range(blocks.size - 1):
        n = blocks[b + 1] - blocks[b]
        at = blocks[b] * n_genes + g * n
        for k in range(n):
            table[blocks[b] + k] = values[at + k]
    total = 0.0
    for s in range(sums.size):
        y = 0.0
        for k in range(start[s], start[s + 1]):
            y += table[k]
            total += table[k] * tau[k]
        sums[s] = np.round(y) if whole else y
    return total
