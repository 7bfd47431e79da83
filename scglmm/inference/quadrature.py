"""How many points adaptive quadrature may have, and when they are too few.

`scglmm.engine.refit` says what four times as many points would add to the log-likelihood at the same estimates: as
good as all that is missing to the integral.
"""

from __future__ import annotations

import numpy as np

MAX_QUAD = 100
INEXACT = 1e-3  # of a log-likelihood: whoever asks for quadrature wants the integral


def is_inexact(error: float | np.ndarray) -> np.ndarray:
    """Whether a `quadrature_error` matters; NaN does."""
    return ~(np.abs(error) <= INEXACT)
