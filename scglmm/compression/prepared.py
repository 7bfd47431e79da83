"""Tables that were made before the model's nodes were known: the counts are read once, and once only.

How fine the nodes have to be depends on the counts themselves. Where reading them is dear, they are summed onto nodes
that are fine enough for any counts. The Lagrange basis L_j of fewer nodes tau_j is a polynomial that the finer nodes
tau'_k represent exactly, L_j(o) = sum_k L_j(tau'_k) L'_k(o), so that

    Y_j  =  sum_i y_i L_j(o_i)  =  sum_k L_j(tau'_k) Y'_k

gives to rounding the table that another pass would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scglmm._jit import entry

from .nodes import Grid, Nodes, lagrange_basis
from .tables import Part, Tables, accumulate_parts


@dataclass(frozen=True)
class Prepared:
    """A matrix whose counts have been summed: it takes the place of the matrix in `accumulate_parts`.

    Attributes
    ----------
    matrix
        The counts.
    nodes
        Nodes of the parts that will be asked for.
    finer
        For each of them the nodes onto which the counts were summed, of the same strata.
    tables
        Those sums.
    """

    matrix: Any
    nodes: list[Nodes]
    finer: list[Grid]
    tables: list[Tables]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_obs, n_vars)."""
        return self.matrix.shape

    def tables_of(self, parts: Sequence[Part], n_jobs: int = 1) -> list[Tables]:
        """Do what `scglmm.compression.tables.accumulate_parts` does; for nodes not in `nodes` the matrix is read."""
        known = [next((k for k, nodes in enumerate(self.nodes) if nodes is part.nodes), -1) for part in parts]
        others = [part for part, k in zip(parts, known, strict=True) if k < 0]
        read = iter(accumulate_parts(self.matrix, others, n_jobs) if others else [])
        return [next(read) if k < 0 else self._take(part, k) for part, k in zip(parts, known, strict=True)]

    def _take(self, part: Part, k: int) -> Tables:
        source, finer = self.tables[k], self.finer[k]
        by_gene = np.argsort(source.genes, kind="stable")
        at = by_gene[np.searchsorted(source.genes, part.genes, sorter=by_gene)]
        values = _on_nodes(source.values, source.genes.size, finer, at, part.nodes)
        presence = None
        if part.presence:
            presence = _on_nodes(source.presence, source.genes.size, finer, at, part.nodes)
        tails = {g: source.tails[int(i)] for g, i in enumerate(at) if int(i) in source.tails}
        return Tables(part.genes, values, source.histogram[at], tails, presence)


def _on_nodes(values: np.ndarray, n_genes: int, finer: Grid, at: np.ndarray, nodes: Nodes) -> np.ndarray:
    """Table of the genes at some positions of a table on finer nodes."""
    out = np.zeros(nodes.size * at.size)
    _project(values, n_genes, finer.start, finer.tau, at, nodes.start, nodes.tau, out)
    return out


@entry
def _project(values, n_genes, start_from, tau_from, genes, start, tau, out):
    widest = 0
    for s in range(start.size - 1):
        widest = max(widest, start[s + 1] - start[s], start_from[s + 1] - start_from[s])
    basis = np.empty((widest, widest))
    for s in range(start.size - 1):
        m, n = start_from[s + 1] - start_from[s], start[s + 1] - start[s]
        if m != n:
            for k in range(m):
                lagrange_basis(tau_from[start_from[s] + k], tau, start[s], start[s + 1], basis[k])
        for g in range(genes.size):
            source = start_from[s] * n_genes + genes[g] * m
            target = start[s] * genes.size + g * n
            for k in range(m):
                value = values[source + k]
                if m == n:
                    out[target + k] = value
                elif value != 0.0:
                    for j in range(n):
                        out[target + j] += value * basis[k, j]
