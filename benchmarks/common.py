"""What the benchmarks share: arguments, data, and the pieces of a run timed one by one."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

import anndata as ad
import numpy as np
import scipy.sparse as sp

import scglmm
from scglmm.compression.counts import canonical
from scglmm.compression.nodes import make_nodes
from scglmm.compression.tables import accumulate
from scglmm.engine.responses import Responses
from scglmm.formula import build_design, parse_formula
from scglmm.inference.containment import find_carrier
from scglmm.inference.frame import make_frame, strata_of
from scglmm.inference.gene import fit_gene

FORMULA = "~ offset(log(libSize)) + Dx + Age + Sex + (1|SubID)"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Parser with the options that every benchmark on real data has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--h5ad", help="counts; the bundled simulated data by default")
    parser.add_argument("--formula", default=FORMULA)
    parser.add_argument("--genes", type=int, help="use only the first genes")
    return parser


def load(options: argparse.Namespace) -> ad.AnnData:
    """Read the data before any clock starts."""
    adata = ad.read_h5ad(options.h5ad) if options.h5ad else scglmm.datasets.psychad()
    return adata[:, : options.genes].copy() if options.genes else adata


def tile(adata: ad.AnnData, times: int) -> ad.AnnData:
    """Repeat the genes."""
    tiled = ad.AnnData(sp.hstack([adata.X] * times, format="csr"), obs=adata.obs.copy())
    tiled.var_names = [f"{name}_{i}" for i in range(times) for name in adata.var_names]
    return tiled


@dataclass
class Timed:
    """Seconds of each fit, and the log-likelihoods."""

    seconds: list[float] = field(default_factory=list)
    loglik: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        ms = 1e3 * np.array(self.seconds)
        return f"median {np.median(ms):.2f} ms, quartiles {np.quantile(ms, 0.25):.2f} to {np.quantile(ms, 0.75):.2f} ms"


def time_fits(adata: ad.AnnData, formula: str, method: str) -> Timed:
    """Fit gene by gene on one thread, with standard errors and degrees of freedom, compression excluded."""
    design = build_design(parse_formula(formula), adata.obs)
    stratum, first = strata_of(design)
    nodes = make_nodes(stratum, design.offset)
    frame = make_frame(design, first, nodes.n_cells)
    carriers = [find_carrier(frame, contrast) for contrast in np.eye(frame.X.shape[1])]
    tables = accumulate(canonical(adata.X), np.arange(adata.n_obs), nodes, np.arange(adata.n_vars))
    shift = float(design.offset.max())
    responses = Responses(nodes, tables, shift)
    fit_gene(responses[0], frame, carriers, shift, method, null=False)
    timed = Timed()
    for g in range(adata.n_vars):
        data = responses[g]
        start = time.perf_counter()
        fitted = fit_gene(data, frame, carriers, shift, method, null=False)
        timed.seconds.append(time.perf_counter() - start)
        timed.loglik.append(fitted.loglik)
    return timed
