"""How fine the nodes of a gene are: a matter of its own counts, whatever other genes there are.

The total counts of genes choose one of few tolerances (`scglmm.compression.precision`), and the genes of a group of
cells that share a tolerance share nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scglmm.compression.precision import LARGEST_TOTALS, RELATIVE_ERRORS


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
