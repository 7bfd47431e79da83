"""How fine nodes have to be: a matter of the counts that are interpolated.

The error of a log-likelihood is relative to the sums that are interpolated, to which a count contributes at most about
log(1 + mu / theta) < 20. A response with few counts thus keeps the absolute error with nodes that would not do for one
with many. Few tolerances are enough, and many genes then share nodes.
"""

from __future__ import annotations

import numpy as np

RELATIVE_ERRORS = (1e-10, 1e-12, 1e-14)  # of log-likelihoods, by interpolation: the last is close to rounding
ABSOLUTE_ERROR = 1e-4  # of every log-likelihood
OF_A_COUNT = 20.0  # natural log
FINEST = RELATIVE_ERRORS[-1]

LARGEST_TOTALS = [ABSOLUTE_ERROR / (OF_A_COUNT * error) for error in RELATIVE_ERRORS[:-1]]  # 50,000 and 5,000,000


def tolerance_of(total: float) -> float:
    """Relative error of the nodes for a response with so many counts in all."""
    return RELATIVE_ERRORS[int(np.searchsorted(LARGEST_TOTALS, total))]
