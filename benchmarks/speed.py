"""Time per gene against the PyPI package glmm, on the same data in the same run, one thread each."""

from __future__ import annotations

import time
from importlib.metadata import version

import glmm
import numpy as np
import scanpy as sc
from common import arguments, load, tile, time_fits

import scglmm


def main() -> None:
    """Print a table of times and ratios."""
    parser = arguments(__doc__)
    parser.add_argument("--tile", type=int, default=1, help="repeat the genes this many times for tl.nbmm")
    parser.add_argument("--peer-genes", type=int, default=8, help="genes that glmm fits")
    parser.add_argument("--peer-formula", default="Dx + Age + Sex + (1|SubID)")
    parser.add_argument("--peer-offset", default="libSize", help="column whose log is the offset")
    options = parser.parse_args()
    sc.settings.verbosity = 0
    adata = load(options)
    tiled = tile(adata, options.tile)

    data = {name: _plain(adata.obs[name]) for name in adata.obs}
    log_size = np.log(adata.obs[options.peer_offset].to_numpy(float))
    chosen = np.linspace(0, adata.n_vars - 1, options.peer_genes).astype(int)
    peer = []
    peer_loglik = {}
    scglmm.tl.nbmm(tiled[:, :2].copy(), options.formula, method="ml", n_jobs=1)  # compiled code, warm
    scglmm.tl.nbmm(tiled[:, :50].copy(), options.formula, moderate=True, n_jobs=1)
    whole = {}
    runs = {"ml": {"method": "ml"}, "reml": {"moderate": False}, "reml, moderated": {"moderate": True}}
    for name, how in runs.items():
        start = time.perf_counter()
        scglmm.tl.nbmm(tiled, options.formula, n_jobs=1, **how)
        whole[name] = (time.perf_counter() - start) / tiled.n_vars
        if name == "ml":
            ours = tiled.varm["nbmm_fit"]["loglik"].to_numpy()
    for g in chosen:
        data["y"] = np.asarray(adata.X[:, [g]].todense(), float).ravel()
        start = time.perf_counter()
        fit = glmm.fit(data, f"y ~ {options.peer_formula}", "negativebinomial", offset=log_size)
        peer.append(time.perf_counter() - start)
        peer_loglik[g] = getattr(fit, "loglik", np.nan)
    print(f"{adata.n_obs:,} cells, {tiled.n_vars} genes; glmm {version('glmm')} on {chosen.size} of them")
    for method in ("ml", "reml"):
        print(f"engine, {method:4}: {time_fits(adata, options.formula, method)}")
    print(f"glmm (ml):    median {1e3 * np.median(peer):.0f} ms, mean {1e3 * np.mean(peer):.0f} ms per gene")
    for name, seconds in whole.items():
        ratio = np.mean(peer) / seconds
        print(f"tl.nbmm, {name}: {1e3 * seconds:.2f} ms per gene, whole call; glmm takes {ratio:.0f} times as long")
    gain = np.array([ours[g] - peer_loglik[g] for g in chosen], float)
    print("log-likelihood, scglmm minus glmm:", np.array2string(gain, precision=4, suppress_small=True))


def _plain(column):
    return column.astype(str).to_numpy() if column.dtype == "category" else column.to_numpy(float)


if __name__ == "__main__":
    main()
