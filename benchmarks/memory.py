"""Peak memory above the loaded AnnData, and where the time goes, on 60,000 cells × 20,000 genes with 10% non-zeros."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

import scglmm
from scglmm.inference import genes as genes_module
from scglmm.tl import _nbmm


def main() -> None:
    """Simulate, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=60_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--donors", type=int, default=249)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--h5ad", help="data simulated before")
    options = parser.parse_args()
    sc.settings.verbosity = 0
    if options.h5ad is None:
        # Simulated in a process of its own, whose memory is gone when the data are read.
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "simulated.h5ad")
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(_save, path, options.cells, options.genes, options.donors, options.density).result()
            subprocess.run([sys.executable, __file__, "--h5ad", path, "--n-jobs", str(options.n_jobs)], check=True)
        return
    adata = ad.read_h5ad(options.h5ad)
    # Compile on a few genes first: the compiler's memory is not the data's.
    scglmm.tl.nbmm(adata[:, :20].copy(), "~ offset(log(libSize)) + Dx + Age + (1|SubID)")
    spent = {"compression": 0.0, "writing": 0.0}
    _clock(genes_module, "accumulate", spent, "compression")
    _clock(_nbmm, "write_results", spent, "writing")
    before = _resident()
    _reset_peak()
    start = time.perf_counter()
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Age + (1|SubID)", n_jobs=options.n_jobs)
    total = time.perf_counter() - start
    print(f"{adata.n_obs:,} cells × {adata.n_vars:,} genes, {adata.X.nnz:,} non-zeros, {options.n_jobs} workers")
    print(f"resident before {before / 2**30:.2f} GiB, peak above it {(_peak() - before) / 2**30:.2f} GiB")
    shares = {name: seconds / total for name, seconds in spent.items()}
    shares["fitting and the rest"] = 1 - sum(shares.values())
    print(f"{total:.1f} s: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    print(dict(adata.uns["nbmm"]["status_counts"]))


def _save(path: str, *size) -> None:
    simulate(*size).write_h5ad(path)


def simulate(n_cells: int, n_genes: int, n_donors: int, density: float) -> ad.AnnData:
    """NB counts with donor effects whose share of non-zeros is about `density`, built gene block by gene block."""
    rng = np.random.default_rng(0)
    donor = np.sort(rng.choice(n_donors, n_cells, p=rng.dirichlet(np.full(n_donors, 2.0))))
    size = np.exp(rng.normal(9.0, 0.5, n_cells))
    status = rng.random(n_donors) < 0.5
    age = rng.uniform(50, 95, n_donors)
    blocks = []
    for first in range(0, n_genes, 500):
        m = min(500, n_genes - first)
        mean = np.exp(rng.normal(np.log(density) - 0.6, 1.2, m))
        effect = rng.normal(0, 0.4, (n_donors, m))
        mu = (size / size.mean())[:, None] * mean * np.exp(effect[donor])
        counts = rng.poisson(mu * rng.gamma(2.0, 0.5, (n_cells, m)))
        blocks.append(sp.csc_matrix(counts.astype(np.float32)))
    obs = pd.DataFrame(
        {
            "SubID": pd.Categorical([f"D{d:03d}" for d in donor]),
            "Dx": pd.Categorical(np.where(status[donor], "AD", "Control"), ["Control", "AD"]),
            "Age": age[donor],
            "libSize": size,
        },
        index=np.arange(n_cells).astype(str),
    )
    return ad.AnnData(sp.hstack(blocks, format="csr"), obs=obs)


def _clock(module, name: str, spent: dict[str, float], label: str) -> None:
    """Add up the time spent in a function of a module."""
    function = getattr(module, name)

    def timed(*args, **kwargs):
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[label] += time.perf_counter() - start

    setattr(module, name, timed)


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return float(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def _resident() -> float:
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")


def _reset_peak() -> None:
    """Start the kernel's record of peak memory afresh (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
