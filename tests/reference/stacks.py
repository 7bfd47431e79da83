"""Make `stacks.csv`: results of a few genes, which every supported stack of packages has to reproduce to 1e-8.

Run from the root of the checkout: ``python tests/reference/stacks.py``.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import scanpy as sc

import scglmm

# From the most frequent to rare ones at the Poisson limit of theta.
GENES = ["PTPRG", "SIM001", "SIM003", "SIM007", "SIM008", "SIM022", "SIM026", "SIM028", "SIM329"]
FORMULA = "~ offset(log(libSize)) + Dx + Age + Sex + (1|SubID)"


def results() -> pd.DataFrame:
    """One row per method, gene and number."""
    adata = scglmm.datasets.psychad()[:, GENES].copy()
    rows = []
    for method in ("ml", "reml"):
        scglmm.tl.nbmm(adata, FORMULA, method=method, moderate=False, n_jobs=1)
        for table in ("coef", "se", "dof", "pval", "varpart"):
            long = adata.varm[f"nbmm_{table}"].rename_axis("gene").reset_index().melt("gene", var_name="column")
            rows.append(long.assign(method=method, table=table))
        fit = adata.varm["nbmm_fit"][["theta", "var[SubID]", "loglik"]]
        rows.append(
            fit.rename_axis("gene").reset_index().melt("gene", var_name="column").assign(method=method, table="fit")
        )
    return pd.concat(rows)[["method", "table", "gene", "column", "value"]].reset_index(drop=True)


if __name__ == "__main__":
    sc.settings.verbosity = 0
    results().to_csv(Path(__file__).with_name("stacks.csv"), index=False, float_format="%.17g")
