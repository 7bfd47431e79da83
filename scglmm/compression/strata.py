"""Strata: cells that share every row of the design, so that only their offsets differ."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd


def find_strata(columns: Iterable[np.ndarray], n_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Give numbers to the distinct rows of a design.

    Parameters
    ----------
    columns
        The columns of all designs, each (`n_cells`,): fixed effects, level numbers, covariates of random effects.
    n_cells
        Number of cells, needed when there is no column.

    Returns
    -------
    stratum
        (`n_cells`,) int64, numbered by first appearance.
    first
        (S,) int64, one cell of each stratum.
    """
    stratum = np.zeros(n_cells, np.int64)
    n = 1
    for column in columns:
        code, values = pd.factorize(column)
        if len(values) == 1:
            continue
        # The pair (stratum so far, value) fits in 63 bits because both factors are at most the number of cells.
        stratum, pairs = pd.factorize(stratum * len(values) + code)
        n = len(pairs)
        if n == n_cells:
            break
    first = np.full(n, n_cells, np.int64)
    np.minimum.at(first, stratum, np.arange(n_cells))
    return stratum.astype(np.int64), first
