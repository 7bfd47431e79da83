"""Seeded toy data: an AnnData with counts, and made-up but coherent results written by `write_results`.

Coherent means that the numbers agree with each other (statistic = estimate / standard error, p-values follow from it,
fractions sum to 1, counts follow from the parameters), not that a model was fitted.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse, stats

from scglmm.results import GeneTable, write_results

COEFFICIENTS = ["Intercept", "Dx[T.AD]", "Dx[T.MCI]", "Sex[T.M]", "Age"]
SOURCES = ["Dx", "Age", "Sex", "SubID", "CountNoise", "Residuals"]


def make_obs(n_cells: int, n_donors: int, rng: np.random.Generator) -> pd.DataFrame:
    """Cells of `n_donors` donors with donor-level covariates."""
    donor = np.sort(np.arange(n_cells) % n_donors)
    dx = np.array(["Control", "AD", "MCI"])[np.arange(n_donors) % 3]
    sex = np.array(["F", "M"])[(np.arange(n_donors) // 3) % 2]
    age = np.round(rng.uniform(60, 95, n_donors), 1)
    return pd.DataFrame(
        {
            "SubID": pd.Categorical([f"D{d:02d}" for d in donor]),
            "Dx": pd.Categorical(dx[donor], categories=["Control", "AD", "MCI"]),
            "Sex": pd.Categorical(sex[donor]),
            "Age": age[donor],
            "libSize": rng.lognormal(8, 0.4, n_cells),
        },
        index=[f"c{i}" for i in range(n_cells)],
    )


def benjamini_hochberg(pval: np.ndarray) -> np.ndarray:
    """Adjusted p-values of one column; NaN stays."""
    out = np.full(pval.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(pval))
    if tested.size:
        out[tested] = stats.false_discovery_control(pval[tested])
    return out


def make_table(
    genes: pd.Index,
    seed: int = 0,
    coefficients: list[str] | None = None,
    sources: list[str] | None = None,
    share_significant: float = 0.15,
    share_untested: float = 0.05,
    dof: float = 240.0,
) -> GeneTable:
    """Results of one group: a share of the genes with effects, a share that could not be tested."""
    rng = np.random.default_rng(seed)
    coefficients = COEFFICIENTS if coefficients is None else coefficients
    sources = SOURCES if sources is None else sources
    n, p = len(genes), len(coefficients)

    log_mean = rng.normal(-1.2, 1.6, n)
    theta = np.exp(rng.normal(0.3, 0.8, n))
    var_donor = np.where(rng.random(n) < 0.08, 0.0, np.exp(rng.normal(-2.0, 0.9, n)))
    # standard errors fall with the mean and grow with the donor variance, as in real data
    se = np.sqrt(0.004 * np.exp(-log_mean) + (0.02 + var_donor) / 50)[:, None] * rng.lognormal(0, 0.1, (n, p))
    effects = rng.normal(0, 0.45, (n, p)) * (rng.random((n, p)) < share_significant)
    coef = effects + se * rng.standard_normal((n, p))
    for j, name in enumerate(coefficients):
        if name in {"Intercept", "(Intercept)"}:
            coef[:, j] = log_mean - 8
        elif "[" not in name:
            coef[:, j] /= 20
            se[:, j] /= 20
    stat = coef / se
    pval = 2 * stats.t.sf(np.abs(stat), dof)

    status = np.where(var_donor == 0, "singular", "ok").astype(object)
    bad = rng.permutation(n)[: round(share_untested * n)]
    status[bad] = rng.choice(["separated", "too_few_counts", "not_converged"], len(bad))
    for array in (stat, pval):
        array[bad] = np.nan
    lost = bad[status[bad] != "separated"]
    coef[lost] = se[lost] = np.nan
    padj = np.column_stack([benjamini_hochberg(pval[:, j]) for j in range(p)])

    vcov = np.zeros((n, p * (p + 1) // 2))
    for i in range(p):
        for j in range(i + 1):
            vcov[:, i * (i + 1) // 2 + j] = se[:, i] * se[:, j] * (1.0 if i == j else 0.1)

    fractions = np.column_stack(
        [_source(name, n, var_donor, theta, log_mean, rng) for name in sources],
    )
    fractions /= fractions.sum(axis=1, keepdims=True)
    fractions[lost] = np.nan

    fit = pd.DataFrame(
        {
            "theta": theta,
            "var[SubID]": var_donor,
            "loglik": -rng.uniform(500, 5000, n),
            "mean": np.exp(log_mean),
            "n_cells": rng.integers(10, 5000, n),
            "n_donors": 249,
            "n_eval": rng.integers(8, 25, n),
            "grad": rng.uniform(0, 1e-6, n),
            "status": status,
        },
        index=genes,
    )
    return GeneTable(
        genes=genes,
        coefficients=list(coefficients),
        coef=coef,
        se=se,
        stat=stat,
        dof=np.where(np.isnan(coef), np.nan, dof),
        pval=pval,
        padj=padj,
        vcov=vcov,
        varpart=pd.DataFrame(fractions, columns=sources, index=genes),
        fit=fit,
    )


def make_info(**changes: object) -> dict:
    """What `tl.nbmm` tells about a fit."""
    info = {
        "formula": "~ offset(log(libSize)) + Dx + Age + Sex + (1|SubID)",
        "method": "reml",
        "family": "nbinom2",
        "coefficients": COEFFICIENTS,
        "references": {"Dx": "Control", "Sex": "F"},
        "factors": {"Dx": ["Control", "AD", "MCI"], "Sex": ["F", "M"]},
        "groupings": ["SubID"],
        "n_cells": np.int64(120),
        "n_donors": 12,
        "n_strata": 12,
        "status_counts": {"ok": 50, "singular": 10},
        "versions": {"scglmm": "0.1.0"},
        "term_names": ("Dx", "Age", "Sex"),
        "params": {
            "groupby": "Dx",
            "reference": "Control",
            "method": "nbmm-reml",
            "use_raw": False,
            "layer": None,
            "corr_method": "benjamini-hochberg",
        },
    }
    return info | changes


def make_adata(n_genes: int = 60, n_cells: int = 120, n_donors: int = 12, seed: int = 0) -> AnnData:
    """Counts without results."""
    rng = np.random.default_rng(seed)
    counts = rng.negative_binomial(1, 1 / (1 + rng.lognormal(-0.5, 1, n_genes)), (n_cells, n_genes))
    return AnnData(
        X=sparse.csr_matrix(counts.astype(np.float32)),
        obs=make_obs(n_cells, n_donors, rng),
        var=pd.DataFrame({"symbol": [f"SYM{g}" for g in range(n_genes)]}, index=[f"GENE{g}" for g in range(n_genes)]),
    )


def fitted(n_genes: int = 60, seed: int = 0, key: str = "nbmm", **table: object) -> AnnData:
    """Counts with a result."""
    adata = make_adata(n_genes=n_genes, seed=seed)
    write_results(adata, key, {None: make_table(adata.var_names, seed=seed, **table)}, make_info())
    return adata


def fitted_groups(n_genes: int = 60, seed: int = 0, key: str = "nbmm") -> AnnData:
    """Counts with a result for two groups, of which one lacks a level, and a third group that was skipped."""
    adata = make_adata(n_genes=n_genes, seed=seed)
    fewer = [c for c in COEFFICIENTS if c != "Dx[T.MCI]"]
    tables = {
        "T/NK": make_table(adata.var_names, seed=seed),
        "B|naive": make_table(adata.var_names, seed=seed + 1, coefficients=fewer),
    }
    groups = {"T/NK": "ok", "Mono": "skipped: Sex is constant", "B|naive": "ok"}
    write_results(adata, key, tables, make_info(groups=groups))
    return adata


def _source(
    name: str,
    n: int,
    var_donor: np.ndarray,
    theta: np.ndarray,
    log_mean: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Unscaled variance of one source over the genes."""
    if name == "SubID":
        return var_donor
    if name == "CountNoise":
        return np.log1p(np.exp(-log_mean))
    if name == "Residuals":
        return np.log1p(1 / theta)
    return np.exp(rng.normal(-5, 1.5, n))
