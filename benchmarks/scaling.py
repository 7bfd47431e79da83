"""Time and memory in cells, donors, genes and workers, one at a time around a middle, on simulated counts.

    python -m benchmarks.scaling --out docs/benchmarks           # all, up to 10,000,000 cells: a quarter of an hour
    python -m benchmarks.scaling --sweep cells --max-cells 600000
    python -m benchmarks.scaling --smoke
    python -m benchmarks.scaling --h5ad data.h5ad --times 10     # real data, and ten times its cells, same donors

Every point is a process of its own: it simulates, compresses, fits genes one by one on one thread, and then calls
`scglmm.tl.nbmm` (REML, not moderated), whose peak memory above the loaded data is taken.
Seconds are CPU seconds, except for the call, which is by the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc

import scglmm
from benchmarks.data import arguments, load
from benchmarks.engine import Model, time_fits
from benchmarks.measure import WorkerFailed, give, machine, peak, reset_peak, resident, run_module
from benchmarks.simulate import FORMULA, Study, multiply, simulate

MIDDLE = {"cells": 60_000, "donors": 250, "genes": 400, "workers": 1}
SWEEPS = {
    "cells": [6_000, 20_000, 60_000, 200_000, 600_000, 2_000_000, 10_000_000],
    "donors": [10, 30, 100, 300, 1_000, 2_000],
    "genes": [100, 400, 1_600, 6_400],
    "workers": [1, 2],
}
ELSEWHERE = {"cells": {"genes": 40}, "donors": {"cells": 200_000, "genes": 40}, "workers": {"genes": 1_600}}
"""What differs from the middle in a sweep: few genes where there are many cells, as much memory as is needed."""
TIMED_GENES = 40
HEAD = """\
# Scaling, measured

Made by `python -m benchmarks.scaling`: simulated counts in memory (5% non-zeros, cells of all donors mixed), one number
changed at a time. CPU seconds for design, nodes, compression and the mean fit; seconds by the clock, and peak memory
above the data, for a whole `tl.nbmm` (REML, not moderated). [What formulas say of it](../scaling.md).

![Seconds against cells, donors, genes and workers](scaling.png)"""


def main(argv: list[str] | None = None) -> None:
    """Run the sweeps, write table and picture."""
    parser = arguments(__doc__)
    parser.add_argument("--sweep", nargs="*", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--max-cells", type=int, default=10_000_000)
    parser.add_argument("--times", type=int, default=10, help="with --h5ad: how often its cells are repeated")
    parser.add_argument("--smoke", action="store_true", help="the smallest points alone")
    parser.add_argument("--out", type=Path, help="folder for scaling.csv, scaling.md and scaling.png")
    parser.add_argument("--resume", action="store_true", help="keep the points that scaling.csv in --out has")
    options = parser.parse_args(argv)
    if options.h5ad:
        _multiplied(options)
        return
    print(machine(), flush=True)
    kept = pd.DataFrame()
    if options.resume and options.out is not None and (options.out / "scaling.csv").exists():
        kept = pd.read_csv(options.out / "scaling.csv")
    rows = []
    for sweep, point in _points(options.sweep, options.smoke):
        if point["cells"] > options.max_cells:
            continue
        same = kept[(kept[["sweep", *point]] == [sweep, *point.values()]).all(axis=1)] if len(kept) else kept
        try:
            found = run_module("benchmarks.scaling", "--point", json.dumps(point)) if same.empty else dict(same.iloc[0])
        except WorkerFailed as error:
            print(f"{sweep} {point[sweep]:,}: {error}", flush=True)
            continue
        rows.append({"sweep": sweep} | found)
        print(_line(rows[-1]), flush=True)
        if options.out is not None:  # so that a killed run can go on
            options.out.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_csv(options.out / "scaling.csv", index=False, float_format="%.6g")
    table = pd.DataFrame(rows)
    text = f"{machine()}.\n\n{_markdown(table)}"
    print("\n" + text)
    if options.out is not None:
        (options.out / "scaling.md").write_text(f"{HEAD}\n\n{text}\n")
        draw(table, options.out / "scaling.png")


def _points(sweeps: list[str], smoke: bool) -> Iterator[tuple[str, dict[str, int]]]:
    """Name of the sweep and sizes of every point."""
    for sweep in sweeps:
        for value in SWEEPS[sweep][: 1 if smoke else None]:
            point = MIDDLE | ELSEWHERE.get(sweep, {}) | {sweep: value}
            if smoke:
                point |= {"cells": 2_000, "donors": 20, "genes": 12}
            yield sweep, point


def measure(cells: int, donors: int, genes: int, workers: int) -> dict[str, Any]:
    """Measure one point, in this process."""
    sc.settings.verbosity = 0
    warnings.simplefilter("ignore")
    adata = simulate(Study(cells, genes, donors))
    small = simulate(Study(2_000, 12, 10))  # compiled code, warm
    scglmm.tl.nbmm(small, FORMULA, n_jobs=workers, moderate=False)
    Model(small, FORMULA).fit(0, "ml")
    model = Model(adata, FORMULA, n_jobs=workers)
    abundant = np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())
    timed = np.sort(abundant[np.linspace(0, 0.8 * (genes - 1), min(TIMED_GENES, genes)).astype(int)])
    fits = {method: time_fits(model, timed, method).seconds for method in ("ml", "reml")}
    result = {
        "cells": cells,
        "donors": donors,
        "genes": genes,
        "workers": workers,
        "nonzeros": int(adata.X.nnz),
        "strata": model.nodes.n_strata,
        "nodes": model.nodes.size,
        **{f"{name}_s": seconds for name, seconds in model.seconds.items()},
        **{f"fit_{method}_ms": 1e3 * float(np.mean(seconds)) for method, seconds in fits.items()},
    }
    del model
    reset_peak()
    start, cpu, before = time.perf_counter(), time.process_time(), resident()
    scglmm.tl.nbmm(adata, FORMULA, n_jobs=workers, moderate=False)
    result["call_s"], result["call_cpu_s"] = time.perf_counter() - start, time.process_time() - cpu
    result["call_bytes"] = peak() - before
    return result


def _multiplied(options: argparse.Namespace) -> None:
    """Time of the fits on real data, and on its cells repeated, in turn."""
    small = load(options)
    large = multiply(small, options.times)
    print(f"{machine()}\n{small.n_obs:,} and {large.n_obs:,} cells, {small.n_vars} genes")
    models = [Model(adata, options.formula) for adata in (small, large)]
    genes = np.arange(small.n_vars)
    for method in ("ml", "reml"):
        ratios = []
        for _ in range(3):
            few, many = (time_fits(model, genes, method) for model in models)
            ratios.append(np.median(many.seconds) / np.median(few.seconds))
            print(f"{method:4}: {few} | {many}")
        print(f"{method:4}: ratio of medians per gene {np.round(ratios, 2)}, median {np.median(ratios):.2f}")


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['sweep']:8}{row['cells']:>11,} cells {row['donors']:>6,} donors {row['genes']:>6,} genes "
        f"{row['workers']} workers {row['nonzeros']:>11,} non-zeros {row['nodes']:>7,} nodes: "
        f"design {row['design_s']:.2f} s, nodes {row['nodes_s']:.2f} s, compression {row['compression_s']:.2f} s; "
        f"fit {row['fit_ml_ms']:.2f} ms (ML), "
        f"{row['fit_reml_ms']:.2f} ms (REML); tl.nbmm {row['call_s']:.1f} s, {row['call_bytes'] / 2**20:,.0f} MiB"
    )


def _markdown(table: pd.DataFrame) -> str:
    lines = [
        "| cells | donors | genes | workers | non-zeros | nodes | design s | nodes s | compression s | fit ML ms "
        "| fit REML ms | tl.nbmm s | memory MiB |",
        "| " + " | ".join(13 * ["---:"]) + " |",
    ]
    for sweep, part in table.groupby("sweep", sort=False):
        lines.append(f"| *{sweep}* |" + 12 * " |")
        for row in part.to_dict("records"):
            lines.append(
                f"| {row['cells']:,} | {row['donors']:,} | {row['genes']:,} | {row['workers']} | {row['nonzeros']:,} "
                f"| {row['nodes']:,} | {row['design_s']:.2f} | {row['nodes_s']:.2f} | {row['compression_s']:.2f} "
                f"| {row['fit_ml_ms']:.2f} | {row['fit_reml_ms']:.2f} | {row['call_s']:.1f} "
                f"| {row['call_bytes'] / 2**20:,.0f} |"
            )
    return "\n".join(lines)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw seconds against cells, donors, genes and workers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    sweeps = list(table["sweep"].unique())
    for axes, sweep in zip(np.atleast_1d(figure.subplots(1, len(sweeps))), sweeps, strict=True):
        part = table[table["sweep"] == sweep]
        prepared = part["design_s"] + part["nodes_s"] + part["compression_s"]
        axes.plot(part[sweep], part["fit_reml_ms"] / 1e3, "o-", color="#0072b2", label="fit of one gene (REML)")
        axes.plot(part[sweep], prepared, "s-", color="#e69f00", label="design, nodes and compression")
        axes.plot(part[sweep], part["call_s"], "^-", color="0.4", label="tl.nbmm, all genes")
        axes.set_yscale("log")
        if sweep == "workers":
            axes.set_xticks(part[sweep])
        else:
            axes.set_xscale("log")
        same = [name for name in MIDDLE if name != sweep and name != "workers"]
        axes.set_title(", ".join(f"{part[name].iloc[0]:,} {name}" for name in same), fontsize=9)
        axes.set_xlabel(sweep)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", lw=0.6)
    figure.axes[0].set_ylabel("seconds")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--point"]:
        give(measure(**json.loads(sys.argv[2])))
    else:
        main()
