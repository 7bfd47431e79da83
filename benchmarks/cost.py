"""Bytes, memory and seconds of a run by formulas, checked against the sweeps and filled in for larger data.

    python -m benchmarks.cost --write docs/scaling.md

reads what `python -m benchmarks.scaling --out docs/benchmarks` has measured, estimates the constants of the formulas of
docs/scaling.md from it, and prints (or writes between the marks in that file) the constants, measured beside computed,
and the formulas filled in. What cannot be measured on one machine is assumed, and named: `ASSUMED`.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from benchmarks.measure import ROOT
from scglmm.compression.nodes import n_nodes

ASSUMED = {
    "plain": (1.0e9, "bytes per second and worker, a file without compression"),
    "gzip": (3.0e8, "uncompressed bytes per second and worker, a file with gzip"),
    "network": (1.0e9, "bytes per second between workers"),
    "latency": (1.0, "seconds in which a round of tasks on a cluster begins and ends"),
}
BYTES_PER_NONZERO = 8  # float32 and int32
HISTOGRAM_BYTES = 4 * 129
RESULT_BYTES = 3_500  # of a gene at the end: estimates, covariances, tables
PIECES = 4 * 128 * 2**20  # of a file while it is read, and the next one; half of it where that is over a quarter
FINER = np.log(12 / 1e-14) / np.log(12 / 1e-10)  # nodes where counts are read once, before it is known how many suffice


@dataclass(frozen=True)
class Constants:
    """CPU seconds on one core, and bytes.

    Attributes
    ----------
    cell, cell_node
        Design, strata and order of a cell; the weight of a cell on one node, each time it is computed.
    nonzero_node
        A count added to one node.
    fit, fit_node
        A REML fit of one gene with its tests: what every fit takes, and each node.
    call
        What `tl.nbmm` does for a gene besides, in fits: the null model, checks, tables.
    cell_bytes
        Peak memory for each cell, besides 8 bytes for each column of X.
    """

    cell: float
    cell_node: float
    nonzero_node: float
    fit: float
    fit_node: float
    call: float
    cell_bytes: float

    @classmethod
    def of(cls, table: pd.DataFrame) -> Constants:
        """Estimate them from the sweeps, in least squares of relative errors."""
        one = table[table["workers"] == 1]
        n, m, nodes = (one[name].to_numpy(float) for name in ("cells", "genes", "nodes"))
        per_cell = nodes / one["strata"].to_numpy(float)
        cell = _relative([n], one["design_s"])[0]
        cell_node = _relative([n * per_cell], one["nodes_s"])[0]
        added = (one["compression_s"] - cell_node * n * per_cell).to_numpy(float)
        heavy = (one["nonzeros"] > 2e6).to_numpy()  # where counts and not cells decide
        heavy = heavy if heavy.any() else np.ones(len(one), bool)
        counted = (one["nonzeros"] * per_cell).to_numpy(float)
        nonzero_node = _relative([counted[heavy]], np.maximum(added[heavy], 1e-3))[0]
        fit, fit_node = _relative([np.ones(len(one)), nodes], one["fit_reml_ms"] / 1e3)
        rest = one["call_cpu_s"] - one["design_s"] - 2 * one["nodes_s"] - one["compression_s"]
        many = m >= 400 if (m >= 400).any() else m > 0
        call = _relative([(m * (fit + fit_node * nodes))[many]], np.maximum(rest.to_numpy(float)[many], 1e-3))[0]
        large = n >= 2e5 if (n >= 2e5).any() else n > 0
        above = (one["call_bytes"] - table_bytes(nodes, m)).to_numpy(float)
        cell_bytes = float(np.median((above / n)[large])) - 8 * COEFFICIENTS
        return cls(cell, cell_node, nonzero_node, fit, fit_node, call, max(cell_bytes, 0.0))


COEFFICIENTS = 4  # columns of X in the sweeps


def _relative(columns: list[np.ndarray], seconds: pd.Series | np.ndarray) -> list[float]:
    """Non-negative coefficients for which the relative errors are least."""
    y = np.asarray(seconds, float)
    kept = y > 0
    return nnls(np.column_stack(columns)[kept] / y[kept, None], np.ones(kept.sum()))[0].tolist()


def table_bytes(nodes: float, genes: float) -> float:
    """Size of the counts of the genes on the nodes, and of their histograms."""
    return (8 * nodes + HISTOGRAM_BYTES) * genes


@dataclass(frozen=True)
class Work:
    """A run.

    Attributes
    ----------
    cells, genes, donors, nonzeros, nodes
        n, G, S, Z and N of docs/scaling.md.
    """

    cells: float
    genes: float
    donors: float
    nonzeros: float
    nodes: float

    @classmethod
    def typical(cls, cells: float, genes: float, donors: float, density: float, half_width: float) -> Work:
        """Make a run whose nodes are not known, from half the width of a donor's range of log library sizes."""
        nodes = min(float(n_nodes(np.array(half_width), 1e-10)), cells / donors)
        return cls(cells, genes, donors, cells * genes * density, nodes * donors)

    @property
    def per_cell(self) -> float:
        """K: nodes of a donor."""
        return self.nodes / self.donors

    @property
    def matrix_bytes(self) -> float:
        """The counts as CSR."""
        return BYTES_PER_NONZERO * self.nonzeros + 8 * self.cells

    @property
    def table_bytes(self) -> float:
        """The counts of all genes on the nodes."""
        return table_bytes(self.nodes, self.genes)

    def fixed_bytes(self, constants: Constants) -> float:
        """Cells and results, whatever the tables take."""
        return (constants.cell_bytes + 8 * COEFFICIENTS) * self.cells + RESULT_BYTES * self.genes

    def fit_seconds(self, constants: Constants) -> float:
        """One gene in `tl.nbmm`."""
        return constants.call * (constants.fit + constants.fit_node * self.nodes)

    def passes(self, constants: Constants, max_memory: float, workers: int = 1) -> int | None:
        """How often counts that are not in memory are read; None where not even one gene fits."""
        left = max_memory - self.fixed_bytes(constants) - 8 * self.cells
        tables = left / 8 if workers > 2 else left - (PIECES if left // 4 >= PIECES else PIECES // 2)
        if tables < self.table_bytes / self.genes:
            return None
        if FINER * self.table_bytes <= 0.75 * tables:
            return 1
        return 1 + int(np.ceil(self.table_bytes / tables))

    def seconds(
        self, constants: Constants, workers: int = 1, passes: int = 1, storage: str | None = None
    ) -> dict[str, float]:
        """Seconds by the clock of every stage, on so many cores.

        Parameters
        ----------
        constants
            Of the machine.
        workers
            Cores: threads of one machine, or workers of a cluster, which exchange tables.
        passes
            How often the counts are read.
        storage
            `"plain"`, `"gzip"`, or None in memory.
        """
        weights = constants.cell_node * self.cells * self.per_cell
        added = constants.nonzero_node * self.nonzeros * self.per_cell
        seconds = {
            "reading": 0.0 if storage is None else passes * self.matrix_bytes / ASSUMED[storage][0] / workers,
            # design, nodes and their weights are made by one process
            "cells": constants.cell * self.cells + weights,
            "compression": (added + passes * weights) / workers,
            "exchange": 0.0,
            "fits": self.fit_seconds(constants) * self.genes / workers,
        }
        if workers > 2:
            rounds = np.ceil(np.log2(workers))
            # every round sends tables; then they go out again to be fitted; cells' places are sent in every pass
            moved = (rounds + 1) * self.table_bytes + 32 * self.cells * passes
            seconds["exchange"] = moved / ASSUMED["network"][0] + (rounds + 2) * passes * ASSUMED["latency"][0]
        return seconds


EXAMPLES = [  # cells, donors
    (60e3, 250),
    (1e6, 500),
    (10e6, 1_000),
    (100e6, 5_000),
]
EXAMPLE_GENES, EXAMPLE_DENSITY, EXAMPLE_HALF_WIDTH = 20_000, 0.05, 1.7
LAPTOP, SERVER = 3e9, 32e9  # max_memory


def constants_table(constants: Constants) -> str:
    """Write the constants."""
    rows = [
        ("$c_n$", constants.cell, "s per cell: design, strata, order"),
        ("$c_w$", constants.cell_node, "s per cell and node: weights of the cells"),
        ("$c_z$", constants.nonzero_node, "s per non-zero and node: sums of the counts"),
        ("$c_0$", constants.fit, "s per REML fit, whatever the nodes"),
        ("$c_N$", constants.fit_node, "s per REML fit and node"),
        ("$r$", constants.call, "fits per gene of a whole `tl.nbmm`"),
        ("$b_n$", constants.cell_bytes, "bytes per cell, besides 8 per column of X"),
        *((f"*{name}*", value, f"{what}: assumed, not measured") for name, (value, what) in ASSUMED.items()),
    ]
    lines = ["| constant | value | |", "| --- | ---: | --- |"]
    return "\n".join(lines + [f"| {name} | {value:.3g} | {what} |" for name, value, what in rows])


def measured_table(table: pd.DataFrame, constants: Constants) -> str:
    """Write measured / computed for every point of the sweeps."""
    lines = [
        "| cells | donors | genes | workers | nodes | cells and compression, CPU s | one fit, ms | whole call, CPU s "
        "| memory, MiB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in table.to_dict("records"):
        work = Work(*(float(row[name]) for name in ("cells", "genes", "donors", "nonzeros", "nodes")))
        seconds = work.seconds(constants)
        prepared = row["design_s"] + row["nodes_s"] + row["compression_s"]
        fit = 1e3 * (constants.fit + constants.fit_node * work.nodes)
        # the tables of a block of genes stay below 256 MiB
        memory = work.fixed_bytes(constants) + min(work.table_bytes, 256 * 2**20)
        lines.append(
            f"| {row['cells']:,} | {row['donors']:,} | {row['genes']:,} | {row['workers']} | {row['nodes']:,} "
            f"| {prepared:.2f} / {seconds['cells'] + seconds['compression']:.2f} "
            f"| {row['fit_reml_ms']:.2f} / {fit:.2f} | {_measured(row['call_cpu_s'])} / {sum(seconds.values()):.1f} "
            f"| {row['call_bytes'] / 2**20:,.0f} / {memory / 2**20:,.0f} |"
        )
    return "\n".join(lines)


def _measured(seconds: float) -> str:
    return "–" if np.isnan(seconds) else f"{seconds:.1f}"


def filled_table(constants: Constants) -> str:
    """Write the formulas filled in for the examples."""
    lines = [
        "| cells | donors | non-zeros | counts | nodes | tables | cells and results | passes: 3 GB, 32 GB | workers "
        "| reading | cells | compression | exchange | fits | sum | most of it |",
        "| " + " | ".join(15 * ["---:"]) + " | --- |",
    ]
    for cells, donors in EXAMPLES:
        work = Work.typical(cells, EXAMPLE_GENES, donors, EXAMPLE_DENSITY, EXAMPLE_HALF_WIDTH)
        for workers in (1, 100):
            passes = [work.passes(constants, memory, workers) for memory in (LAPTOP, SERVER)]
            seconds = work.seconds(constants, workers, passes[1] or 1, storage="gzip")
            size = (
                f"{cells:,.0f} | {donors:,} | {work.nonzeros:.2g} | {_bytes(work.matrix_bytes)} | {work.nodes:,.0f} | "
                f"{_bytes(work.table_bytes)} | {_bytes(work.fixed_bytes(constants))}"
            )
            shown = " | ".join(_time(value) for value in (*seconds.values(), sum(seconds.values())))
            most = max(seconds, key=seconds.get)
            read = ", ".join("too little" if each is None else str(each) for each in passes)
            lines.append(
                f"| {size if workers == 1 else ' | '.join(7 * [''])} | {read} | {workers} | {shown} | {most} |"
            )
    return "\n".join(lines)


def _bytes(size: float) -> str:
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds >= 0.05 else "0"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main(argv: list[str] | None = None) -> None:
    """Print the tables, or put them into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=ROOT / "docs" / "benchmarks" / "scaling.csv")
    parser.add_argument("--write", type=Path, help="document with <!-- begin NAME --> and <!-- end NAME -->")
    options = parser.parse_args(argv)
    table = pd.read_csv(options.measured)
    constants = Constants.of(table)
    tables = {
        "constants": constants_table(constants),
        "measured": measured_table(table, constants),
        "filled": filled_table(constants),
    }
    if options.write is None:
        print("\n\n".join(tables.values()))
        return
    text = options.write.read_text()
    for name, content in tables.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, n = pattern.subn(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)
        if n != 1:
            raise SystemExit(f"{options.write} has no place for the table {name!r}")
    options.write.write_text(text)


if __name__ == "__main__":
    main()
