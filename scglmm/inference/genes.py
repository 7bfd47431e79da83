"""All genes: blocks that fit in memory are compressed one after another, and their genes fitted in parallel.

Chunks of genes are fixed, whatever the number of workers, and no fit sees another, so results do not depend on the
number of workers or on which other genes are there; moderation, which follows the fits, depends on all genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import joblib
import numpy as np

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
from .pieces import Piece
from .prior import Prior
from .tasks import run_tasks

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


class Saved(Protocol):
    """Fits that are kept elsewhere as they come in, see `scglmm.tl._checkpoint`."""

    def load(self) -> Iterable[Piece]:
        """Fits of an earlier call."""

    def add(self, piece: Piece) -> None:
        """Keep some more."""


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
    return fit_parts(
        *(matrix, [part], [frame], options), n_jobs=n_jobs, max_bytes=max_bytes, progress=progress, finer=[finer]
    )[0]


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
    saved: Saved | None = None,
    shares: Sequence[tuple[int, np.ndarray]] | None = None,
) -> list[GeneFits]:
    """Fit several sets of cells, each its own model and genes; the matrix is read once for every block of genes.

    The fits of each part are those of `fit_genes` to the last bit. A part with an inflation has `presence`. A part
    with nodes in covariates of the cells has in `finer` what makes nodes for larger effects
    (`scglmm.inference.cell_level`): its genes that need them are fitted again when all others are done. Genes that
    are in `saved` are not fitted, and not read, again; all others are added to it.

    Parts may share a model, on other nodes for other genes: `shares` has for every part the number of its fits among
    those that are returned, and where its genes stand among them.
    """
    inflations = [None] * len(parts) if inflations is None else inflations
    if shares is None:
        shares = [(k, np.arange(part.genes.size)) for k, part in enumerate(parts)]
    whole = [_Whole(shares, k, parts) for k in range(1 + max((k for k, _ in shares), default=-1))]
    carriers = {id(frame): _carriers(frame) for frame in {id(frame): frame for frame in frames}.values()}
    models = [
        _Model(part, frame, inflation, options, whole[k].genes.size, carriers[id(frame)])
        for part, frame, inflation, (k, _) in zip(parts, frames, inflations, shares, strict=True)
    ]
    found = _fit_all(matrix, parts, models, n_jobs, max_bytes, progress, saved)
    for k, again in enumerate([None] * len(parts) if finer is None else finer):
        _fit_again(matrix, parts[k], again, options, found[k], n_jobs, max_bytes, whole[shares[k][0]].genes.size)
    return [_moderate(each.join(found, models[each.first].not_moderated), frames[each.first]) for each in whole]


class _Whole:
    """The genes of all parts that share a model."""

    def __init__(self, shares: Sequence[tuple[int, np.ndarray]], number: int, parts: Sequence[Part]) -> None:
        self.at = {k: at for k, (of, at) in enumerate(shares) if of == number}
        self.first = min(self.at)
        self.genes = np.empty(sum(at.size for at in self.at.values()), np.int64)
        for k, at in self.at.items():
            self.genes[at] = parts[k].genes

    def join(self, found: Sequence[_Found], not_moderated: str) -> GeneFits:
        """Put the fits of all parts in one order."""
        joined = _Found(self.genes.size)
        for k, at in self.at.items():
            joined.add(Piece(k, at, found[k].fits, found[k].donors, found[k].totals))
        return GeneFits(self.genes, joined.fits, joined.donors, joined.totals, not_moderated=not_moderated)


def _fit_again(
    matrix: Any,
    part: Part,
    finer: Callable[[], Placed] | None,
    options: Options,
    found: _Found,
    n_jobs: int,
    max_bytes: float,
    n_genes: int,
) -> None:
    """Replace the fits that need other nodes, with ever finer ones."""
    while finer is not None:
        at = np.flatnonzero([fit.status == BEYOND for fit in found.fits])
        if at.size == 0:
            return
        placed = finer()
        part, finer = replace(part, nodes=placed.nodes), placed.finer
        some = replace(part, genes=part.genes[at])
        model = _Model(part, placed.frame, None, options, n_genes, _carriers(placed.frame))
        (more,) = _fit_all(matrix, [some], [model], n_jobs, max_bytes)
        found.add(Piece(0, at, more.fits, more.donors, more.totals))


def _fit_all(
    matrix: Any,
    parts: Sequence[Part],
    models: Sequence[_Model],
    n_jobs: int,
    max_bytes: float,
    progress: Callable[[int], object] = lambda n: None,
    saved: Saved | None = None,
) -> list[_Found]:
    """Fit the genes of every part that are not in `saved`."""
    found = [_Found(part.genes.size) for part in parts]
    for piece in () if saved is None else saved.load():
        found[piece.part].add(piece)
        progress(piece.at.size)
    left = [np.flatnonzero(~each.known) for each in found]
    threads = min(n_jobs, joblib.cpu_count())  # the tables are summed here, wherever the genes are fitted
    for block in gene_blocks(
        [replace(part, genes=part.genes[at]) for part, at in zip(parts, left, strict=True)], max_bytes
    ):
        inside = [at[np.isin(part.genes[at], block)] for part, at in zip(parts, left, strict=True)]
        tables = accumulate_parts(
            matrix, [replace(part, genes=part.genes[at]) for part, at in zip(parts, inside, strict=True)], threads
        )
        # in the order of the genes within every part, whatever the other parts are
        pieces = [(k, begin) for k, table in enumerate(tables) for begin in range(0, table.genes.size, GENES_PER_TASK)]
        tasks = [partial(models[k].task, tables[k], begin) for k, begin in pieces]
        with closing(run_tasks(_fit_task, tasks, n_jobs)) as results:
            for (k, begin), (fits, donors, totals) in zip(pieces, results, strict=True):
                at = inside[k][begin : begin + GENES_PER_TASK]
                piece = Piece(k, at, fits, np.array(donors, np.int64), np.array(totals))
                found[k].add(piece)
                if saved is not None:
                    saved.add(piece)
                progress(at.size)
        del tables, tasks
    return found


class _Found:
    """Fits of the genes of a part while they come in."""

    def __init__(self, n: int) -> None:
        self.known = np.zeros(n, bool)
        self.fits: list[Any] = [None] * n
        self.donors = np.zeros(n, np.int64)
        self.totals = np.zeros(n)

    def add(self, piece: Piece) -> None:
        """Put the fits of some genes in their places."""
        self.known[piece.at] = True
        self.donors[piece.at], self.totals[piece.at] = piece.donors, piece.totals
        for at, fit in zip(piece.at, piece.fits, strict=True):
            self.fits[at] = fit


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


def _carriers(frame: Frame) -> list[Carrier | None]:
    """Find what carries every coefficient."""
    return [find_carrier(frame, contrast) for contrast in np.eye(frame.X.shape[1])]


class _Model:
    """What all genes of a part share; `n_genes` are fitted with this model."""

    def __init__(
        self,
        part: Part,
        frame: Frame,
        inflation: Inflation | None,
        options: Options,
        n_genes: int,
        carriers: list[Carrier | None],
    ) -> None:
        self.frame, self.options, self.carriers = frame, options, carriers
        self.inflation, self.exposure = inflation, None
        self.not_moderated = why_not_moderated(
            *(frame, n_genes, options.moderate, options.method),
            family=options.family,
            inflated=inflation is not None,
        )
        self.shift = float(part.nodes.offset.max()) if frame.has_constant else 0.0
        self.grid = part.nodes.grid
        if options.family == "poisson" and inflation is None:
            self.exposure = sum_on_rows(part.nodes, np.exp(part.nodes.offset - self.shift))

    def task(self, tables: Tables, begin: int) -> _Task:
        """Give `_fit_task` what it needs for the genes from `begin` on; no cells among it."""
        return _Task(
            grid=self.grid,
            tables=tables.take(self.grid, begin, begin + GENES_PER_TASK),
            frame=self.frame,
            carriers=self.carriers,
            shift=self.shift,
            options=self.options,
            with_profile=not self.not_moderated,
            exposure=self.exposure,
            inflation=self.inflation,
        )


@dataclass(frozen=True)
class _Task:
    """A few genes to fit.

    One object and not several arguments: dask would keep large ones apart, each in one worker, and lose it with that.
    """

    grid: Grid
    tables: Tables
    frame: Frame
    carriers: list[Carrier | None]
    shift: float
    options: Options
    with_profile: bool
    exposure: np.ndarray | None
    inflation: Inflation | None


def _fit_task(task: _Task) -> tuple[list[GeneFit], list[int], list[float]]:
    """Fit the genes of one small table."""
    options, tables, frame, inflation = task.options, task.tables, task.frame, task.inflation
    zi = None if inflation is None else inflation.zi
    responses = Responses(task.grid, tables, task.shift, CODES[options.family], task.exposure, zi)
    fits, donors, totals = [], [], []
    how: dict[str, Any] = {
        "adjust_se": options.adjust_se,
        "null": options.null,
        "limit": options.limit,
        "with_profile": task.with_profile,
        "n_quad": options.n_quad,
        "zi_back": None if inflation is None else inflation.back,
    }
    for g in range(tables.genes.size):
        data = responses[g]
        fits.append(fit_gene(data, frame, task.carriers, task.shift, options.method, **how))
        groups = frame.terms[0].codes if frame.terms else np.zeros(data.y_sum.size, np.int64)
        donors.append(int(np.count_nonzero(np.bincount(groups, data.y_sum) > 0.5)))
        totals.append(float(np.round(data.y_sum.sum())))
    return fits, donors, totals
