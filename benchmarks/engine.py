"""The layers below `scglmm.tl` one by one: nodes, compression, the fit of one gene.

Calls inner functions of scglmm, which may change from version to version; `benchmarks.regression` therefore uses only
`scglmm.tl.nbmm`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import anndata as ad
import numpy as np

from scglmm.compression.counts import canonical
from scglmm.compression.nodes import make_nodes
from scglmm.compression.tables import accumulate
from scglmm.engine.responses import Responses
from scglmm.formula import build_design, parse_formula
from scglmm.inference.containment import find_carrier
from scglmm.inference.frame import make_frame, strata_of
from scglmm.inference.gene import GeneFit, fit_gene


class Model:
    """A model on compressed data, ready to fit gene by gene on one thread.

    Parameters
    ----------
    adata, formula
        The data and the model.
    n_jobs
        Threads of the compression.

    Attributes
    ----------
    seconds
        CPU seconds that `"design"`, `"nodes"` and `"compression"` took, summed over threads.
    nodes
        The nodes.
    """

    def __init__(self, adata: ad.AnnData, formula: str, n_jobs: int = 1) -> None:
        clock = [time.process_time()]
        design = build_design(parse_formula(formula), adata.obs)
        stratum, first = strata_of(design)
        clock.append(time.process_time())
        self.nodes = make_nodes(stratum, design.offset)
        clock.append(time.process_time())
        self._frame = make_frame(design, first, self.nodes.n_cells)
        self._carriers = [find_carrier(self._frame, contrast) for contrast in np.eye(self._frame.X.shape[1])]
        matrix = canonical(adata.X)
        tables = accumulate(matrix, np.arange(adata.n_obs), self.nodes, np.arange(adata.n_vars), n_jobs)
        clock.append(time.process_time())
        self._shift = float(design.offset.max())
        self._responses = Responses(self.nodes, tables, self._shift)
        self.seconds = dict(zip(("design", "nodes", "compression"), np.diff(clock).tolist(), strict=True))

    def fit(self, gene: int, method: str) -> GeneFit:
        """Fit one gene with standard errors and degrees of freedom."""
        return fit_gene(self._responses[gene], self._frame, self._carriers, self._shift, method, null=False)


@dataclass
class Timed:
    """Seconds of each fit, and the log-likelihoods."""

    seconds: list[float] = field(default_factory=list)
    loglik: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        ms = 1e3 * np.array(self.seconds)
        return f"median {np.median(ms):.2f} ms, quartiles {np.quantile(ms, 0.25):.2f} to {np.quantile(ms, 0.75):.2f} ms"


def time_fits(model: Model, genes: np.ndarray, method: str) -> Timed:
    """Fit gene by gene, compression excluded; CPU seconds, which other programs on the machine hardly change."""
    model.fit(int(genes[0]), method)  # compiled code, warm
    timed = Timed()
    for g in genes:
        start = time.process_time()
        fitted = model.fit(int(g), method)
        timed.seconds.append(time.process_time() - start)
        timed.loglik.append(fitted.loglik)
    return timed
