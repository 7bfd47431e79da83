"""Time the pass over the counts against the sum over cells, side by side.

    python benchmarks/compression.py [--cells 200000] [--genes 2000] [--donors 100] [--density 0.1] [--repeats 7]

Counts are drawn as CSR with float32 values and int32 indices, as AnnData holds them, and summed onto a fixed number of
nodes for each donor. Everything is run several times in turn and the best of each is compared, so that what else runs
on the machine matters less.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import scipy.sparse as sp

from scglmm.compression.nodes import Nodes, make_nodes
from scglmm.compression.tables import accumulate


def draw(n_cells: int, n_genes: int, density: float, rng: np.random.Generator) -> sp.csr_matrix:
    """Draw counts without the cost of a simulation: genes of different frequency, small whole numbers."""
    weight = rng.gamma(0.5, size=n_genes)
    chance = np.minimum(0.95, density * weight / weight.mean())
    columns, lengths = [], []
    for first in range(0, n_cells, 2_000):
        row, column = np.nonzero(rng.random((min(2_000, n_cells - first), n_genes), np.float32) < chance)
        columns.append(column.astype(np.int32))
        lengths.append(np.bincount(row, minlength=min(2_000, n_cells - first)))
    indices = np.concatenate(columns)
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int32)
    data = rng.geometric(0.6, indices.size).astype(np.float32)
    return sp.csr_matrix((data, indices, indptr), shape=(n_cells, n_genes))


def nodes_of(n_cells: int, n_donors: int, n_nodes: int, rng: np.random.Generator) -> Nodes:
    """As many nodes as asked for, for every donor."""
    offset = rng.uniform(-1, 1, n_cells)
    donor = np.sort(rng.integers(0, n_donors, n_cells))
    for tolerance in 10.0 ** np.arange(-1.0, -14.0, -0.1):
        nodes = make_nodes(donor, offset, tolerance)
        if nodes.size >= n_nodes * n_donors:
            return nodes
    msg = f"{n_nodes} nodes are more than any tolerance needs."
    raise ValueError(msg)


def main() -> None:
    """Print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--donors", type=int, default=100)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--nodes", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    X = draw(options.cells, options.genes, options.density, rng)
    nodes = nodes_of(options.cells, options.donors, options.nodes, rng)
    print(f"{X.nnz:,} counts, {options.cells:,} cells, {nodes.size / options.donors:.1f} nodes per donor")
    rows, genes = np.arange(options.cells), np.arange(options.genes)
    accumulate(X[:100], rows[:100], make_nodes(nodes.stratum[:100], nodes.offset[:100]), genes)  # compiles
    work = {
        "X.sum(axis=0)": lambda: X.sum(axis=0),
        "one thread": lambda: accumulate(X, rows, nodes, genes, 1),
        "two threads": lambda: accumulate(X, rows, nodes, genes, 2),
    }
    best = dict.fromkeys(work, np.inf)
    for _ in range(options.repeats):
        for name, run in work.items():
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - begin)
    for name, seconds in best.items():
        print(f"{name:14s} {seconds:7.3f} s  {1e9 * seconds / X.nnz:6.2f} ns per count")
    print(f"one thread / sum         {best['one thread'] / best['X.sum(axis=0)']:.2f}")
    print(f"one thread / two threads {best['one thread'] / best['two threads']:.2f}")


if __name__ == "__main__":
    main()
