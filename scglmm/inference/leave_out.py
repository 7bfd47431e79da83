"""Fits without some of the cells: what an estimate rests on.

The coding of the design stays what it is on all cells (means of ``scale()``, knots of splines, reference levels), so
that estimates with and without are of the same coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from scglmm.compression.nodes import make_nodes
from scglmm.compression.tables import Part, accumulate_parts
from scglmm.engine.responses import Responses
from scglmm.formula import Design
from scglmm.formula.rank import aliased_columns

from .compressed import CODES
from .containment import Carrier, find_carrier, levels_to_spare
from .frame import Frame, make_frame, strata_of
from .gene import fit_gene
from .genes import Options
from .inflation import make_inflation


@dataclass(frozen=True)
class Estimates:
    """Estimates of G genes, NaN where there are none.

    Attributes
    ----------
    beta, se, df
        (G, p) natural log.
    loglik
        (G,) as in `scglmm.inference.gene.GeneFit`.
    known
        Whether the model could be fitted at all: False where too few cells or levels were left.
    lost
        (p,) coefficients that the cells that are left cannot tell from others, whatever the gene.
    """

    beta: np.ndarray
    se: np.ndarray
    df: np.ndarray
    loglik: np.ndarray
    known: bool
    lost: np.ndarray

    def of(self, gene: int) -> Estimates:
        """Estimates of one gene, p each."""
        return replace(self, beta=self.beta[gene], se=self.se[gene], df=self.df[gene], loglik=self.loglik[gene])


def join(parts: Sequence[Estimates]) -> Estimates:
    """Put estimates of several sets of genes from the same cells together."""
    names = ("beta", "se", "df", "loglik")
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **joined)


@dataclass(frozen=True)
class Study:
    """A model on n cells, and their counts of some genes.

    Attributes
    ----------
    design, inflation
        The fixed and random effects on the cells, and the design of the zero inflation if there is one.
    offset
        (n,) natural log.
    counts
        (n, G) counts, by columns.
    options
        How genes are fitted; never moderated.
    tolerance, singularity
        See `scglmm.compression.nodes.make_nodes`.
    """

    design: Design
    inflation: Design | None
    offset: np.ndarray
    counts: sparse.csc_array
    options: Options
    tolerance: float = 1e-10
    singularity: float = np.pi

    @cached_property
    def _known(self) -> dict[tuple[int, bytes], list[Carrier | None]]:
        return {}

    @cached_property
    def stratum(self) -> np.ndarray:
        """(n,) stratum of every cell."""
        more = [] if self.inflation is None else list(self.inflation.X.T)
        return strata_of(self.design, more)[0]

    @cached_property
    def has_intercept(self) -> bool:
        """Whether the first column of the design is the intercept."""
        return bool((self.design.X[:, 0] == 1).all())

    def fit(
        self,
        genes: np.ndarray,
        kept: np.ndarray | None = None,
    ) -> Estimates:
        """Fit some genes to the cells that are kept.

        Parameters
        ----------
        genes
            Columns of `counts`.
        kept
            (n,) bool; None for all cells.
        """
        p = self.design.X.shape[1]
        rows = np.arange(self.offset.size) if kept is None else np.flatnonzero(kept)
        beta, se, df = np.full((3, genes.size, p), np.nan)
        nothing = Estimates(beta, se, df, np.full(genes.size, np.nan), False, np.zeros(p, bool))
        if not rows.size:
            return nothing
        _, at, stratum = np.unique(self.stratum[rows], return_index=True, return_inverse=True)
        first = rows[at]
        aliased = aliased_columns(self.design.X[first], self.has_intercept)
        lost = np.zeros(p, bool)
        for column, parts in aliased.items():
            lost[[column, *parts]] = True
        used = np.setdiff1d(np.arange(p), list(aliased))
        design = self.design if not aliased else replace(self.design, X=np.ascontiguousarray(self.design.X[:, used]))
        n_cells = np.bincount(stratum)
        frame = make_frame(design, first, n_cells)
        enough = all(levels_to_spare(frame, r) > 0 for r in range(len(frame.terms)))
        zi = self.inflation
        if not enough or (zi is not None and aliased_columns(zi.X[first], bool((zi.X[:, 0] == 1).all()))):
            return replace(nothing, lost=lost)
        nodes = make_nodes(stratum, self.offset[rows], self.tolerance, singularity=self.singularity)
        carriers = self._carriers(first, frame)
        inflation = None if zi is None else make_inflation(zi, first, n_cells)
        tables = accumulate_parts(self.counts, [Part(rows, nodes, genes, zi is not None)])[0]
        shift = float(nodes.offset.max()) if frame.has_constant else 0.0
        exposure = np.bincount(stratum, np.exp(nodes.offset - shift), n_cells.size)
        code = CODES[self.options.family]
        responses = Responses(nodes.grid, tables, shift, code, exposure, None if zi is None else inflation.zi)
        how: dict[str, Any] = {
            "null": False,
            "n_quad": self.options.n_quad,
            "zi_back": None if zi is None else inflation.back,
        }
        found = [fit_gene(responses[g], frame, carriers, shift, self.options.method, **how) for g in range(genes.size)]
        full = np.full((3, genes.size, p), np.nan)
        for g, one in enumerate(found):
            full[:, g, used] = one.beta, one.se, one.df
        full[:, :, lost] = np.nan
        return Estimates(full[0], full[1], full[2], np.array([one.loglik for one in found]), True, lost)

    def _carriers(self, first: np.ndarray, frame: Frame) -> list[Carrier | None]:
        """Find what carries each coefficient, once for every set of strata: how many cells they have is no matter."""
        key = first.size, self.stratum[first].tobytes()
        if key not in self._known:
            self._known[key] = [find_carrier(frame, contrast) for contrast in np.eye(frame.X.shape[1])]
        return self._known[key]
