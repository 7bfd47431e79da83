"""Terms of the fixed effects that nearly say the same, measured among the replicates of each.

The variance of an estimate is multiplied by 1 / (1 - R2), R2 the share of a term's variance that the other terms
explain. For a term with several columns R2 is that of its worst combination, the largest squared canonical correlation.
Terms that share a column of obs (``Age + I(Age**2)``, ``Dx * Age``) are collinear by construction, and are one block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scglmm.formula.terms import parse_terms

from .layout import Layout


@dataclass(frozen=True)
class Collinear:
    """One block of terms and what it follows from.

    Attributes
    ----------
    terms, others
        Names of the terms in the block, and of those that explain it.
    group
        Grouping factor among whose levels it was measured, None for cells.
    explained
        Share of the variance of its worst combination that the others explain.
    """

    terms: list[str]
    others: list[str]
    group: str | None
    explained: float

    @property
    def inflation(self) -> float:
        """Factor on the variance of an estimate."""
        return 1 / (1 - self.explained)


def collinear_terms(layout: Layout, least: float = 0.5) -> list[Collinear]:
    """Measure every block of terms against the others, worst first.

    Parameters
    ----------
    layout
        The design.
    least
        Shares below this are left out.
    """
    blocks = _blocks(layout)
    found: list[Collinear] = []
    for i, block in enumerate(blocks):
        rest = [other for j, other in enumerate(blocks) if j != i]
        if not rest:
            continue
        group, average = _replicates(layout, block)
        columns = [average(layout.frame.X[:, _columns(layout, terms)]) for terms in blocks]
        mine, others = columns[i], [c for j, c in enumerate(columns) if j != i]
        together = np.hstack(others)
        if mine.shape[0] - 1 <= mine.shape[1] + together.shape[1]:
            continue  # no replicate is left, which is another matter
        explained = _canonical(mine, together)
        if explained < least:
            continue
        single = [_canonical(mine, other) for other in others]
        best = int(np.argmax(single))
        which = [rest[best]] if (1 - single[best]) < 2 * (1 - explained) else rest
        names = [name for terms in which for name in terms]
        found.append(Collinear(block, names, group, explained))
    found.sort(key=lambda c: -c.explained)
    kept: list[Collinear] = []
    for one in found:
        if not any(set(one.terms) <= set(k.others) and set(k.terms) <= set(one.others) for k in kept):
            kept.append(one)
    return kept


def _blocks(layout: Layout) -> list[list[str]]:
    """Terms that share columns of obs."""
    blocks: list[tuple[set[str], list[str]]] = []
    for product in parse_terms(layout.design.formula.fixed).terms:
        name = ":".join(factor.name for factor in product)
        used = {column for factor in product for column in factor.columns}
        joined = [b for b in blocks if b[0] & used]
        blocks = [b for b in blocks if not b[0] & used]
        names = [n for b in joined for n in b[1]] + [name]
        blocks.append((used.union(*(b[0] for b in joined)), names))
    return [names for _, names in blocks]


def _columns(layout: Layout, terms: list[str]) -> list[int]:
    return [j for name in terms for j in layout.columns_of[name]]


def _replicates(layout: Layout, block: list[str]) -> tuple[str | None, Callable[[np.ndarray], np.ndarray]]:
    """Find the grouping factor within whose levels a block is constant, and how to average over its levels."""
    x = layout.frame.X[:, _columns(layout, block)]
    constant = [g for g, t in layout.groups.items() if all(not layout.mixed(c, g).size for c in x.T)]
    if not constant:
        root = np.sqrt(layout.n_cells / layout.n_total)[:, None]
        return None, lambda values: root * (values - layout.n_cells @ values / layout.n_total)
    group = min(constant, key=lambda g: layout.groups[g].n_levels)
    term = layout.groups[group]
    cells = layout.cells_per_level(group)

    def average(values: np.ndarray) -> np.ndarray:
        sums = [np.bincount(term.codes, layout.n_cells * column, term.n_levels) for column in values.T]
        means = np.array(sums).T / cells[:, None]
        return means - means.mean(axis=0)

    return group, average


def _canonical(a: np.ndarray, b: np.ndarray) -> float:
    """Largest squared canonical correlation of centred columns."""
    bases = []
    for columns in (a, b):
        size = np.sqrt((columns**2).sum(axis=0))
        u, d, _ = np.linalg.svd(columns[:, size > 0] / size[size > 0], full_matrices=False)
        bases.append(u[:, d > 1e-9 * d[0]] if d.size else u)
    product = bases[0].T @ bases[1]
    if not product.size:
        return 0.0
    return float(min(np.linalg.svd(product, compute_uv=False)[0] ** 2, 1 - 1e-12))
