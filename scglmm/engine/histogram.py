"""The part of the NB2 log-likelihood that needs only how often each count occurs.

    sum_i [ lgamma(y_i + theta) - lgamma(theta) - y_i log(theta) ] = sum_{j>=0} N(y > j) log(1 + j/theta)

A sum of small positive terms instead of a difference of large ones: exact when theta goes to infinity. Counts above
`DIRECT` take the rest of their sum from Stirling's series of lgamma.
"""

from __future__ import annotations

import math

import numpy as np

from scglmm._jit import entry
from scglmm.compression.tables import DIRECT

from .nb2 import difference_series


@entry
def histogram_terms(exceed, tail, theta):
    """Compute the sum above and its derivative in log(theta).

    Parameters
    ----------
    exceed
        ``exceed[j]`` is the number of cells with more than j counts, j below `DIRECT`.
    tail
        (2, m) the distinct counts above `DIRECT` and how many cells have each.
    theta
        Size of the negative binomial.
    """
    f = 0.0
    f_theta = 0.0
    for j in range(1, exceed.size):
        f += exceed[j] * math.log1p(j / theta)
        f_theta -= exceed[j] * j / (theta + j)
    a = theta + DIRECT
    for i in range(tail.shape[1]):
        d = tail[0, i] - DIRECT
        b = a + d
        grown = math.log1p(d / a)
        # Stirling: lgamma(x) = (x - 1/2) log x - x + log(2 pi)/2 + 1/(12 x) - 1/(360 x^3), here with x >= 128
        value = (a - 0.5) * grown + d * (math.log1p(tail[0, i] / theta) - 1.0)
        value += (1.0 / b - 1.0 / a) / 12.0 - (1.0 / b**3 - 1.0 / a**3) / 360.0
        slope = grown - 0.5 * (1.0 / b - 1.0 / a) - (1.0 / b**2 - 1.0 / a**2) / 12.0
        slope += (1.0 / b**4 - 1.0 / a**4) / 120.0
        f += tail[1, i] * value
        f_theta += tail[1, i] * (theta * slope - d)
    return f, f_theta


@entry
def histogram_curvature(exceed, tail, theta):
    """Second derivative in log(theta) of the sum that `histogram_terms` gives."""
    total = 0.0
    for j in range(1, exceed.size):
        total += exceed[j] * j * theta / (theta + j) ** 2
    a = theta + DIRECT
    for i in range(tail.shape[1]):
        d = tail[0, i] - DIRECT
        b = a + d
        x = d / a
        # log(1 + x) - x / (1 + x), of which little is left when theta is large, and what theta = a - DIRECT adds
        grown = -difference_series(x) if x < 1e-3 else math.log1p(x) - x / (1.0 + x)
        grown += DIRECT * d / (a * b)
        slope = -0.5 * (1.0 / b - 1.0 / a) - (1.0 / b**2 - 1.0 / a**2) / 12.0 + (1.0 / b**4 - 1.0 / a**4) / 120.0
        bend = 0.5 * (1.0 / b**2 - 1.0 / a**2) + (1.0 / b**3 - 1.0 / a**3) / 6.0 - (1.0 / b**5 - 1.0 / a**5) / 30.0
        total += tail[1, i] * theta * (grown + slope + theta * bend)
    return total


@entry
def log_factorials(exceed, tail):
    """Compute the constant sum_i lgamma(y_i + 1) = sum_{j>=0} N(y > j) log(1 + j), and lgamma above `DIRECT`."""
    total = 0.0
    for j in range(1, exceed.size):
        total += exceed[j] * math.log1p(j)
    direct = math.lgamma(DIRECT + 1.0)
    for i in range(tail.shape[1]):
        total += tail[1, i] * (math.lgamma(tail[0, i] + 1.0) - direct)
    return total


def exceedance(values: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn distinct counts and how often they occur into the arguments of `histogram_terms`."""
    positive = values > 0
    values, times = values[positive].astype(np.float64), times[positive].astype(np.float64)
    capped = np.minimum(values, DIRECT).astype(np.int64)
    exact = np.bincount(capped, weights=times, minlength=1)
    exceed = np.ascontiguousarray(exact[::-1].cumsum()[::-1][1:])
    tail = values > DIRECT
    return exceed, np.stack([values[tail], times[tail]])
