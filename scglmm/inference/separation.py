"""Separation: coefficients whose estimate would be infinite, found before the fit.

With a log link the likelihood has no maximum exactly when some direction d of the coefficients has X d = 0 wherever the
gene has counts and X d <= 0, not always 0, where it has none (Correia, Guimaraes and Zylkin 2019, arXiv:1903.01633):
the mean of strata without counts can then be sent to 0. The typical case is a gene that is absent in one condition.
Random effects have a proper prior and cannot separate anything.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

TOLERANCE = 1e-8


def separating_direction(Q: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """Find a direction in which the likelihood of a gene never stops rising, None if there is none.

    Parameters
    ----------
    Q
        (S, p) design of full rank, columns of mean square near 1.
    counts
        (S,) counts of the gene in every stratum.

    Returns
    -------
    (p,) direction d with Q d = 0 where there are counts and Q d <= 0 elsewhere.
    """
    positive = counts > 0
    if positive.all():
        return None
    null = null_space(Q[positive])
    if null.shape[1] == 0:
        return None
    reach = Q[~positive] @ null
    reach[np.abs(reach) < TOLERANCE] = 0.0
    if null.shape[1] == 1:
        if (reach <= 0).all() or (reach >= 0).all():
            return null[:, 0] * (-1.0 if reach.sum() > 0 else 1.0)
        return None
    found = linprog(
        reach.sum(axis=0),
        A_ub=np.vstack([reach, -reach]),
        b_ub=np.repeat([0.0, 1.0], reach.shape[0]),
        bounds=(None, None),
    )
    if found.status != 0 or found.fun > -TOLERANCE:
        return None
    return null @ found.x


def loses_rank(Q: np.ndarray, counts: np.ndarray) -> bool:
    """Whether cells with counts leave a direction of the coefficients free, so that a gene may be separated.

    Parameters
    ----------
    Q, counts
        As for `separating_direction`, where rows are nodes in covariates of the cells, on which counts may be negative:
        the sum over the cells of y x x' is exact on them.
    """
    values = np.linalg.eigvalsh((Q * (counts / counts.sum())[:, None]).T @ Q)
    return bool(values[0] <= TOLERANCE * values[-1])


def null_space(Q: np.ndarray) -> np.ndarray:
    """(p, m) orthonormal basis of the directions d with Q d = 0."""
    values, vectors = np.linalg.eigh(Q.T @ Q)
    return vectors[:, values <= TOLERANCE * values.max(initial=1.0)]
