"""Check `scglmm.power` against simulation: share of p < alpha among genes simulated with an effect, and fitted."""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

import scglmm

STUDIES = [
    ("between", 6, 200, 0.0, 0.5, 0.5, 1.0, 0.2, 0.0, 1.2),
    ("between", 8, 200, 0.0, 0.5, 0.5, 1.0, 0.2, 0.0, 1.0),
    ("between", 12, 200, 0.0, 0.5, 0.5, 1.0, 0.2, 0.0, 0.8),
    ("between", 20, 200, 0.0, 0.5, 0.5, 1.0, 0.2, 0.0, 0.6),
    ("between", 40, 200, 0.0, 0.5, 0.5, 1.0, 0.2, 0.0, 0.4),
    ("between", 6, 100, 0.0, 0.5, 0.05, 1.0, 0.1, 0.0, 1.6),
    ("between", 20, 50, 0.0, 0.5, 0.1, 0.5, 0.2, 0.0, 0.9),
    ("between", 20, 500, 0.0, 0.5, 0.02, 1.0, 0.2, 0.0, 0.8),
    ("between", 20, 200, 0.0, 0.5, 5.0, 2.0, 0.5, 0.0, 0.9),
    ("between", 20, 100, 0.0, 0.5, 0.2, 0.3, 0.05, 0.0, 0.5),
    ("between", 12, 200, 0.8, 0.5, 0.5, 1.0, 0.2, 0.0, 0.9),
    ("between", 20, 100, 1.2, 0.5, 0.1, 1.0, 0.2, 0.0, 0.8),
    ("between", 16, 200, 0.0, 0.25, 0.5, 1.0, 0.2, 0.0, -0.8),
    ("within", 4, 200, 0.0, 0.5, 0.5, 1.0, 0.2, 0.1, 0.8),
    ("within", 8, 200, 0.0, 0.5, 0.5, 1.0, 0.2, 0.1, 0.5),
    ("within", 8, 200, 0.0, 0.5, 0.5, 1.0, 0.2, 0.02, 0.35),
    ("within", 8, 200, 0.0, 0.2, 0.5, 1.0, 0.2, 0.05, -0.5),
    ("within", 12, 100, 0.8, 0.5, 0.2, 0.5, 0.3, 0.1, 0.7),
    ("within", 8, 100, 0.8, 0.5, 0.5, 1.0, 0.2, 0.0, 0.3),
    ("within", 20, 50, 0.0, 0.5, 0.1, 1.0, 0.2, 0.1, 0.6),
]
NAMES = [
    *("design", "n_donors", "n_cells", "cells_cv", "fraction"),
    *("mean", "theta", "var_donor", "var_effect", "log_fc"),
]


def simulate(study: dict, n_genes: int, rng: np.random.Generator) -> ad.AnnData:
    """Draw genes with the same parameters, independently; the cells of each donor are the same for all genes."""
    n, within = study["n_donors"], study["design"] == "within"
    spread = np.log1p(study["cells_cv"] ** 2)
    cells = study["n_cells"] * np.exp(rng.normal(-spread / 2, np.sqrt(spread), n))
    cells = np.maximum(cells.round().astype(int), 2)
    donor = np.repeat(np.arange(n), cells)
    share = study["fraction"]
    if within:
        x = np.concatenate([np.arange(m) < max(1, round(m * share)) for m in cells]).astype(int)
    else:
        x = (np.arange(n) < round(n * share)).astype(int)[donor]
    omega = study["var_effect"] / 2
    base = np.log(study["mean"]) - (study["var_donor"] + omega) / 2
    u = rng.normal(0, np.sqrt(study["var_donor"]), (n, n_genes))
    e = rng.normal(0, np.sqrt(omega), (n, 2, n_genes))
    mu = np.exp(base + study["log_fc"] * x[:, None] + u[donor] + e[donor, x])
    counts = rng.poisson(mu * rng.gamma(study["theta"], 1 / study["theta"], mu.shape))
    obs = pd.DataFrame({"donor": [f"D{d}" for d in donor], "x": np.array(["a", "b"])[x], "size": 1.0})
    obs.index = obs.index.astype(str)
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs)


def run(study: dict, n_genes: int, n_sets: int, seed: int) -> dict:
    """Fit the genes of several data sets, and compare."""
    rng = np.random.default_rng(seed)
    random = "(1|donor) + (1|donor:x)" if study["design"] == "within" else "(1|donor)"
    tables = []
    for _ in range(n_sets):
        adata = simulate(study, n_genes, rng)
        scglmm.tl.nbmm(adata, f"~ offset(log(size)) + x + {random}", method="reml", moderate=False)
        tables.append(scglmm.get.nbmm_df(adata, "x[T.b]"))
    table = pd.concat(tables)
    planned = scglmm.power(**study).iloc[0]
    fitted = table["pval"].notna()
    share = [float((t["pval"] < 0.05).mean()) for t in tables]
    return study | {
        "singular": round(float((table["status"] == "singular").mean()), 3),
        "planned_se": round(planned["se"], 4),
        "median_se": round(float(table["se"].median()), 4),
        "sd_of_estimates": round(float(table.loc[fitted, "log_fc"].std()), 4),
        "mean_estimate": round(float(table["log_fc"].mean()), 4),
        "planned_df": round(planned["df"], 2),
        "median_df": round(float(table["df"].median()), 2),
        "planned_power": round(planned["power"], 4),
        "simulated_power": round(float(np.mean(share)), 4),
        "mc_error": round(float(np.std(share, ddof=1) / np.sqrt(n_sets)) if n_sets > 1 else np.nan, 4),
    }


def main() -> None:
    """Run all studies, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=100, help="genes of each data set")
    parser.add_argument("--sets", type=int, default=20, help="data sets of each study")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sc.settings.verbosity = 0
    rows = [
        run(dict(zip(NAMES, s, strict=True)), options.genes, options.sets, options.seed + i)
        for i, s in enumerate(STUDIES)
    ]
    table = pd.DataFrame(rows)
    print(table.to_string())
    if options.out:
        table.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
