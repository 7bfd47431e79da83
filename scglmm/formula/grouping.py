"""Random-effect terms on the cells: level numbers, levels and covariates, never a matrix over the levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .coding import INTERCEPT, Coded
from .columns import Column
from .errors import DesignError
from .grammar import RandomTerm

TABLE = 1 << 24


@dataclass(frozen=True, eq=False)
class RandomDesign:
    """One random-effect term on n cells: ``Z`` has the row ``covariates[i]`` at the level ``codes[i]``.

    Attributes
    ----------
    group
        The columns of the grouping factor joined by ":", for instance "ind:stim".
    levels
        Names of the levels that occur; those of an interaction are joined by ":".
    codes
        (n,) int32, level of each cell.
    columns
        Names of the effects, for instance ["(Intercept)", "stim[T.stim]"].
    covariates
        (n, effects) float64.
    """

    group: str
    levels: list[str]
    codes: np.ndarray
    columns: list[str]
    covariates: np.ndarray


@dataclass(frozen=True, eq=False)
class Grouping:
    """A grouping factor: `codes` (n,) int32 into `levels`, all of which occur."""

    codes: np.ndarray
    levels: list[str]


def group_cells(columns: tuple[str, ...], data: Mapping[str, Column]) -> Grouping:
    """Levels of a grouping factor.

    Parameters
    ----------
    columns
        One obs column, or several whose combinations are the levels; only those that occur are levels.
    data
        The clean obs columns. Numbers are taken as levels.

    Returns
    -------
    Levels in the order of the categories, else sorted; combinations in the order of the first column, then the second.
    """
    grouping = _single(data[columns[0]])
    for name in columns[1:]:
        grouping = _combined(grouping, _single(data[name]))
    return grouping


def _single(column: Column) -> Grouping:
    if isinstance(column, pd.Series):
        # categories that do not occur have been dropped
        return Grouping(column.cat.codes.to_numpy(dtype=np.int32), [str(level) for level in column.cat.categories])
    codes, levels = pd.factorize(column, sort=True)
    return Grouping(codes.astype(np.int32), [str(int(x)) if x.is_integer() else repr(x) for x in levels.tolist()])


def _combined(a: Grouping, b: Grouping) -> Grouping:
    """Find the combinations of two groupings that occur."""
    width = len(b.levels)
    pairs = a.codes.astype(np.int64) * width + b.codes
    if len(a.levels) * width <= TABLE:
        # a table over all pairs is faster than sorting as many numbers as there are cells
        occurs = np.zeros(len(a.levels) * width, dtype=bool)
        occurs[pairs] = True
        found = np.flatnonzero(occurs)
        codes = (np.cumsum(occurs, dtype=np.int32) - np.int32(1))[pairs]
    else:
        found, codes = np.unique(pairs, return_inverse=True)
    first, second = np.divmod(found, width)
    levels = [f"{a.levels[i]}:{b.levels[j]}" for i, j in zip(first.tolist(), second.tolist(), strict=True)]
    return Grouping(codes.astype(np.int32), levels)


def random_design(term: RandomTerm, grouping: Grouping, coded: Coded) -> RandomDesign:
    """Put a random-effect term together.

    Raises
    ------
    DesignError
        The grouping factor has one level, or as many as there are cells.
    """
    name = ":".join(term.columns)
    n = len(grouping.codes)
    n_levels = len(grouping.levels)
    if n_levels == 1:
        msg = (
            f"The grouping factor {name!r} has one level ({grouping.levels[0]!r}) in these {n:,} cells, so there is no "
            f"variance between levels to estimate. Leave {term} out, or group by another column."
        )
        raise DesignError(msg)
    if n_levels == n:
        msg = (
            f"The grouping factor {name!r} has as many levels as there are cells ({n:,}): every cell would be a group "
            "of its own. The column that names the donor of each cell is probably meant."
        )
        raise DesignError(msg)
    return RandomDesign(name, grouping.levels, grouping.codes, coded.names, coded.matrix)


def check_same_cells(terms: list[RandomTerm], designs: list[RandomDesign]) -> None:
    """Check that no two random intercepts group the cells in the same way.

    Raises
    ------
    DesignError
        Two do, for instance ``(1|donor/batch)`` where every donor has one batch.
    """
    for i, first in enumerate(designs):
        for j in range(i):
            second = designs[j]
            if len(first.levels) != len(second.levels) or not {INTERCEPT} <= {*first.columns} & {*second.columns}:
                continue
            pair = np.full(len(first.levels), -1, dtype=np.int32)
            pair[first.codes] = second.codes
            if np.array_equal(pair[first.codes], second.codes):
                msg = (
                    f"{terms[j]} and {terms[i]} group the cells in the same way: every level of {second.group!r} has "
                    f"one level of {first.group!r}, so their variances cannot be told apart. Keep one of them."
                )
                raise DesignError(msg)
