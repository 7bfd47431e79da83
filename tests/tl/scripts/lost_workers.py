"""Fit with workers of which one is killed on the way: python lost_workers.py in.h5ad out formula.

Writes the results of this process, of loky and of dask.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import anndata as ad
import joblib
import scanpy as sc
from distributed import Client, LocalCluster

import scglmm
from scglmm.inference import genes
from scglmm.tl._workers import effective_jobs

fit_task = genes._fit_task


def fit_or_die(task: object) -> object:
    """Fit some genes, or kill this process if none has been killed yet."""
    try:
        os.close(os.open(KILLED, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return fit_task(task)
    return os.kill(os.getpid(), signal.SIGKILL)


def main(counts: str, out: Path, formula: str) -> None:
    adata = ad.read_h5ad(counts)

    def run(name: str, **how: int) -> None:
        scglmm.tl.nbmm(adata, formula, copy=True, **how).write_h5ad(out / f"{name}.h5ad")

    run("here", n_jobs=1)
    genes._fit_task = fit_or_die
    with joblib.parallel_config("loky", n_jobs=2):
        assert effective_jobs(None) == 2
        run("loky")
    os.remove(KILLED)  # fails if nobody was killed
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.ERROR) as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):
        assert effective_jobs(None) == 2
        run("dask")
    os.remove(KILLED)


if __name__ == "__main__":
    sc.settings.verbosity = 1
    KILLED = str(Path(sys.argv[2]) / "killed")
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
