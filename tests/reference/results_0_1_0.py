"""Make `results_0_1_0.h5ad`: results as version 0.1.0 stores them, which every later version has to read.

Run once, with scglmm 0.1.0 and anndata 0.12; never again, since the file is what that version wrote.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

import scglmm

N_DONORS, N_CELLS, N_GENES = 8, 160, 10

rng = np.random.default_rng(10)
donor = np.arange(N_CELLS) % N_DONORS
stim = rng.integers(0, 2, N_CELLS)
size = np.round(rng.lognormal(7, 0.3, N_CELLS))
eta = rng.normal(-6.5, 0.7, N_GENES) + rng.normal(0, 0.3, (N_DONORS, N_GENES))[donor]
eta += 0.8 * (donor % 2)[:, None] * (np.arange(N_GENES) > 7) + 0.5 * stim[:, None] * rng.normal(size=N_GENES)
counts = rng.poisson(size[:, None] * np.exp(eta) * rng.gamma(2.0, 0.5, eta.shape))
counts[donor > 0, 0] = 0
obs = pd.DataFrame(
    {
        "donor": pd.Categorical([f"D{d}" for d in donor]),
        "Dx": pd.Categorical(np.array(["Control", "AD"])[donor % 2], categories=["Control", "AD"]),
        "stim": pd.Categorical(np.array(["no", "yes"])[stim]),
        "cell_type": pd.Categorical(np.array(["T/NK", "B|naive"])[rng.integers(0, 2, N_CELLS)]),
        "size": size,
    },
    index=[f"c{i}" for i in range(N_CELLS)],
)
var = pd.DataFrame({"symbol": [f"S{i}" for i in range(N_GENES)]}, index=[f"g{i}" for i in range(N_GENES)])
adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)

formula = "~ offset(log(size)) + Dx + stim + (1|donor)"
scglmm.tl.nbmm(adata, formula)
scglmm.tl.nbmm(adata, "~ offset(log(size)) + Dx + (1|donor)", groupby="cell_type", key_added="by/type")
scglmm.tl.contrast(adata, {"Dx - stim": "Dx[T.AD] - stim[T.yes]", "both": ["Dx", "stim"]})
scglmm.tl.lrt(adata, "~ Dx + (1|donor)")
scglmm.tl.shrink(adata)
scglmm.tl.diagnose(adata)
adata.write_h5ad(Path(__file__).with_name("results_0_1_0.h5ad"))
