"""From disk: 1,000,000 cells × 2,000 genes that are never in memory, against reading and summing the same file.

Simulates an h5ad with gzip and one without (about a minute), then, in processes of their own: `X` read in row chunks
and summed, and `scglmm.tl.nbmm` on ``read_h5ad(backed="r")``. Printed are peak resident memory, wall time, the CPU
time of the fits per gene, and the ratio of everything but the fits to the read-and-sum.

    python -m benchmarks.large                                     # everything
    python -m benchmarks.large --simulate-only --folder data/big   # the files alone
    python -m benchmarks.large --folder data/big --compression gzip --method ml
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc

import scglmm
from benchmarks.measure import Stopwatch, WorkerFailed, give, machine, mebi, peak, reset_peak, resident, run_module
from benchmarks.simulate import FORMULA, Study, write_h5ad

COMPRESSION = {"none": None, "gzip": "gzip"}


def main(arguments: list[str] | None = None) -> None:
    """Simulate, read, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--donors", type=int, default=500)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--sorted", action="store_true", help="cells of a donor together, instead of all mixed")
    parser.add_argument("--folder", type=Path, help="where the files are or are written to; a temporary one by default")
    parser.add_argument("--simulate-only", action="store_true")
    parser.add_argument("--compression", choices=list(COMPRESSION), help="both by default")
    parser.add_argument("--formula", default=FORMULA)
    parser.add_argument("--method", choices=["ml", "reml", "moderated"], nargs="*", default=["ml", "reml", "moderated"])
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=20_000, help="rows of a chunk of the plain read-and-sum")
    options = parser.parse_args(arguments)
    if options.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            options.folder = Path(folder)
            _run(options)
    else:
        options.folder.mkdir(parents=True, exist_ok=True)
        _run(options)


def _run(options: argparse.Namespace) -> None:
    names = [options.compression] if options.compression else list(COMPRESSION)
    paths = {name: options.folder / _name(options, name) for name in names}
    missing = {COMPRESSION[name]: path for name, path in paths.items() if not path.exists()}
    if missing:
        study = Study(options.cells, options.genes, options.donors, options.density, not options.sorted)
        start = time.perf_counter()
        nnz = write_h5ad(study, missing)
        print(f"simulated {nnz:,} non-zeros in {time.perf_counter() - start:.0f} s")
    if options.simulate_only:
        print("\n".join(map(str, paths.values())))
        return
    print(machine())
    for name, path in paths.items():
        print(f"\ncompression {name}: {path.stat().st_size / 1e6:,.0f} MB")
        # The first reading brings the file into the page cache, so that both are measured with it there.
        read = [run_module("benchmarks.large", "--read", str(path), str(options.chunk)) for _ in range(2)][-1]
        print(f"read and sum: {read['seconds']:.1f} s (CPU {read['cpu']:.1f} s), peak {mebi(read['peak'])}", flush=True)
        for method in options.method:
            try:
                fit = run_module("benchmarks.large", "--fit", str(path), options.formula, method, str(options.n_jobs))
            except WorkerFailed as error:
                print(f"{method}: {error}")
                continue
            fits = fit["fits_wall"] / options.n_jobs
            rest, rest_cpu = fit["seconds"] - fits, fit["cpu"] - fit["fits_cpu"]
            print(
                f"tl.nbmm, {method}: {fit['seconds']:.1f} s, of which fits {fits:.1f} s; fits "
                f"{1e3 * fit['fits_cpu'] / fit['genes']:.2f} ms CPU per gene; all but the fits {rest:.1f} s = "
                f"{rest / read['seconds']:.2f} times the read and sum by the clock, {rest_cpu / read['cpu']:.2f} times "
                f"in CPU seconds; peak {mebi(fit['peak'])} (before the call {mebi(fit['before'])}); {fit['status']}",
                flush=True,
            )


def _name(options: argparse.Namespace, compression: str) -> str:
    order = "sorted" if options.sorted else "mixed"
    size = f"{options.cells}x{options.genes}_{options.donors}donors_{options.density:g}"
    return f"large_{size}_{order}_{compression}.h5ad"


def read_and_sum(path: str, chunk: int) -> None:
    """Worker: sum X by genes, row chunk by row chunk."""
    adata = ad.read_h5ad(path, backed="r")
    start, cpu = time.perf_counter(), time.process_time()
    total = np.zeros(adata.n_vars)
    for first in range(0, adata.n_obs, chunk):
        total += np.asarray(adata.X[first : first + chunk].sum(axis=0)).ravel()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    give({"seconds": seconds, "cpu": cpu, "peak": peak(), "total": float(total.sum())})


def fit_from_disk(path: str, formula: str, method: str, n_jobs: int) -> None:
    """Worker: fit all genes from disk."""
    from scglmm.inference import genes as module

    sc.settings.verbosity = 0
    warnings.simplefilter("ignore")
    how = {"ml": {"method": "ml"}, "reml": {"moderate": False}, "moderated": {}}[method]
    adata = ad.read_h5ad(path, backed="r")
    # Compiled code is loaded on a few cells and genes first: that is no part of what is measured.
    small = adata[: min(20_000, adata.n_obs)].to_memory()
    dense = np.argsort(-np.asarray(small.X.sum(axis=0)).ravel())[:250]
    small = small[:, np.sort(dense) if method == "moderated" else dense[:20]].copy()
    with tempfile.TemporaryDirectory() as folder:
        small.write_h5ad(Path(folder) / "small.h5ad")
        scglmm.tl.nbmm(ad.read_h5ad(Path(folder) / "small.h5ad", backed="r"), formula, n_jobs=n_jobs, **how)
    del small
    watch = Stopwatch()
    watch.clock(module, "_fit_task", "fits")
    reset_peak()
    before = resident()
    start, cpu = time.perf_counter(), time.process_time()
    scglmm.tl.nbmm(adata, formula, n_jobs=n_jobs, **how)
    give(
        {
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - cpu,
            "before": before,
            "peak": peak(),
            "fits_wall": watch.wall["fits"],
            "fits_cpu": watch.cpu["fits"],
            "genes": adata.n_vars,
            "status": ", ".join(f"{k} {v}" for k, v in dict(adata.uns["nbmm"]["status_counts"]).items()),
        }
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read_and_sum(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["--fit"]:
        fit_from_disk(*sys.argv[2:5], int(sys.argv[5]))
    else:
        main()
