"""How much donors differ in real cells: the distribution of the donor standard deviation over genes.

``python -m benchmarks.calibration.variances --kang kang18_bcells.h5ad``. The estimate of a gene's variance says
little with eight donors: half of them are 0. The distribution of the true ones is estimated over genes instead, by
nonparametric maximum likelihood (Kiefer and Wolfowitz 1956) on a grid: each gene contributes its restricted likelihood
as a function of sigma, theta kept at its estimate, and the EM algorithm finds the weights. The simulations use values
of this kind (docs/calibration.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from scglmm.compression.nodes import make_nodes
from scglmm.compression.tables import accumulate
from scglmm.engine.fit import FAILED, fit
from scglmm.engine.laplace import laplace
from scglmm.engine.layout import make_work
from scglmm.engine.responses import Responses
from scglmm.formula import build_design, parse_formula
from scglmm.inference.frame import make_frame, strata_of

from .realdata import control_cells
from .report import table

GRID = np.array([1e-6, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8, 1.1, 1.6, 2.2])
BINS = 5  # of the mean count, as many genes in each
ROUNDS = 1500  # of EM


def main(arguments: list[str] | None = None) -> None:
    """Print the distributions by mean count."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration.variances", description=__doc__)
    parser.add_argument("--kang", type=Path, required=True, help="kang18_bcells.h5ad")
    options = parser.parse_args(arguments)
    counts, obs = control_cells(options.kang)
    mean = np.asarray(counts.mean(axis=0)).ravel()
    likelihood, theta = profiles(ad.AnnData(counts, obs=obs), "~ offset(log(libSize)) + (1|donor)")
    rows = []
    for _, genes in pd.Series(range(mean.size)).groupby(pd.qcut(mean, BINS, labels=False)):
        genes = genes.to_numpy()[np.isfinite(likelihood[genes]).all(axis=1)]
        weight = mixing(likelihood[genes])
        cumulative = np.cumsum(weight)
        rows.append(
            [f"{mean[genes].min():.3f} to {mean[genes].max():.3g}", f"{genes.size:,}"]
            + [f"{weight[:2].sum():.2f}"]
            + [f"{GRID[np.searchsorted(cumulative, q)]:.2g}" for q in (0.5, 0.9, 0.99)]
            + [f"{q:.2g}" for q in np.quantile(theta[genes], [0.25, 0.5, 0.75])]
        )
    header = ["counts per cell", "genes", "share of sd below 0.05", "median sd", "90%", "99%"]
    print(table([*header, "theta, 25%", "50%", "75%"], rows))


def profiles(adata: ad.AnnData, formula: str) -> tuple[np.ndarray, np.ndarray]:
    """Restricted likelihood of every gene on the grid (largest 1), and its theta."""
    design = build_design(parse_formula(formula), adata.obs)
    stratum, first = strata_of(design)
    nodes = make_nodes(stratum, design.offset)
    frame = make_frame(design, first, nodes.n_cells)
    genes = np.arange(adata.n_vars)
    tables = accumulate(adata.X, np.arange(adata.n_obs), nodes, genes)
    responses = Responses(nodes.grid, tables, float(design.offset.max()))
    work = make_work(frame.structure, frame.Q)
    values = np.full((genes.size, GRID.size), np.nan)
    theta = np.full(genes.size, np.nan)
    for g in genes:
        data = responses[g]
        rate = np.log(data.y_sum.sum() / float(data.nodes[0] @ data.nodes[1]))
        fitted = fit(data, frame.structure, frame.Q, True, rate * frame.intercept, curvature=False)
        if fitted.status == FAILED:
            continue
        theta[g] = np.exp(fitted.log_theta)
        for k, sd in enumerate(GRID):
            par, v, gradient = np.array([sd, fitted.log_theta]), np.zeros(fitted.v.size), np.zeros(2)
            values[g, k] = laplace(
                data, frame.structure, frame.Q, True, True, par, fitted.beta.copy(), v, gradient, work
            )
    return np.exp(values - values.max(axis=1, keepdims=True)), theta


def mixing(likelihood: np.ndarray) -> np.ndarray:
    """Weights of the grid that maximise the likelihood of all genes, by EM."""
    weight = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    for _ in range(ROUNDS):
        posterior = likelihood * weight
        weight = (posterior / posterior.sum(axis=1, keepdims=True)).mean(axis=0)
    return weight


if __name__ == "__main__":
    main()
