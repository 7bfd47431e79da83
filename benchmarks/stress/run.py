"""Run the study and report. Results are kept in `--out`, so that a run that was stopped goes on."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from .check import VALID, Record, check
from .draw import draw

BATCH = 25


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run what is missing, report."""
    parser = argparse.ArgumentParser(prog="benchmarks.stress", description=__doc__)
    parser.add_argument("--models", type=int, default=10_000, help="seeds 0 to this")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--optimise", type=int, default=20, help="one in so many against scipy's optimiser; 0: none")
    parser.add_argument("--out", type=Path, default=Path("stress-results"))
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=np.inf, help="start no new batch after so many")
    parser.add_argument("--report", action="store_true", help="only report")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        seeds = range(options.first, options.first + options.models, BATCH)
        missing = [s for s in seeds if not _path(options.out, s).exists()]
        print(f"{len(missing)} of {len(seeds)} batches to do")
        deadline = time.monotonic() + options.seconds
        last = options.first + options.models
        Parallel(n_jobs=options.n_jobs)(
            delayed(_batch)(s, min(s + BATCH, last), options.optimise, options.out, deadline) for s in missing
        )
    print(report(load(options.out)))


def _path(out: Path, first: int) -> Path:
    return out / f"{first:06d}.jsonl"


def _batch(first: int, last: int, optimise: int, out: Path, deadline: float) -> None:
    if time.monotonic() > deadline:
        return
    lines = [json.dumps(asdict(run(seed, optimise))) for seed in range(first, last)]
    path = _path(out, first)
    path.with_suffix(".part").write_text("\n".join(lines) + "\n")
    path.with_suffix(".part").rename(path)


def run(seed: int, optimise: int) -> Record:
    """One model; whatever is raised is a problem of its own."""
    drawn = draw(seed)
    try:
        return check(drawn, optimise=bool(optimise) and seed % optimise == 0)
    except Exception as error:
        return Record(
            seed, str(drawn), drawn.family, "raised", "", drawn.y.size, problems=[f"{type(error).__name__}: {error}"]
        )


def load(out: Path) -> pd.DataFrame:
    """All records."""

    def lines() -> Iterator[dict]:
        for path in sorted(out.glob("*.jsonl")):
            yield from map(json.loads, path.read_text().splitlines())

    return pd.DataFrame(lines())


def report(table: pd.DataFrame) -> str:
    """Tables of what came out, as text."""
    valid = table["status"].isin(VALID)
    with pd.option_context("display.width", 160, "display.max_columns", 20):
        parts = [
            f"{len(table)} models",
            pd.crosstab(table["family"], table["status"], margins=True).to_string(),
            f"claim a maximum: {valid.mean():.2%}",
        ]
        for name in (
            "engine_gradient",
            "difference",
            "quadrature",
            "gradient",
            "promise",
            "rise",
            "theta_rise",
            "better",
        ):
            values = table.loc[valid, name].abs() if name in ("difference", "quadrature") else table.loc[valid, name]
            if values.notna().any():
                numbers = f"median {values.median():9.2e}  99% {values.quantile(0.99):9.2e}  worst {values.max():9.2e}"
                parts.append(f"{name:16} n {values.count():6}  {numbers} (seed {table.loc[values.idxmax(), 'seed']})")
        values = table.loc[valid, "curvature"]
        parts.append(f"smallest scaled eigenvalue of minus the Hessian: {values.min():.2e}")
        bad = table[table["problems"].map(len) > 0]
        parts.append(f"problems: {len(bad)}")
        kinds = bad["problems"].explode().value_counts()
        parts += [f"  {kind[:70]}: {count}" for kind, count in kinds.items()]
        parts += [
            f"  {', '.join(r.problems)} [{r.status}, {r.way}] rise {max(r.rise, r.theta_rise):.1e} "
            f"promise {r.promise:.1e} better {r.better:.1e} difference {r.difference:.1e}: {r.model}"
            for r in bad.itertuples()
        ]
    return "\n".join(parts)
