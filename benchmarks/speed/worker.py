"""One tool in a process of its own: ``python -m benchmarks.speed.worker TOOL FOLDER``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure import ONE_THREAD, WorkerFailed, give, run_module

from .problem import Problem
from .tools import TOOLS, Fit, Tool

SCRIPT = Path(__file__).with_name("peers.R")


@cache
def is_installed(tool: Tool) -> bool:
    """Whether a tool can be run here."""
    if tool.fit is not None:
        return find_spec(tool.packages) is not None
    if shutil.which("Rscript") is None:
        return False
    code = f'cat(nchar(system.file(package = "{tool.packages}")) > 0)'
    return subprocess.run(["Rscript", "-e", code], capture_output=True, text=True, check=False).stdout == "TRUE"


def run(tool: Tool, folder: Path, timeout: float) -> dict[str, Any]:
    """Fit the problem of a folder in a process of its own, with one thread.

    Returns
    -------
    `version`, `fits` (a list), and `note`, which says so if not all genes were fitted.

    Raises
    ------
    WorkerFailed
        The tool failed on the first gene.
    """
    if tool.fit is None:
        return _run_r(tool, folder, timeout)
    return run_module("benchmarks.speed.worker", tool.name, str(folder), one_thread=True, timeout=timeout)


def _run_r(tool: Tool, folder: Path, timeout: float) -> dict[str, Any]:
    problem_genes = Problem.read(folder).genes
    command = ["Rscript", str(SCRIPT), tool.packages, str(folder)]
    process = subprocess.Popen(
        command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    note = ""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        note = f"stopped after {timeout:.0f} s"
    lines = [line.split("\t") for line in out.splitlines()]
    fits = [_fit(problem_genes, fields) for _, *fields in (line for line in lines if line[0] == "fit")]
    if process.returncode != 0:
        said = err.strip().splitlines()
        note = note or (said[-1] if said else f"exit code {process.returncode}")
        if not fits:
            raise WorkerFailed(note)
    found = next(line[1] for line in lines if line[0] == "version")
    return {"version": found, "fits": [asdict(fit) for fit in fits], "note": note}


def _fit(genes: list[str], fields: list[str]) -> Fit:
    cpu, wall, loglik, sigma2, theta, memory = map(float, fields[1:7])
    beta = [float(b) for b in fields[8:]]
    return Fit(genes[int(fields[0]) - 1], cpu, wall, beta, sigma2, theta, memory, loglik, fields[7])


def main() -> None:
    """Fit, and give the result to the process that asked."""
    tool, problem = TOOLS[sys.argv[1]], Problem.read(Path(sys.argv[2]))
    fits = [asdict(fit) for fit in tool.fit(problem)]
    try:
        release = version(tool.packages)
    except PackageNotFoundError:
        release = "?"
    give({"version": release, "fits": fits, "note": ""})


if __name__ == "__main__":
    main()
