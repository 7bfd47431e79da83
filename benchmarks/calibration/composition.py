"""Offsets when one programme of genes takes 30% of the counts in one condition.

``python -m benchmarks.calibration.composition``: in treated donors 5% of the genes go up until they hold 30% of the
counts; nothing else changes. Relative to the total count every other gene then seems to go down. Compared are the
offsets

* `total counts`: the log of the cell's total count, the default;
* `stable genes`: the same, plus for every sample the log of the share of its counts that lies in stable genes
  (`scglmm.pp.stable_size`); no labels are used;
* `true size`: what the cells were simulated with.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

import scglmm

from . import rbulk
from .bulk import Pseudobulk, pseudobulk
from .methods import can_moderate
from .metrics import ratio
from .report import percent, table
from .scenarios import Scenario
from .simulate import COEFFICIENT, DataSet, draw_cells, draw_counts, draw_truth

PROGRAMME = 0.05  # share of the genes
TAKES = 0.3  # of the counts of treated cells
FORMULA = "~ offset(log_size) + treatment + (1|donor)"


def main(arguments: list[str] | None = None) -> None:
    """Simulate, test the genes outside the programme, print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration.composition", description=__doc__)
    parser.add_argument("--datasets", type=int, default=20)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("calibration-results/composition"))
    parser.add_argument("--smoke", action="store_true", help="two small data sets: whether it runs")
    options = parser.parse_args(arguments)
    n, genes = (2, 300) if options.smoke else (options.datasets, options.genes)
    result = pd.concat([study(index, genes) for index in range(n)], ignore_index=True)
    summary = summarise(result)
    options.out.mkdir(parents=True, exist_ok=True)
    summary.to_csv(options.out / "composition.csv", index=False, float_format="%.5g")
    rows = [
        [r["method"], r["offset"], percent(r["type1"], r["type1_se"]), f"{r['bias']:+.3f} ({r['bias_se']:.3f})"]
        for _, r in summary.iterrows()
    ]
    text = table(["method", "offset", "nulls with p < 5%, percent", "mean log fold change of nulls"], rows)
    (options.out / "composition.md").write_text(text)
    print(text)


def study(index: int, n_genes: int) -> pd.DataFrame:
    """Test the genes outside the programme in one data set: a row per method and offset."""
    data, null = _simulate(index, n_genes)
    counts = data.counts
    sized = ad.AnnData(sp.csr_matrix(counts), obs=data.obs)
    scglmm.pp.stable_size(sized, "donor")
    offsets = {
        "total counts": np.log(counts.sum(axis=1)),
        "stable genes": np.log(sized.obs["stable_size"].to_numpy()),
        "true size": np.log(data.obs["libSize"].to_numpy()),
    }
    sc.settings.verbosity = 0
    rows = []
    for name, offset in offsets.items():
        adata = ad.AnnData(sp.csr_matrix(counts), obs=data.obs.assign(log_size=offset))
        for method, options in (("reml", {"moderate": False}), ("moderated", {"moderate": True})):
            if not can_moderate():
                options = {}
                if method == "moderated":
                    continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scglmm.tl.nbmm(adata, FORMULA, n_jobs=1, **options)
            p, beta = (adata.varm[f"nbmm_{t}"][COEFFICIENT].to_numpy()[null] for t in ("pval", "coef"))
            rows.append(_row(method, name, p, beta))
    if "edgeR-QL" in rbulk.available():
        total = data.obs.assign(libSize=np.asarray(counts.sum(axis=1)).ravel())
        bulk = pseudobulk(DataSet(counts, total, data.truth, within=False))
        for known, name in ((True, "total counts"), (False, "TMM")):
            normalised = Pseudobulk(bulk.counts, bulk.obs, bulk.paired, known)
            found = rbulk.run_batch([normalised], [["edgeR-QL"]])[0]["edgeR-QL"]
            rows.append(_row("edgeR-QL", name, found.p[null], found.beta[null]))
    return pd.DataFrame(rows)


def _simulate(index: int, n_genes: int) -> tuple[DataSet, np.ndarray]:
    """Draw a data set; which of its genes do not change."""
    scenario = Scenario("composition", "composition", n=6, n_genes=n_genes, share_de=0.0)
    rng = np.random.default_rng([2024, index])
    truth = draw_truth(scenario, rng)
    changed = np.arange(n_genes) < PROGRAMME * n_genes
    share = truth["mean"][changed].sum() / truth["mean"].sum()
    truth.loc[changed, "beta"] = np.log(TAKES / (1 - TAKES) * (1 - share) / share)
    obs, sample, donor = draw_cells(scenario, rng)
    counts = draw_counts(scenario, truth, obs, sample, donor, rng)
    return DataSet(counts, obs, truth, within=False), ~changed


def _row(method: str, offset: str, p: np.ndarray, beta: np.ndarray) -> dict:
    tested = np.isfinite(p)
    return {
        "method": method,
        "offset": offset,
        "tested": tested.sum(),
        "rejected": (p[tested] < 0.05).sum(),
        "beta": beta[tested].sum(),
    }


def summarise(result: pd.DataFrame) -> pd.DataFrame:
    """Rates over the data sets with standard errors."""
    rows = []
    for (method, offset), group in result.groupby(["method", "offset"], sort=False):
        row = {"method": method, "offset": offset}
        for name, column in (("type1", "rejected"), ("bias", "beta")):
            row[name], row[f"{name}_se"] = ratio(group[column].to_numpy(), group["tested"].to_numpy())
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
