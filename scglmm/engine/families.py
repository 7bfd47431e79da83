"""Families: the one place where the engine branches on the distribution of the response.

A jitted function passed as an argument is not cached on disk, so a family is an integer code. The branch on plain NB2,
the family of most users, is by type instead (`scglmm.engine.layout.Extra`): numba removes the other side of a test for
None on an argument, so the code of the other families is compiled only for those who use them.
"""

from __future__ import annotations

import numpy as np

from scglmm._jit import kernel

from . import counts, gaussian, nb2
from .histogram import histogram_terms
from .layout import ETA, F_ZETA, G_ZETA, H_ZETA, MAX_ETA, ZETA, Data, Extra, H

NB2, POISSON, GAUSSIAN = 0, 1, 2


@kernel
def score_curvature(extra, data, theta, strata):
    """First derivative in eta of the log-likelihood of every stratum, and minus the second; `extra` is the data's."""
    if extra is None:
        nb2.score_curvature(data.nodes, data.start, theta, strata)
    elif data.family == GAUSSIAN:
        gaussian.score_curvature(data, theta, strata)
    else:
        counts.score_curvature(data, 1.0 / theta if data.family == NB2 else 0.0, strata)


@kernel
def derivatives(extra, data, theta, strata):
    """As `score_curvature`, and dh/deta, dg/dlog(theta), dh/dlog(theta)."""
    if extra is None:
        nb2.derivatives(data.nodes, data.start, theta, strata)
    elif data.family == GAUSSIAN:
        gaussian.derivatives(data, theta, strata)
    else:
        counts.derivatives(data, 1.0 / theta if data.family == NB2 else 0.0, strata)


@kernel
def log_likelihood(extra, data, theta, strata):
    """Compute the log-likelihood of all cells, its derivative in log(theta), and the part of that of the nodes."""
    if extra is None:
        value, of_nodes = nb2.log_likelihood(data.nodes, data.start, theta, strata)
    elif data.family == GAUSSIAN:
        value, slope = gaussian.log_likelihood(data, theta, strata)
        return value, slope, slope
    else:
        value, of_nodes = counts.log_likelihood(data, 1.0 / theta if data.family == NB2 else 0.0, strata)
    slope = of_nodes
    constant = data.constant  # with large counts the terms cancel: those of the histogram belong to the constant
    if data.family == NB2:
        more, more_slope = histogram_terms(data.exceed, data.tail, theta)
        constant += more
        slope += more_slope
    value += constant
    for s in range(data.y_sum.size):
        value += data.y_sum[s] * strata[ETA, s]
    return value, slope, of_nodes


@kernel
def set_inflation(extra, par, first):
    """Logits of the zero-inflation probabilities from their coefficients, which begin at `par[first]`."""
    if extra is None:
        return
    for s in range(extra.zi.shape[0]):
        total = 0.0
        for c in range(extra.zi.shape[1]):
            total += extra.zi[s, c] * par[first + c]
        extra.rows[ZETA, s] = total


@kernel
def add_inflation(extra, s, a, bq):
    """Add to the derivative in zeta of a stratum what comes through the curvature and the mode."""
    if extra is not None:
        extra.rows[F_ZETA, s] -= 0.5 * a * extra.rows[H_ZETA, s] + bq * extra.rows[G_ZETA, s]


@kernel
def inflation_gradient(extra, gradient, first):
    """Gradient in the coefficients of the zero inflation from the derivatives in zeta."""
    if extra is None:
        return
    for c in range(extra.zi.shape[1]):
        total = 0.0
        for s in range(extra.zi.shape[0]):
            total += extra.zi[s, c] * extra.rows[F_ZETA, s]
        gradient[first + c] = total


@kernel
def make_concave(strata):
    """Take negative curvatures away so that Newton's direction rises."""
    for s in range(strata.shape[1]):
        strata[H, s] = max(0.0, strata[H, s])


@kernel
def in_range(extra, data, strata):
    """Whether no linear predictor is so large that the mean is cut off: a value there is no log-likelihood."""
    if extra is not None and data.family == GAUSSIAN:
        return True
    largest = -MAX_ETA
    for s in range(strata.shape[1]):
        largest = max(largest, strata[ETA, s])
    return largest <= MAX_ETA


# For quadrature, which needs the log-likelihood stratum by stratum.


@kernel
def stratum_log_likelihood(extra, data, theta, strata, s):
    """Log-likelihood of stratum s without `constant_terms`, and its derivative in log(theta)."""
    start, row = data.start[s : s + 2], strata[:, s : s + 1]
    if extra is None:
        value, slope = nb2.log_likelihood(data.nodes, start, theta, row)
    else:
        one = Data(
            data.family, start, data.nodes, data.y_sum, data.exceed, data.tail, 0.0,
            Extra(extra.zi, extra.zeros, extra.rows[:, s : s + 1]),
        )  # fmt: skip
        if data.family == GAUSSIAN:
            return gaussian.log_likelihood(one, theta, row)
        value, slope = counts.log_likelihood(one, 1.0 / theta if data.family == NB2 else 0.0, row)
    value += data.y_sum[s] * strata[ETA, s]
    if data.family != NB2:
        slope = 0.0
    return value, slope


@kernel
def constant_terms(extra, data, theta):
    """Compute what does not depend on linear predictors, and its derivative in log(theta)."""
    if extra is not None and data.family == GAUSSIAN:
        return -0.5 * data.constant / theta, 0.5 * data.constant / theta
    if data.family != NB2:
        return data.constant, 0.0
    value, slope = histogram_terms(data.exceed, data.tail, theta)
    return data.constant + value, slope


@kernel
def inflation_rows(extra, n_strata):
    """Copy of the derivatives in zeta; zeros without zero inflation."""
    if extra is None:
        return np.zeros((4, n_strata))
    return extra.rows.copy()


@kernel
def put_inflation_slopes(extra, rows):
    """Put derivatives in zeta where `inflation_gradient` looks for them."""
    if extra is not None:
        for s in range(rows.shape[1]):
            extra.rows[F_ZETA, s] = rows[F_ZETA, s]
