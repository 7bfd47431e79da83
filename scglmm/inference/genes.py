"""All genes: blocks that fit in memory are compressed one after another, and their genes fitted in parallel.

Chunks of genes are fixed, whatever the number of workers, and no fit sees another, so results do not depend on the
number of workers or on which other genes are there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from scglmm.compression.nodes import Grid, Nodes
from scglmm.compression.tables import Tables, accumulate, genes_per_block
from scglmm.engine.responses import Responses

from .containment import Carrier, find_carrier
from .frame import Frame
from .gene import GeneFit, fit_gene

GENES_PER_TASK = 16


@dataclass(frozen=True)
class Options:
    """How genes are fitted.

    Attributes
    ----------
    method
        `"reml"` or `"ml"`.
    adjust_se, null, limit
        See `scglmm.inference.gene.fit_gene`.
    """

    method: str = "reml"
    adjust_se: bool = False
    null: bool = True
    limit: bool = False


@dataclass(frozen=True)
class GeneFits:
    """Results of many genes as arrays, in the order of `genes`.

    Attributes
    ----------
    genes
        (G,) columns of the matrix.
    fits
        One `scglmm.inference.gene.GeneFit` for each gene.
    donors
        (G,) levels of the first grouping factor with counts of the gene.
    """

    genes: np.ndarray
    fits: list[GeneFit]
    donors: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """Stack one attribute of all fits."""
        return np.array([getattr(fit, name) for fit in self.fits])


def fit_genes(
    matrix: Any,
    rows: np.ndarray,
    nodes: Nodes,
    frame: Frame,
    genes: np.ndarray,
    options: Options,
    *,
    n_jobs: int,
    max_bytes: float,
    progress: Callable[[int], object] = lambda n: None,
) -> GeneFits:
    """Fit the model to every gene.

    Parameters
    ----------
    matrix
        (n_obs, n_vars) counts, as `scglmm.compression.counts.canonical` returns it.
    rows
        (n,) row of the matrix of every cell.
    nodes, frame
        The cells' nodes and the model on their strata.
    genes
        (G,) columns of the genes to fit.
    options
        How.
    n_jobs
        Workers.
    max_bytes
        Memory for the tables of a block.
    progress
        Called with the number of genes that have been fitted since the last call.
    """
    carriers = [find_carrier(frame, contrast) for contrast in np.eye(frame.X.shape[1])]
    shift = float(nodes.offset.max()) if frame.has_constant else 0.0
    grid = nodes.grid
    per_block = genes_per_block(nodes, genes.size, max_bytes) if genes.size else 1
    fits: list[GeneFit] = []
    donors: list[int] = []
    with Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator") as parallel:
        for first in range(0, genes.size, per_block):
            tables = accumulate(matrix, rows, nodes, genes[first : first + per_block], n_jobs)
            tasks = (
                delayed(_fit_task)(
                    grid, tables.take(grid, begin, begin + GENES_PER_TASK), frame, carriers, shift, options
                )
                for begin in range(0, tables.genes.size, GENES_PER_TASK)
            )
            for found, counted in parallel(tasks):
                fits += found
                donors += counted
                progress(len(found))
            del tables
    return GeneFits(genes, fits, np.array(donors, np.int64))


def _fit_task(
    grid: Grid, tables: Tables, frame: Frame, carriers: list[Carrier | None], shift: float, options: Options
) -> tuple[list[GeneFit], list[int]]:
    """Fit the genes of one small table."""
    responses = Responses(grid, tables, shift)
    fits, donors = [], []
    for g in range(tables.genes.size):
        data = responses[g]
        choices = {"adjust_se": options.adjust_se, "null": options.null, "limit": options.limit}
        fits.append(fit_gene(data, frame, carriers, shift, options.method, **choices))
        groups = frame.terms[0].codes if frame.terms else np.zeros(data.y_sum.size, np.int64)
        donors.append(np.unique(groups[data.y_sum > 0]).size)
    return fits, donors
