"""One gene of the tables as the engine wants it."""

from __future__ import annotations

import numpy as np

from scglmm._jit import entry
from scglmm.compression.nodes import Grid
from scglmm.compression.tables import Tables

from .families import NB2
from .histogram import log_factorials
from .layout import NODE_A, NODE_E, NODE_Y, Data


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
    """

    def __init__(self, grid: Grid, tables: Tables, shift: float = 0.0) -> None:
        self._grid, self._tables = grid, tables
        self.shift = shift
        self._table = np.empty((3, grid.size))
        self._table[NODE_E] = np.exp(grid.tau - self.shift)
        self._table[NODE_A] = grid.weights
        self._sums = np.empty(grid.n_strata)

    def __getitem__(self, g: int) -> Data:
        """Gene g of the block; the arrays are overwritten by the next one."""
        grid, tables = self._grid, self._tables
        # sum y o from the nodes is exact: interpolation reproduces a linear function.
        y_offset = _gather(tables.values, grid.start, g, tables.genes.size, grid.tau, self._table[NODE_Y], self._sums)
        counts = tables.histogram[g].astype(np.float64)
        exceed = counts[::-1].cumsum()[::-1][1:]
        exceed = np.ascontiguousarray(exceed[: max(1, np.count_nonzero(exceed))])
        tail = np.stack(tables.tails.get(g, (np.empty(0), np.empty(0))))
        constant = y_offset - self.shift * self._sums.sum() - log_factorials(exceed, tail)
        return Data(NB2, grid.start, self._table, self._sums, exceed, tail, constant)


@entry
def _gather(values, start, g, n_genes, tau, table, sums):
    """Copy the nodes of a gene out of the tables; returns sum y o."""
    total = 0.0
    for s in range(sums.size):
        n = start[s + 1] - start[s]
        at = start[s] * n_genes + g * n
        y = 0.0
        for k in range(n):
            value = values[at + k]
            table[start[s] + k] = value
            y += value
            total += value * tau[start[s] + k]
        sums[s] = np.round(y)
    return total
