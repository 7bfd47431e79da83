"""Gaussian family: a quadratic log-likelihood, for which Laplace's approximation is exact.

A stratum is its number of cells A and the sum of their responses Y (offset taken off); what varies within strata is one
sum of squares for all. The parameter "log theta" of the engine is the logarithm of the residual variance.
"""

from __future__ import annotations

import math

from scglmm._jit import kernel

from .layout import ETA, G_THETA, H_THETA, NODE_A, NODE_Y, G, H, T


@kernel
def score_curvature(data, variance, strata):
    """First derivative in eta (row G of `strata`) and minus the second (row H) of every stratum."""
    for s in range(data.start.size - 1):
        k = data.start[s]
        strata[H, s] = data.nodes[NODE_A, k] / variance
        strata[G, s] = (data.nodes[NODE_Y, k] - data.nodes[NODE_A, k] * strata[ETA, s]) / variance


@kernel
def derivatives(data, variance, strata):
    """As `score_curvature`; no third derivative, and both are proportional to 1/variance."""
    score_curvature(data, variance, strata)
    for s in range(data.start.size - 1):
        strata[T, s] = 0.0
        strata[G_THETA, s] = -strata[G, s]
        strata[H_THETA, s] = -strata[H, s]


@kernel
def log_likelihood(data, variance, strata):
    """Log-likelihood of all cells and its derivative in the logarithm of the variance."""
    squares = data.constant
    n = 0.0
    for s in range(data.start.size - 1):
        weight = data.nodes[NODE_A, data.start[s]]
        residual = data.nodes[NODE_Y, data.start[s]] / weight - strata[ETA, s]
        squares += weight * residual * residual
        n += weight
    return -0.5 * (squares / variance + n * math.log(2.0 * math.pi * variance)), 0.5 * (squares / variance - n)
