"""Time per gene when the number of cells is multiplied, same donors: the cost of a fit does not grow with cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from common import arguments, load, time_fits


def main() -> None:
    """Print times of the fits, small and large data in turn."""
    parser = arguments(__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sc.settings.verbosity = 0
    small = load(options)
    large = multiply(small, options.times)
    print(f"{small.n_obs:,} and {large.n_obs:,} cells, {small.n_vars} genes")
    for method in ("ml", "reml"):
        ratios = []
        for _ in range(options.rounds):
            few, many = (time_fits(adata, options.formula, method) for adata in (small, large))
            ratios.append(np.median(many.seconds) / np.median(few.seconds))
            print(f"{method:4}: {few} | {many}")
        print(f"{method:4}: ratio of medians per gene {np.round(ratios, 2)}, median {np.median(ratios):.2f}")


def multiply(adata: ad.AnnData, times: int) -> ad.AnnData:
    """Repeat the cells with slightly different library sizes; their counts are shuffled within the donor's copies."""
    rng = np.random.default_rng(0)
    obs = pd.concat([adata.obs] * times, ignore_index=True)
    obs.index = obs.index.astype(str)
    obs["libSize"] = np.round(obs["libSize"] * rng.uniform(0.9, 1.1, len(obs)))
    return ad.AnnData(sp.vstack([adata.X] * times, format="csr"), obs=obs, var=adata.var[[]])


if __name__ == "__main__":
    main()
