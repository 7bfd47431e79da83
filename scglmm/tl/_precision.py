"""How fine the nodes of a gene are: a matter of its own counts, whatever other genes there are.

The error of a log-likelihood is relative to the sums that are interpolated, to which a count contributes at most about
log(1 + mu / theta) < 20. Genes with few counts thus keep the absolute error with nodes that would not do for genes with
many. Their totals choose one of few tolerances, and the genes of a group of cells that share a tolerance share nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RELATIVE_ERRORS = (1e-10, 1e-12, 1e-14)  # of log-likelihoods, by interpolation: the last is close to rounding
ABSOLUTE_ERROR = 1e-4  # of every log-likelihood
OF_A_COUNT = 20.0  # natural log
FINEST = RELATIVE_ERRORS[-1]

LARGEST_TOTALS = [ABSOLUTE_ERROR / (OF_A_COUNT * error) for error in RELATIVE_ERRORS[:-1]]  # 50,000 and 5,000,000


@dataclass(frozen=True)
class Share:
    """Genes of one group of cells that have the same nodes.

    Attributes
    ----------
    group
        Which of the groups that are fitted.
    at
        (g,) positions of the genes among those that the group fits.
    tolerance
        Relative error of their nodes.
    """

    group: int
    at: np.ndarray
    tolerance: float


def share_genes(group: int, totals: np.ndarray) -> list[Share]:
    """Share the genes of a group out by their total counts (G,), from few counts to many; one share at least."""
    rung = np.searchsorted(LARGEST_TOTALS, totals)
    rungs = np.unique(rung) if rung.size else np.zeros(1, np.int64)
    return [Share(group, np.flatnonzero(rung == k), RELATIVE_ERRORS[k]) for k in rungs]
