"""NB2 family on nodes: log-likelihood of every stratum and its derivatives in the linear predictor.

For a stratum with linear predictor eta (without the offset) and nodes k (`scglmm.compression`), ``mu = E_k exp(eta)``,
``m = mu / theta``, ``r = 1 / (1 + m)``. The parts that do not depend on eta or that need only the histogram of the
counts are in `scglmm.engine.histogram`; together they are

    log NB2(y; mu, theta) = lgamma(y+theta) - lgamma(theta) - lgamma(y+1) + y log(m) - (y+theta) log(1+m)

Every sum is written with r and mu so that it stays exact when theta goes to infinity, where p = m r and
y - (y+theta) p = (y - mu) r. Derivatives in theta are with respect to log(theta).
"""

from __future__ import annotations

import math

from scglmm._jit import kernel

from .layout import ETA, G_THETA, H_THETA, MAX_ETA, NODE_A, NODE_E, NODE_Y, G, H, T


@kernel
def score_curvature(nodes, start, theta, strata):
    """First derivative in eta (row G of `strata`) and minus the second (row H) of every stratum."""
    per_theta = 1.0 / theta
    for s in range(start.size - 1):
        scale = math.exp(min(strata[ETA, s], MAX_ETA))
        g = 0.0
        h = 0.0
        for k in range(start[s], start[s + 1]):
            mu = nodes[NODE_E, k] * scale
            m = mu * per_theta
            r = 1.0 / (1.0 + m)
            a_mu = nodes[NODE_A, k] * mu
            g += (nodes[NODE_Y, k] - a_mu) * r
            h += (nodes[NODE_Y, k] * m + a_mu) * r * r
        strata[G, s] = g
        strata[H, s] = h


@kernel
def derivatives(nodes, start, theta, strata):
    """Compute what `score_curvature` gives, and T = dh/deta, G_THETA = dg/dlog(theta), H_THETA = dh/dlog(theta)."""
    per_theta = 1.0 / theta
    for s in range(start.size - 1):
        scale = math.exp(min(strata[ETA, s], MAX_ETA))
        g = 0.0
        h = 0.0
        t = 0.0
        g_theta = 0.0
        h_theta = 0.0
        for k in range(start[s], start[s + 1]):
            mu = nodes[NODE_E, k] * scale
            m = mu * per_theta
            r = 1.0 / (1.0 + m)
            a_mu = nodes[NODE_A, k] * mu
            r2 = r * r
            residual = nodes[NODE_Y, k] - a_mu
            curvature = (nodes[NODE_Y, k] * m + a_mu) * r2
            g += residual * r
            h += curvature
            t += curvature * (1.0 - m) * r
            g_theta += residual * m * r2
            h_theta += a_mu * r2
        strata[G, s] = g
        strata[H, s] = h
        strata[T, s] = t
        strata[G_THETA, s] = g_theta
        strata[H_THETA, s] = h_theta - t


@kernel
def log_likelihood(nodes, start, theta, strata):
    """Sum over all strata of -(y + theta) log(1 + m), and its derivative in log(theta)."""
    per_theta = 1.0 / theta
    f = 0.0
    f_theta = 0.0
    for s in range(start.size - 1):
        scale = math.exp(min(strata[ETA, s], MAX_ETA))
        for k in range(start[s], start[s + 1]):
            m = nodes[NODE_E, k] * scale * per_theta
            p = m / (1.0 + m)
            theta_a = theta * nodes[NODE_A, k]
            log_1m = math.log1p(m)
            # p - log(1 + m) = -m^2/2 + ... : the difference of two nearly equal numbers when m is small.
            difference = p - log_1m if m > 1e-3 else difference_series(m)
            f -= (nodes[NODE_Y, k] + theta_a) * log_1m
            f_theta += theta_a * difference + nodes[NODE_Y, k] * p
    return f, f_theta


@kernel
def difference_series(m):
    """M / (1 + m) - log(1 + m) for small m: the sum over k >= 2 of (-1)^(k-1) m^k (k-1)/k."""
    return m * m * (-0.5 + m * (2 / 3 + m * (-0.75 + m * (0.8 + m * (-5 / 6 + m * 6 / 7)))))
