"""How often the counts are read, and what may be held of them: decided by the storage and the memory allowed.

In memory, counts are looked at once for checks and sums, and once for the tables of every block of genes. Elsewhere a
pass over them is dear. Where the tables of all genes fit into the memory allowed, one pass gives checks, sums and
tables (`scglmm.compression.prepared`); it needs the offsets of the cells, and where these are the cells' total counts,
a pass before it adds them up. Where they do not fit, the first pass gives sums, and every block of genes takes another
(columns on disk are read once by all blocks together).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scglmm.compression import chunks
from scglmm.compression.chunks import is_dask, is_in_memory_sparse, is_stored_sparse
from scglmm.compression.nodes import make_nodes
from scglmm.compression.precision import FINEST
from scglmm.compression.prepared import Prepared
from scglmm.compression.tables import Part, Tables, gene_blocks, gene_bytes
from scglmm.inference.cell_level import Placed

from ._memory import spell_bytes

if TYPE_CHECKING:
    from ._counts import Source
    from ._groups import Group

TABLE_BYTES = 256 * 2**20  # tables of a block of genes that need no pass of their own: more would gain nothing
COPIES = 4  # of a piece of the matrix while it is added, and the next one read
DASK_COPIES = 8  # of a table while the workers of a dask cluster add up
LEAST_NODES = 8  # of a stratum with many cells, for a first guess


@dataclass(frozen=True)
class Ahead:
    """Nodes that suit any counts, for counts that are not in memory.

    They are used however often the counts are read, so that results do not depend on the memory allowed.

    Attributes
    ----------
    parts
        Of every group: its cells on those nodes, and all genes.
    tables
        Their tables; None where they do not fit into the memory allowed.
    """

    parts: list[Part]
    tables: list[Tables] | None = None

    def matrix(self, matrix: Any, placed: Sequence[Placed]) -> Prepared:
        """Give what takes the place of the matrix in `scglmm.compression.tables.accumulate_parts`.

        Nodes in covariates have strata of their own, for which the matrix is read again.
        """
        same = [k for k, each in enumerate(placed) if not each.covariates]
        some = self.take(same)
        return Prepared(matrix, [placed[k].nodes for k in same], [part.nodes for part in some.parts], some.tables)

    def take(self, kept: Sequence[int]) -> Ahead:
        """Give that of some of the groups."""
        return Ahead([self.parts[k] for k in kept], None if self.tables is None else [self.tables[k] for k in kept])


@dataclass(frozen=True)
class Budget:
    """Memory of a run.

    Attributes
    ----------
    allowed
        Bytes beside the data.
    fixed
        Of which cells, their designs and the results take so many, whatever is done.
    in_memory
        Whether the counts are sparse in memory.
    dask
        Whether they are a dask array.
    """

    allowed: int
    fixed: int
    in_memory: bool
    dask: bool = False

    @property
    def tables(self) -> int:
        """Bytes for tables."""
        left = self.allowed - self.fixed
        if self.dask:
            return left // DASK_COPIES
        return left - (0 if self.in_memory else self.reading)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a piece of the matrix where one pass is all: large if that leaves most to the tables."""
        large = chunks.LARGE * chunks.CHUNK_BYTES
        return large if (self.allowed - self.fixed) // 4 >= COPIES * large else chunks.CHUNK_BYTES

    @property
    def reading(self) -> int:
        """Bytes for the piece of the matrix that is read."""
        return COPIES * self.chunk_bytes

    @property
    def block(self) -> int:
        """Bytes for the tables of a block of genes that are read on their own."""
        return min(self.tables, TABLE_BYTES) if self.in_memory else self.tables

    @property
    def ahead(self) -> int:
        """Bytes for tables of all genes, from which blocks are taken."""
        return self.tables * 3 // 4

    @property
    def taken(self) -> int:
        """Bytes for the tables of a block that is taken from those."""
        return min(self.tables // 4, TABLE_BYTES)

    def of_block(self, parts: Sequence[Part], ahead: Ahead | None) -> int:
        """Bytes for the tables of a block of genes of the parts; those on finer nodes are there at the same time."""
        if ahead is None or not parts:
            return self.block
        if ahead.tables is not None:
            return self.taken
        pairs = [(_bytes(part), _bytes(finer)) for part, finer in zip(parts, ahead.parts, strict=True)]
        return min(self.block * own // (own + finer) for own, finer in pairs)

    def check(self, parts: Sequence[Part], ahead: Ahead | None, name: str) -> None:
        """Check that at least one gene fits.

        Raises
        ------
        ValueError
            It does not.
        """
        if self.in_memory or not parts:
            return
        gene = _most_bytes(parts, ahead)
        if self.tables < gene:
            needed = self.fixed + (DASK_COPIES * gene if self.dask else self.reading + gene)
            msg = (
                f"max_memory of {spell_bytes(self.allowed)} is too little to read {name} piece by piece: "
                f"{spell_bytes(self.fixed)} for the cells and the results, {spell_bytes(gene)} for the tables of one "
                f"gene. At least {spell_bytes(needed)} are needed; with more, the counts are read fewer times."
            )
            raise ValueError(msg)


def make_budget(allowed: int, source: Source, groups: Sequence[Group], n_genes: int) -> Budget:
    """Share the memory out."""
    matrix = source.matrix
    fixed = fixed_bytes(groups, [n_genes] * len(groups), matrix.shape)
    if is_stored_sparse(matrix):
        fixed += 8 * matrix.shape[0 if matrix.format == "csr" else 1]  # where every row begins
    return Budget(allowed, fixed, is_in_memory_sparse(matrix), is_dask(matrix))


def fixed_bytes(groups: Sequence[Group], n_genes: Sequence[int], shape: tuple[int, int]) -> int:
    """Memory of a run beside the tables of counts: cells and their designs, sums, and results."""
    cells = sum(group.design.X.nbytes + 10 * 8 * group.used.size for group in groups) + 2 * 8 * shape[0]
    sums = 2 * 8 * len(groups) * shape[1]
    # estimates and their covariances, once as fits and once as tables
    p = max(len(group.design.columns) for group in groups)
    results = (2 * 8 * (6 * p + p * p + 20) + 2_000) * sum(n_genes)
    return int(cells + sums + results)


def suits_ahead(budget: Budget, groups: Sequence[Group]) -> bool:
    """Whether nodes may be placed before the counts are known; not where cells differ in every way."""
    return not budget.in_memory and all(2 * np.max(group.stratum) < group.stratum.size for group in groups)


def may_fit(budget: Budget, groups: Sequence[Group], n_genes: int) -> bool:
    """Whether tables of all genes may fit, before the offsets are known."""
    least = sum(int(np.minimum(np.bincount(group.stratum), LEAST_NODES).sum()) for group in groups)
    return least * 8 * n_genes <= budget.ahead


def place_ahead(
    groups: Sequence[Group],
    offsets: Sequence[np.ndarray],
    genes: np.ndarray,
    singularities: Sequence[float],
    n_jobs: int = 1,
) -> Ahead:
    """Place nodes that will do whatever the counts are."""
    parts = []
    for group, offset, singularity in zip(groups, offsets, singularities, strict=True):
        nodes = make_nodes(group.stratum, offset, FINEST, singularity=singularity, n_jobs=n_jobs)
        parts.append(Part(group.used, nodes, genes, group.inflation is not None))
    return Ahead(parts)


def table_bytes(parts: Sequence[Part]) -> int:
    """Memory of all tables."""
    return sum(part.genes.size * gene_bytes(part.nodes, part.presence) for part in parts)


def _bytes(part: Part) -> int:
    return gene_bytes(part.nodes, part.presence)


def _most_bytes(parts: Sequence[Part], ahead: Ahead | None) -> int:
    """Memory of the tables of the gene that takes most, with those on finer nodes."""
    size = np.zeros(1 + max((int(part.genes.max()) for part in parts if part.genes.size), default=0), np.int64)
    for part, finer in zip(parts, [None] * len(parts) if ahead is None else ahead.parts, strict=True):
        size[part.genes] += _bytes(part) + (0 if finer is None else _bytes(finer))
    return int(size.max())


def n_passes(matrix: Any, parts: Sequence[Part], max_bytes: float) -> tuple[int, int]:
    """Count the blocks of genes, and the passes over the counts that they take."""
    n_blocks = len(gene_blocks(parts, max_bytes))
    by_columns = is_stored_sparse(matrix) and matrix.format == "csc"
    return n_blocks, min(n_blocks, 1) if by_columns else n_blocks
