"""Tables by way of finer nodes, which can be placed before the counts are known: they need be read only once.

How fine the nodes have to be depends on the counts themselves. Where reading them is dear, they are summed onto nodes
that are fine enough for any counts. The Lagrange basis L_j of fewer nodes tau_j is a polynomial that the finer nodes
tau'_k represent exactly, L_j(o) = sum_k L_j(tau'_k) L'_k(o), so that

    Y_j  =  sum_i y_i L_j(o_i)  =  sum_k L_j(tau'_k) Y'_k

gives to rounding the table that another pass would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .nodes import Grid, Nodes, project
from .tables import Part, Tables, accumulate_parts


@dataclass(frozen=True)
class Prepared:
    """What takes the place of a matrix in `accumulate_parts`: its counts have been, or are, summed onto finer nodes.

    Attributes
    ----------
    matrix
        The counts.
    nodes
        Nodes of the parts that will be asked for.
    finer
        For each of them the nodes onto which the counts are summed, of the same cells and strata.
    tables
        Those sums; None where they are made when they are asked for.
    """

    matrix: Any
    nodes: list[Nodes]
    finer: list[Nodes]
    tables: list[Tables] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n_obs, n_vars)."""
        return self.matrix.shape

    def tables_of(self, parts: Sequence[Part], n_jobs: int = 1) -> list[Tables]:
        """Do what `scglmm.compression.tables.accumulate_parts` does; for nodes not in `nodes` the matrix is read."""
        known = [next((k for k, nodes in enumerate(self.nodes) if nodes is part.nodes), -1) for part in parts]
        wanted = [part if k < 0 else replace(part, nodes=self.finer[k]) for part, k in zip(parts, known, strict=True)]
        to_read = [each for each, k in zip(wanted, known, strict=True) if k < 0 or self.tables is None]
        read = iter(accumulate_parts(self.matrix, to_read, n_jobs) if to_read else [])
        found = []
        for part, k in zip(parts, known, strict=True):
            source = next(read) if k < 0 or self.tables is None else self.tables[k]
            found.append(source if k < 0 else _take(source, self.finer[k], part, n_jobs))
        return found


def _take(source: Tables, finer: Grid, part: Part, n_jobs: int) -> Tables:
    """Tables of some genes on the nodes of the part, from tables on finer ones."""
    by_gene = np.argsort(source.genes, kind="stable")
    at = by_gene[np.searchsorted(source.genes, part.genes, sorter=by_gene)]
    values = _on_nodes(source.values, source.genes.size, finer, at, part.nodes, n_jobs)
    presence = None
    if part.presence:
        presence = _on_nodes(source.presence, source.genes.size, finer, at, part.nodes, n_jobs)
    tails = {g: source.tails[int(i)] for g, i in enumerate(at) if int(i) in source.tails}
    return Tables(part.genes, values, source.histogram[at], tails, presence)


def _on_nodes(values: np.ndarray, n_genes: int, finer: Grid, at: np.ndarray, nodes: Nodes, n_jobs: int) -> np.ndarray:
    """Table of the genes at some positions of a table on finer nodes."""
    return project(values, n_genes, finer, at, nodes.start, nodes.axes.position, nodes.axes.weight, n_jobs)
