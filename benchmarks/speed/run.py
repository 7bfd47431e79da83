"""The command: one tool after the other on the same genes, then the table and the picture.

    python -m benchmarks.speed                                   # bundled data, every tool that is installed
    python -m benchmarks.speed --h5ad psychad40.h5ad --genes 8 --slow-genes 2 --out docs/benchmarks
    python -m benchmarks.speed --smoke                           # whether it runs

Every tool runs in a process of its own with one thread. Tools that are not installed are named and left out.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.data import arguments, load
from benchmarks.measure import WorkerFailed, machine

from .problem import Problem
from .report import Results, write_report
from .tools import TOOLS
from .worker import is_installed, run


def main(argv: list[str] | None = None) -> None:
    """Run the tools, write the report."""
    parser = arguments(__doc__)
    parser.set_defaults(genes=8)
    parser.add_argument("--slow-genes", type=int, default=2, help="genes for tools that take seconds each")
    parser.add_argument("--cells", type=int, help="use only so many cells, spread over the data")
    parser.add_argument("--tools", nargs="*", choices=list(TOOLS), default=list(TOOLS), metavar="TOOL")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for a tool")
    parser.add_argument("--smoke", action="store_true", help="a few cells and genes")
    parser.add_argument("--out", type=Path, help="folder for speed.csv, speed.md and speed.png")
    options = parser.parse_args(argv)
    if options.smoke:
        options.cells, options.genes, options.slow_genes = 3000, 2, 1
    genes, options.genes = options.genes, None
    adata = load(options)
    if options.cells:
        adata = adata[np.linspace(0, adata.n_obs - 1, options.cells).astype(int)].copy()
    chosen = np.linspace(0, adata.n_vars - 1, min(genes, adata.n_vars)).astype(int)
    few = chosen[np.linspace(0, chosen.size - 1, min(options.slow_genes, chosen.size)).round().astype(int)]
    problems = {False: Problem.of(adata, options.formula, chosen), True: Problem.of(adata, options.formula, few)}
    results = Results(problems[False], machine())
    print(f"{results.title}\n{results.machine}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folders = {slow: Path(name) / ("few" if slow else "all") for slow in problems}
        for slow, problem in problems.items():
            folders[slow].mkdir()
            problem.write(folders[slow])
        for tool in (TOOLS[each] for each in options.tools):
            if not is_installed(tool):
                results.missing[tool.name] = "not installed here"
            else:
                try:
                    results.add(tool, run(tool, folders[tool.slow], options.timeout))
                except WorkerFailed as error:
                    results.missing[tool.name] = str(error)
            print(f"{tool.name}: {results.missing.get(tool.name, 'done')}", flush=True)
    print("\n" + write_report(results, options.out))
