"""edgeR and DESeq2 on pseudobulk, driven through files: one R process for a batch of data sets."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from .bulk import Pseudobulk
from .simulate import TREATED
from .store import Result

SCRIPT = Path(__file__).with_name("pseudobulk.R")
METHODS = {"edgeR-QL": "edgeR", "DESeq2": "DESeq2"}


@cache
def available() -> tuple[str, ...]:
    """Names of the methods whose package is installed."""
    if shutil.which("Rscript") is None:
        return ()
    code = 'for (p in c("edgeR", "DESeq2")) cat(p, nchar(system.file(package = p)) > 0, "\\n")'
    found = subprocess.run(["Rscript", "-e", code], capture_output=True, text=True, check=False).stdout
    return tuple(name for name, package in METHODS.items() if f"{package} TRUE" in found)


def run_batch(samples: Sequence[Pseudobulk], wanted: Sequence[Sequence[str]]) -> list[dict[str, Result]]:
    """Run methods on data sets.

    Parameters
    ----------
    samples
        The data sets, with the genes that are tested.
    wanted
        For each data set the names of the methods.

    Returns
    -------
    For each data set name -> result; a method that failed is absent.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, (bulk, names) in enumerate(zip(samples, wanted, strict=True)):
            _write(folder, i, bulk, names)
        done = subprocess.run(["Rscript", "--vanilla", str(SCRIPT), name], capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"{SCRIPT.name} failed:\n{done.stderr[-2000:]}"
            raise RuntimeError(msg)
        if done.stdout.strip():
            print(done.stdout.strip(), flush=True)
        return [_read(folder, i, names) for i, names in enumerate(wanted)]


def _write(folder: Path, i: int, bulk: Pseudobulk, names: Sequence[str]) -> None:
    base = folder / str(i)
    bulk.counts.T.astype("<i4").tofile(f"{base}.counts")  # gene by gene
    pd.DataFrame(
        {
            "donor": bulk.obs["donor"].astype(str).to_numpy(),
            "treated": (bulk.obs["treatment"] == TREATED).to_numpy(int),
            "size": bulk.obs["libSize"].to_numpy(),
        }
    ).to_csv(f"{base}.samples.csv", index=False)
    packages = " ".join(METHODS[name] for name in names)
    Path(f"{base}.task").write_text(f"{int(bulk.paired)} {int(bulk.known_size)} {packages}\n")


def _read(folder: Path, i: int, names: Sequence[str]) -> dict[str, Result]:
    results = {}
    for name in names:
        path = folder / f"{i}.{METHODS[name]}.csv"
        if not path.exists():
            continue
        table = pd.read_csv(path)
        seconds = float((folder / f"{i}.{METHODS[name]}.seconds").read_text())
        fields = {column: table[column].to_numpy(float) for column in table}
        if "se" in fields:
            fields["df"] = np.full(len(table), np.inf)
        results[name] = Result.of(len(table), seconds, **fields)
    return results
