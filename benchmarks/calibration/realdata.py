"""Real cells without effects: the control cells of eight donors, labelled four against four in all 35 ways."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from .simulate import TREATED, DataSet

MIN_SHARE = 0.03  # of the cells in which a gene must be seen


@dataclass(frozen=True)
class RealNull:
    """The same interface as `scenarios.Scenario`, for splits of `kang18_bcells.h5ad` (Kang et al. 2018)."""

    path: Path
    name: str = "kang18-control"
    panel: str = "real cells, permuted labels"
    datasets: int = 35
    share_de: float = 0.0
    fingerprint: str = "all35"
    label: str = "4v4"

    def load(self, index: int) -> DataSet:
        """Label the donors by split `index`."""
        counts, obs = control_cells(self.path)
        donors = list(obs["donor"].cat.categories)
        # The first donor is always a control: the other half of the splits only turns the sign.
        treated = list(combinations(donors[1:], 4))[index]
        obs = obs.assign(
            treatment=pd.Categorical(
                np.where(obs["donor"].isin(treated), TREATED, "ctrl"), categories=["ctrl", TREATED]
            )
        )
        mean = np.asarray(counts.mean(axis=0)).ravel()
        truth = pd.DataFrame({"beta": 0.0, "variance": np.nan, "mean": mean, "theta": np.nan, "kept": True})
        return DataSet(counts, obs, truth, within=False, known_size=False)


@lru_cache(maxsize=1)
def control_cells(path: Path) -> tuple[sp.csr_array, pd.DataFrame]:
    """Read counts of the genes seen in enough control cells, and donor and library size of every cell."""
    adata = ad.read_h5ad(path)
    adata = adata[adata.obs["stim"] == "ctrl"]
    counts = sp.csr_array(adata.X, dtype=np.float64)
    seen = np.bincount(counts.indices, minlength=counts.shape[1])
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical(adata.obs["ind"].astype(str)),
            "libSize": adata.obs["total_counts"].to_numpy(float),
        },
        index=adata.obs_names,
    )
    return sp.csr_array(counts[:, seen >= MIN_SHARE * counts.shape[0]]), obs
