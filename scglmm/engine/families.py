"""Families by integer code: the one place where the engine branches on the distribution of the response.

A jitted function passed as an argument is not cached on disk, so the kernels are chosen by a code. A new family adds a
module with the three kernels of `scglmm.engine.nb2` and a branch to each function here.
"""

from __future__ import annotations

from scglmm._jit import kernel

from . import nb2
from .histogram import histogram_terms
from .layout import ETA

NB2 = 0


@kernel
def score_curvature(family, nodes, start, theta, strata):
    """First derivative in eta of the log-likelihood of every stratum, and minus the second."""
    nb2.score_curvature(nodes, start, theta, strata)


@kernel
def derivatives(family, nodes, start, theta, strata):
    """As `score_curvature`, and dh/deta, dg/dlog(theta), dh/dlog(theta)."""
    nb2.derivatives(nodes, start, theta, strata)


@kernel
def log_likelihood(data, theta, strata):
    """Log-likelihood of all cells given their linear predictors, and its derivative in log(theta)."""
    value, slope = nb2.log_likelihood(data.nodes, data.start, theta, strata)
    more, more_slope = histogram_terms(data.exceed, data.tail, theta)
    value += data.constant + more
    for s in range(data.y_sum.size):
        value += data.y_sum[s] * strata[ETA, s]
    return value, slope + more_slope
