"""All genes: blocks that fit in memory are compressed one after another, and their genes fitted in parallel.

Chunks of genes are fixed, whatever the number of workers, and no fit sees another, so results do not depend on the
number of workers or on which other genes are there; moderation, which follows the fits, depends on all genes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from scglmm.compression.nodes import Grid, Nodes, sum_on_rows
from scglmm.compression.tables import Part, Tables, accumulate_parts, gene_blocks
from scglmm.engine.responses import Responses

from .cell_level import Placed
from .compressed import CODES
from .containment import Carrier, find_carrier
from .frame import Frame
from .gene import BEYOND, GeneFit, fit_gene
from .inflation import Inflation
from .moderation import NO_PRIOR, Moderated, moderate, why_not_moderated
from .prior import Prior

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
    moderate
        Whether the standard deviations of the random effects are integrated out under a prior from all genes
        (`scglmm.inference.moderation`): True, False, or None for wherever that can be done.
    family
        `"nbinom2"` or `"poisson"`.
    n_quad
        See `scglmm.inference.gene.fit_gene`.
    """

    method: str = "reml"
    adjust_se: bool = False
    moderate: bool | None = False
    null: bool = True
    limit: bool = False
    family: str = "nbinom2"
    n_quad: int = 1


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
    totals
        (G,) counts.
    prior
        Of the standard deviations of the random effects; None where the fits are not moderated.
    not_moderated
        Why they are not; empty where they are.
    """

    genes: np.ndarray
    fits: list[GeneFit]
    donors: np.ndarray
    totals: np.ndarray
    prior: Prior | None = None
    not_moderated: str = ""

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
    finer: Callable[[], Placed] | None = None,
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
    finer
        See `fit_parts`.
    """
    part = Part(rows, nodes, genes)
    how = {"n_jobs": n_jobs, "max_bytes": max_bytes, "progress": progress, "finer": [finer]}
    return fit_parts(matrix, [part], [frame], options, **how)[0]


def fit_parts(
    matrix: Any,
    parts: Sequence[Part],
    frames: Sequence[Frame],
    options: Options,
    *,
    n_jobs: int,
    max_bytes: float,
    progress: Callable[[int], object] = lambda n: None,
    inflations: Sequence[Inflation | None] | None = None,
    finer: Sequence[Callable[[], Placed] | None] | None = None,
) -> list[GeneFits]:
    """Fit several sets of cells, each its own model and genes; the matrix is read once for every block of genes.

    The fits of each part are those of `fit_genes` to the last bit. A part with an inflation has `presence`. A part
    with nodes in covariates of the cells has in `finer` what makes nodes for larger effects
    (`scglmm.inference.cell_level`): its genes that need them are fitted again when all others are done.
    """
    inflations = [None] * len(parts) if inflations is None else inflations
    models = [_Model(*each, options) for each in zip(parts, frames, inflations, strict=True)]
    found = _fit_all(matrix, parts, models, n_jobs, max_bytes, progress)
    for k, again in enumerate([None] * len(parts) if finer is None else finer):
        _fit_again(matrix, parts[k], again, options, found[k], n_jobs, max_bytes)
    return [
        _moderate(GeneFits(part.genes, *each, not_moderated=model.not_moderated), model.frame)
        for part, model, each in zip(parts, models, found, strict=True)
    ]


def _fit_again(
    matrix: Any,
    part: Part,
    finer: Callable[[], Placed] | None,
    options: Options,
    found: tuple[list[Any], np.ndarray, np.ndarray],
    n_jobs: int,
    max_bytes: float,
) -> None:
    """Replace the fits that need other nodes, with ever finer ones."""
    fits, donors, totals = found
    while finer is not None:
        at = np.flatnonzero([fit.status == BEYOND for fit in fits])
        if at.size == 0:
            return
        placed = finer()
        part, finer = replace(part, nodes=placed.nodes), placed.finer
        some = replace(part, genes=part.genes[at])
        model = _Model(part, placed.frame, None, options)
        (more,) = _fit_all(matrix, [some], [model], n_jobs, max_bytes, lambda n: None)
        for i, gene_fit in zip(at, more[0], strict=True):
            fits[i] = gene_fit
        donors[at], totals[at] = more[1:]


def _fit_all(
    matrix: Any,
    parts: Sequence[Part],
    models: Sequence[_Model],
    n_jobs: int,
    max_bytes: float,
    progress: Callable[[int], object],
) -> list[tuple[list[Any], np.ndarray, np.ndarray]]:
    """Fits, levels with counts and counts of the genes of every part."""
    fits: list[list[Any]] = [[None] * part.genes.size for part in parts]
    donors = [np.zeros(part.genes.size, np.int64) for part in parts]
    totals = [np.zeros(part.genes.size) for part in parts]
    with Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator") as parallel:
        for block in gene_blocks(parts, max_bytes):
            inside = [np.flatnonzero(np.isin(part.genes, block)) for part in parts]
            tables = accumulate_parts(
                matrix, [replace(part, genes=part.genes[at]) for part, at in zip(parts, inside, strict=True)], n_jobs
            )
            # in the order of the genes within every part, whatever the other parts are
            pieces = [
                (k, begin) for k, table in enumerate(tables) for begin in range(0, table.genes.size, GENES_PER_TASK)
            ]
            tasks = (delayed(_fit_task)(*models[k].task(tables[k], begin)) for k, begin in pieces)
            for (k, begin), (found, counted, summed) in zip(pieces, parallel(tasks), strict=True):
                for at, gene_fit, n_donors, total in zip(inside[k][begin:], found, counted, summed, strict=False):
                    fits[k][at] = gene_fit
                    donors[k][at] = n_donors
                    totals[k][at] = total
                progress(len(found))
            del tables, tasks
    return list(zip(fits, donors, totals, strict=True))


def _moderate(fits: GeneFits, frame: Frame) -> GeneFits:
    """Estimates under the prior; what belongs to the REML fit stays (theta, variances, log-likelihood, status)."""
    if fits.not_moderated:
        return fits
    found, prior = moderate([fit.profile for fit in fits.fits], np.log(fits.totals / frame.n_total), frame)
    if prior is None:
        return replace(fits, not_moderated=NO_PRIOR)
    moderated = [fit if new is None else _with_prior(fit, new) for fit, new in zip(fits.fits, found, strict=True)]
    return replace(fits, fits=moderated, prior=prior)


def _with_prior(fit: GeneFit, new: Moderated) -> GeneFit:
    """Replace what the prior changes; `d_vcov` keeps its size, which is that of genes without a profile."""
    d_vcov = np.zeros_like(fit.d_vcov)
    d_vcov[: len(new.d_vcov)] = new.d_vcov
    return replace(
        fit,
        beta=new.beta,
        se=new.se,
        df=new.df,
        vcov=new.vcov,
        d_vcov=d_vcov,
        moderated=new.variances,
        profile=None,
    )


class _Model:
    """What all genes of a part share."""

    def __init__(self, part: Part, frame: Frame, inflation: Inflation | None, options: Options) -> None:
        self.frame, self.options = frame, options
        self.inflation, self.exposure = inflation, None
        self.not_moderated = why_not_moderated(
            *(frame, part.genes.size, options.moderate, options.method),
            family=options.family,
            inflated=inflation is not None,
        )
        self.carriers = [find_carrier(frame, contrast) for contrast in np.eye(frame.X.shape[1])]
        self.shift = float(part.nodes.offset.max()) if frame.has_constant else 0.0
        self.grid = part.nodes.grid
        if options.family == "poisson" and inflation is None:
            self.exposure = sum_on_rows(part.nodes, np.exp(part.nodes.offset - self.shift))

    def task(self, tables: Tables, begin: int) -> tuple[Any, ...]:
        """Arguments of `_fit_task` for the genes from `begin` on."""
        piece = tables.take(self.grid, begin, begin + GENES_PER_TASK)
        shared = (self.frame, self.carriers, self.shift, self.options, not self.not_moderated)
        return self.grid, piece, *shared, self.exposure, self.inflation


def _fit_task(
    grid: Grid,
    tables: Tables,
    frame: Frame,
    carriers: list[Carrier | None],
    shift: float,
    options: Options,
    with_profile: bool,
    exposure: np.ndarray | None,
    inflation: Inflation | None,
) -> tuple[list[GeneFit], list[int], list[float]]:
    """Fit the genes of one small table."""
    zi = None if inflation is None else inflation.zi
    responses = Responses(grid, tables, shift, CODES[options.family], exposure, zi)
    fits, donors, totals = [], [], []
    how = {
        "adjust_se": options.adjust_se,
        "null": options.null,
        "limit": options.limit,
        "with_profile": with_profile,
        "n_quad": options.n_quad,
        "zi_back": None if inflation is None else inflation.back,
    }
    for g in range(tables.genes.size):
        data = responses[g]
        fits.append(fit_gene(data, frame, carriers, shift, options.method, **how))
        groups = frame.terms[0].codes if frame.terms else np.zeros(data.y_sum.size, np.int64)
        donors.append(int(np.count_nonzero(np.bincount(groups, data.y_sum) > 0.5)))
        totals.append(float(np.round(data.y_sum.sum())))
    return fits, donors, totals
