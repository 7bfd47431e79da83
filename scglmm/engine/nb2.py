"""NB2 family on nodes: sums over one stratum of the log-likelihood and its derivatives.

For a stratum with linear predictor eta (without the offset) and nodes k (`scglmm.compression`), ``mu = E_k exp(eta)``,
``m = mu / theta``, ``r = 1 / (1 + m)``. The parts that do not depend on eta or that need only the histogram of the
counts are in `scglmm.engine.histogram`; together they are

    log NB2(y; mu, theta) = lgamma(y+theta) - lgamma(theta) - lgamma(y+1) + y log(m) - (y+theta) log(1+m)

Every sum is written with r and mu so that it stays exact when theta goes to infinity, where p = m r and
y - (y+theta) p = (y - mu) r. Derivatives in theta are with respect to log(theta).
"""

from __future__ import annotations

import math

from numba import njit

# Reassociation lets the sums over nodes use vector instructions; infinities and NaN keep their meaning.
SUMS = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True, nogil=True, fastmath=SUMS)
def score_curvature(E, A, Y, start, stop, scale, theta):
    """First derivative in eta and minus the second, summed over the nodes of one stratum."""
    per_theta = 1.0 / theta
    g = 0.0
    h = 0.0
    for k in range(start, stop):
        mu = E[k] * scale
        m = mu * per_theta
        r = 1.0 / (1.0 + m)
        a_mu = A[k] * mu
        g += (Y[k] - a_mu) * r
        h += (Y[k] * m + a_mu) * r * r
    return g, h


@njit(cache=True, nogil=True, fastmath=SUMS)
def derivatives(E, A, Y, start, stop, scale, theta):
    """What `score_curvature` gives, and t = dh/deta, dg/dlog(theta), dh/dlog(theta): no logarithms."""
    per_theta = 1.0 / theta
    g = 0.0
    h = 0.0
    t = 0.0
    g_theta = 0.0
    h_theta = 0.0
    for k in range(start, stop):
        mu = E[k] * scale
        m = mu * per_theta
        r = 1.0 / (1.0 + m)
        a_mu = A[k] * mu
        r2 = r * r
        residual = Y[k] - a_mu
        curvature = (Y[k] * m + a_mu) * r2
        g += residual * r
        h += curvature
        t += curvature * (1.0 - m) * r
        g_theta += residual * m * r2
        h_theta += a_mu * r2
    return g, h, t, g_theta, h_theta - t


@njit(cache=True, nogil=True)
def log_likelihood(E, A, Y, start, stop, scale, theta):
    """Sum of -(y + theta) log(1 + m) and its derivative in log(theta)."""
    per_theta = 1.0 / theta
    f = 0.0
    f_theta = 0.0
    for k in range(start, stop):
        m = E[k] * scale * per_theta
        theta_a = theta * A[k]
        log_1m = math.log1p(m)
        # m r - log(1 + m) = -m^2/2 + ... : the difference of two nearly equal numbers when m is small.
        difference = m / (1.0 + m) - log_1m if m > 1e-3 else _difference_series(m)
        f -= (Y[k] + theta_a) * log_1m
        f_theta += theta_a * difference + Y[k] * m / (1.0 + m)
    return f, f_theta


@njit(cache=True, nogil=True)
def _difference_series(m):
    """m / (1 + m) - log(1 + m) for small m: the sum over k >= 2 of (-1)^(k-1) m^k (k-1)/k."""
    return m * m * (-0.5 + m * (2 / 3 + m * (-0.75 + m * (0.8 + m * (-5 / 6 + m * 6 / 7)))))
