"""Run the calibration study and write its tables.

Results of every data set are kept in the folder `--out`: a run that was stopped goes on where it was, and a method that
becomes available later is added to the others.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
from pathlib import Path

from joblib import Parallel, delayed

from . import methods as registry
from . import rbulk
from .bulk import Pseudobulk, pseudobulk
from .realdata import RealNull
from .report import write_report
from .scenarios import grid, smoke
from .simulate import DataSet, simulate
from .store import TRUTH, Result, Store

BATCH = 25  # data sets per task, and per R process


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run what is missing, and write the tables."""
    options = _parse(arguments)
    if options.out is None:
        options.out = Path("calibration-results") / ("smoke" if options.smoke else "full")
    scenarios = smoke() if options.smoke else grid()
    if options.kang is None:
        print("no real-data null: give the path of kang18_bcells.h5ad as --kang")
    else:
        scenarios.append(RealNull(options.kang, datasets=2 if options.smoke else 35))
    if options.scenario:
        scenarios = [s for s in scenarios if any(word in s.name for word in options.scenario)]
    if options.list:
        for s in scenarios:
            print(f"{s.name:32} {s.panel:32} {s.datasets} data sets")
        return
    for name, reason in registry.unavailable().items():
        print(f"without {name}: {reason}")
    if not options.report_only:
        run(scenarios, options)
    write_report(scenarios, options.out, options.tables or options.out / "tables")


def run(scenarios: list, options: argparse.Namespace) -> None:
    """Run every missing result, a batch of data sets of a scenario after another."""
    chosen = options.methods or [*registry.python_methods(), *rbulk.available()]
    for name in options.redo or []:
        for scenario in scenarios:
            Store(options.out, scenario).forget(name)
    tasks = []
    for scenario in scenarios:
        n = min(scenario.datasets, options.datasets or scenario.datasets)
        for begin in range(0, n, BATCH):
            missing = _missing(Store(options.out, scenario), range(begin, min(begin + BATCH, n)), chosen)
            if missing:
                tasks.append((scenario, missing))
    print(f"{len(tasks)} tasks of up to {BATCH} data sets to do; results in {options.out}", flush=True)
    start = time.perf_counter()
    parallel = Parallel(n_jobs=options.jobs, return_as="generator_unordered")
    for done, (name, seconds) in enumerate(parallel(delayed(_task)(s, m, options.out) for s, m in tasks), 1):
        elapsed = (time.perf_counter() - start) / 60
        print(f"{done}/{len(tasks)} after {elapsed:.1f} min: {name}, {seconds:.0f} s", flush=True)


def _missing(store: Store, indices: range, chosen: list[str]) -> dict[int, list[str]]:
    found = {i: [name for name in chosen if not store.has(name, i)] for i in indices}
    return {i: names for i, names in found.items() if names}


def _task(scenario, missing: dict[int, list[str]], out: Path) -> tuple[str, float]:
    """Run the missing methods on a batch of data sets; what fails is told and stays missing."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start = time.perf_counter()
    store = Store(out, scenario)
    python = registry.python_methods()
    for_r: list[tuple[int, Pseudobulk, list[str]]] = []
    for index, names in missing.items():
        data = scenario.load(index) if isinstance(scenario, RealNull) else simulate(scenario, index)
        kept = data.truth["kept"].to_numpy()
        store.write(TRUTH, index, **{name: data.truth[name].to_numpy() for name in data.truth})
        tested = data.kept()
        for name in names:
            if name in python:
                _one(store, name, python[name], index, tested, kept)
        in_r = [name for name in names if name in rbulk.METHODS]
        if in_r:
            for_r.append((index, pseudobulk(tested), in_r))
    if for_r:
        results = rbulk.run_batch([bulk for _, bulk, _ in for_r], [names for *_, names in for_r])
        for (index, *_), found in zip(for_r, results, strict=True):
            kept = _kept(store, index)
            for name, result in found.items():
                store.write_result(name, index, result, kept)
    return scenario.name, time.perf_counter() - start


def _one(store: Store, name: str, method: registry.Method, index: int, data: DataSet, kept) -> None:
    try:
        result: Result | None = method(data)
    except Exception:  # one method that fails on one data set must not stop a run of hours
        print(f"{store.folder.name}, data set {index}: {name} failed\n{traceback.format_exc(limit=-2)}", flush=True)
        return
    if result is not None:
        store.write_result(name, index, result, kept)


def _kept(store: Store, index: int):
    return store.read(TRUTH, [index])["kept"][0]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few small data sets: whether everything runs")
    parser.add_argument("--out", type=Path, help="folder of the results (calibration-results/full or /smoke)")
    parser.add_argument("--tables", type=Path, help="folder for tables and figure (OUT/tables)")
    parser.add_argument("--kang", type=Path, help="kang18_bcells.h5ad, for the real-data null")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--scenario", nargs="+", help="only scenarios whose name contains one of these")
    parser.add_argument("--methods", nargs="+", help="only these methods")
    parser.add_argument("--redo", nargs="+", help="forget the results of these methods first")
    parser.add_argument("--datasets", type=int, help="at most so many data sets of each scenario")
    parser.add_argument("--report-only", action="store_true", help="tables of the results that are there")
    parser.add_argument("--list", action="store_true", help="print the scenarios and stop")
    return parser.parse_args(arguments)
