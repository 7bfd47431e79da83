"""Containment degrees of freedom: what is left when the variance that carries a contrast is estimated at 0.

With that variance at 0 Satterthwaite's formula is 0/0, and taking it for infinity makes the test anti-conservative (20
to 30% of true nulls at a nominal 5% with 4 donors a group). The design knows better: a contrast between donors has at
most as many degrees of freedom as there are donors left after the fixed effects. For the coarsest random component r
within whose levels the contrast is constant,

    df = rank[X, Z_r, Z_coarser] - rank[X, Z_coarser]

J - p for a donor-level effect with J donors; donors - 1 for `stim + (1|ind) + (1|ind:stim)`. A *component* is one
column of a random term; a slope carries the fixed effect of its covariate, so `stim + (stim|ind)` has donors - 1 too.
Where no column of a term carries the contrast, a combination of them may: the columns of `(0 + stim|ind)` add up to the
intercept that carries a donor-level effect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .frame import Frame, RandomTerm


@dataclass(frozen=True)
class Carrier:
    """The random component that carries a contrast.

    Attributes
    ----------
    term
        Index of the random term.
    direction
        (columns,) the component as a combination of the columns of the term, 1 for a single column.
    df
        Containment degrees of freedom.
    """

    term: int
    direction: np.ndarray
    df: float


def find_carrier(frame: Frame, contrast: np.ndarray) -> Carrier | None:
    """Find the component that carries a contrast of the fixed effects, None if it varies within all levels.

    Parameters
    ----------
    frame
        The model.
    contrast
        (p,) weights of the coefficients. What has to be constant within levels is the part of the linear predictor that
        they pick, up to what the other coefficients can explain: for a single coefficient its column.
    """
    column = frame.X @ contrast
    carriers = []
    for r, term in enumerate(frame.terms):
        direction = _direction(column, term)
        if direction is not None:
            carriers.append((term.n_levels, r, direction))
    if not carriers:
        return None
    _, r, direction = min(carriers, key=lambda found: found[:2])
    j = int(np.abs(direction).argmax())
    coarser = [
        (other, k)
        for other, term in enumerate(frame.terms)
        for k in range(len(term.columns))
        if (other, k) != (r, j) and _is_coarser(frame.terms[r], term, other == r)
    ]
    with_r = _rank(frame, [*coarser, (r, j)])
    return Carrier(r, direction, float(with_r - _rank(frame, coarser)))


def levels_to_spare(frame: Frame, term: int) -> int:
    """Count the dimensions of a random term that neither the fixed effects nor coarser terms take up.

    With none left there is nothing to estimate the variance of the term from: 2 donors, one in each of two groups.
    """
    own = frame.terms[term]
    coarser = [
        (r, k)
        for r, other in enumerate(frame.terms)
        if other.n_levels < own.n_levels and _is_coarser(own, other, False)
        for k in range(len(other.columns))
    ]
    taken = frame.X.shape[1] + sum(frame.terms[r].n_levels for r, _ in coarser)
    if own.n_levels > taken:
        return own.n_levels - taken  # at least; the ranks of many levels take time
    components = [(term, k) for k in range(len(own.columns))]
    return _rank(frame, [*coarser, *components]) - _rank(frame, coarser)


def constant_within(frame: Frame, term: int) -> np.ndarray:
    """(p,) whether a fixed effect differs only between the levels of a random term."""
    codes, n_levels = frame.terms[term].codes, frame.terms[term].n_levels
    one = np.empty((n_levels, frame.X.shape[1]))
    one[codes] = frame.X
    return (one[codes] == frame.X).all(axis=0)


def _direction(x: np.ndarray, term: RandomTerm) -> np.ndarray | None:
    """Find the combination of columns of a term that carries x within its levels: a single column if one will do."""
    c = len(term.columns)
    for direction in np.eye(c):
        if _in_span(x, term, direction):
            return direction
    if c == 1:
        return None
    # z'direction has to be proportional to x within every level: each stratum against the largest x of its level.
    z = term.covariates / term.scale
    largest = np.lexsort((np.abs(x), term.codes))[np.cumsum(np.bincount(term.codes, minlength=term.n_levels)) - 1]
    left = x[largest][term.codes, None] * z - x[:, None] * z[largest][term.codes]
    _, size, vectors = np.linalg.svd(np.linalg.qr(left, mode="r"))
    size = np.concatenate([size, np.zeros(c - size.size)])
    null = vectors[size <= 1e-9 * np.abs(x).max() * np.sqrt(x.size)]
    # In the coding of a factor by all its levels it is their sum that stands for the intercept.
    direction = null.T @ (null @ np.ones(c)) / term.scale
    return direction if direction.any() and _in_span(x, term, direction) else None


def _in_span(x: np.ndarray, term: RandomTerm, direction: np.ndarray) -> bool:
    """Whether x is a combination of the columns z'direction * (indicator of a level)."""
    z = term.covariates @ direction
    z = np.where(np.abs(z) > 1e-9 * np.abs(z).max(), z, 0.0)  # a combination is seldom exactly 0
    zz = np.bincount(term.codes, z * z, term.n_levels)
    level = np.bincount(term.codes, z * x, term.n_levels) / np.where(zz > 0, zz, 1.0)
    scale = np.abs(x).max()
    return bool(np.abs(x - z * level[term.codes]).max() <= 1e-8 * scale) if scale > 0 else False


def _is_coarser(term: RandomTerm, other: RandomTerm, same: bool) -> bool:
    """Whether every level of `term` lies within one level of `other` (a term with the same levels counts)."""
    if same:
        return True
    pairs = np.unique(np.stack([term.codes, other.codes]), axis=1).shape[1]
    return pairs == term.n_levels


def _rank(frame: Frame, components: list[tuple[int, int]]) -> int:
    """Rank of X and the columns of some components, block by block of strata that share levels."""
    X = frame.X / np.abs(frame.X).max(axis=0)
    n_strata = X.shape[0]
    if not components:
        return int(np.linalg.matrix_rank(X, tol=1e-9 * np.sqrt(n_strata)))
    if len(components) == 1:
        return _rank_beside_one(X, frame.terms[components[0][0]], components[0][1])
    groups = {r for r, _ in components}
    starts, total = {}, n_strata
    for r in groups:
        starts[r] = total
        total += frame.terms[r].n_levels
    edges = np.concatenate([starts[r] + frame.terms[r].codes for r in groups])
    strata = np.tile(np.arange(n_strata), len(groups))
    graph = coo_array((np.ones(edges.size), (strata, edges)), shape=(total, total))
    block = connected_components(graph, directed=False)[1][:n_strata]
    rank = 0
    left = X.copy()
    for members in np.split(np.argsort(block, kind="stable"), np.cumsum(np.unique(block, return_counts=True)[1])[:-1]):
        columns = [_columns(frame.terms[r], j, members) for r, j in components]
        u, d, _ = np.linalg.svd(np.hstack(columns), full_matrices=False)
        basis = u[:, d > 1e-9 * d[0]] if d.size and d[0] > 0 else u[:, :0]
        rank += basis.shape[1]
        left[members] -= basis @ (basis.T @ left[members])
    return rank + int(np.linalg.matrix_rank(left, tol=1e-9 * np.sqrt(n_strata)))


def _rank_beside_one(X: np.ndarray, term: RandomTerm, j: int) -> int:
    """Compute `_rank` for one component, whose columns are orthogonal: a regression within every level."""
    z = term.covariates[:, j] / term.scale[j]
    zz = np.bincount(term.codes, z * z, term.n_levels)
    per = np.divide(1.0, zz, out=np.zeros_like(zz), where=zz > 0)
    slopes = [np.bincount(term.codes, z * x, term.n_levels) * per for x in X.T]
    left = X - np.stack([z * slope[term.codes] for slope in slopes], axis=1)
    return int(np.count_nonzero(zz)) + int(np.linalg.matrix_rank(left, tol=1e-9 * np.sqrt(X.shape[0])))


def _columns(term: RandomTerm, j: int, members: np.ndarray) -> np.ndarray:
    """Columns z_j * indicator of a component on some strata."""
    levels, at = np.unique(term.codes[members], return_inverse=True)
    columns = np.zeros((members.size, levels.size))
    columns[np.arange(members.size), at] = term.covariates[members, j] / term.scale[j]
    return columns
