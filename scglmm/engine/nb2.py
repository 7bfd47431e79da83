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

import numpy as np

from scglmm._jit import kernel

from .elementary import exp, log1p
from .layout import ETA, G_THETA, H_THETA, MAX_ETA, NODE_A, NODE_E, NODE_Y, G, H, T

BLOCK = 1024  # nodes whose logarithms are taken together: they stay in the cache


@kernel
def score_curvature(nodes, start, theta, strata):
    """First derivative in eta (row G of `strata`) and minus the second (row H) of every stratum."""
    if start.size - 1 == nodes.shape[1]:
        _score_curvature_single(nodes, theta, strata)
    else:
        _score_curvature(nodes, start, theta, strata)


@kernel
def _score_curvature(nodes, start, theta, strata):
    per_theta = 1.0 / theta
    blocks, of_node = _blocks(start, 3)
    for b in range(blocks.size - 1):
        s, end = blocks[b], blocks[b + 1]
        E, A, Y, mu = _of_block(nodes, start, strata, s, end, of_node)
        g, h = of_node[1, : E.size], of_node[2, : E.size]
        for k in range(E.size):
            m = mu[k] * per_theta
            r = 1.0 / (1.0 + m)
            a_mu = A[k] * mu[k]
            g[k] = (Y[k] - a_mu) * r
            h[k] = (Y[k] * m + a_mu) * r * r
        _add_two(start, s, end, of_node[1:], strata[G : H + 1])


@kernel
def _score_curvature_single(nodes, theta, strata):
    """Compute the same where every stratum is one node."""
    per_theta = 1.0 / theta
    for s in range(nodes.shape[1]):
        mu = nodes[NODE_E, s] * exp(min(strata[ETA, s], MAX_ETA))
        m = mu * per_theta
        r = 1.0 / (1.0 + m)
        a_mu = nodes[NODE_A, s] * mu
        strata[G, s] = (nodes[NODE_Y, s] - a_mu) * r
        strata[H, s] = (nodes[NODE_Y, s] * m + a_mu) * r * r


@kernel
def derivatives(nodes, start, theta, strata):
    """Compute what `score_curvature` gives, and T = dh/deta, G_THETA = dg/dlog(theta), H_THETA = dh/dlog(theta)."""
    if start.size - 1 == nodes.shape[1]:
        _derivatives_single(nodes, theta, strata)
    else:
        _derivatives(nodes, start, theta, strata)


@kernel
def _derivatives(nodes, start, theta, strata):
    per_theta = 1.0 / theta
    blocks, of_node = _blocks(start, 6)
    for b in range(blocks.size - 1):
        s, end = blocks[b], blocks[b + 1]
        E, A, Y, mu = _of_block(nodes, start, strata, s, end, of_node)
        g, h, t = of_node[1, : E.size], of_node[2, : E.size], of_node[3, : E.size]
        g_theta, h_theta = of_node[4, : E.size], of_node[5, : E.size]
        for k in range(E.size):
            m = mu[k] * per_theta
            r = 1.0 / (1.0 + m)
            a_mu = A[k] * mu[k]
            r2 = r * r
            residual = Y[k] - a_mu
            curvature = (Y[k] * m + a_mu) * r2
            g[k] = residual * r
            h[k] = curvature
            t[k] = curvature * (1.0 - m) * r
            g_theta[k] = residual * m * r2
            h_theta[k] = a_mu * r2
        _add_five(start, s, end, of_node[1:], strata[G : H_THETA + 1])
    for s in range(start.size - 1):
        strata[H_THETA, s] -= strata[T, s]


@kernel
def _derivatives_single(nodes, theta, strata):
    """Compute the same where every stratum is one node."""
    per_theta = 1.0 / theta
    for s in range(nodes.shape[1]):
        mu = nodes[NODE_E, s] * exp(min(strata[ETA, s], MAX_ETA))
        m = mu * per_theta
        r = 1.0 / (1.0 + m)
        a_mu = nodes[NODE_A, s] * mu
        r2 = r * r
        residual = nodes[NODE_Y, s] - a_mu
        h = (nodes[NODE_Y, s] * m + a_mu) * r2
        t = h * (1.0 - m) * r
        strata[G, s] = residual * r
        strata[H, s] = h
        strata[T, s] = t
        strata[G_THETA, s] = residual * m * r2
        strata[H_THETA, s] = a_mu * r2 - t


@kernel
def second_order(nodes, start, theta, strata, slope, out):
    """Further derivatives of what `derivatives` gives.

    Into the rows of `out` (5, S): that of T in eta, and in log(theta) that of T, the second of g, and the second of h;
    the last is scratch. Returned is the second derivative in log(theta) of `log_likelihood`, the first of which is
    `slope`. `strata` holds the linear predictors.

    With c = Y m + A mu, which in eta grows like m, and p = m r:
    T = c r^2 (1 - 2p),  dT/deta = c r^2 (1 - 6 p r),  and in log(theta)  dm = -m, dr = p r, dp = -p r, dc = -Y m.
    """
    per_theta = 1.0 / theta
    blocks, of_node = _blocks(start, 6)
    for b in range(blocks.size - 1):
        s, end = blocks[b], blocks[b + 1]
        E, A, Y, mu = _of_block(nodes, start, strata, s, end, of_node)
        t_eta, t_theta, g_theta_2 = of_node[1, : E.size], of_node[2, : E.size], of_node[3, : E.size]
        a_part, steepens = of_node[4, : E.size], of_node[5, : E.size]
        for k in range(E.size):
            m = mu[k] * per_theta
            r = 1.0 / (1.0 + m)
            p = m * r
            a_mu = A[k] * mu[k]
            y_p = Y[k] * p
            c_r = y_p + a_mu * r  # c r: finite however large the mean is
            steep = 1.0 - 2.0 * p
            t_eta[k] = c_r * r * (1.0 - 6.0 * p * r)
            t_theta[k] = r * (2.0 * p * c_r * (steep + r) - y_p * steep)
            g_theta_2[k] = (Y[k] - a_mu) * p * r * (2.0 * p - 1.0)
            a_part[k] = 2.0 * a_mu * p * r * r
            steepens[k] = theta * A[k] * p * p - y_p * (1.0 + r)
        _add_five(start, s, end, of_node[1:], out)
    for s in range(start.size - 1):
        out[3, s] -= out[1, s]
        slope += out[4, s]
    return slope


@kernel
def log_likelihood(nodes, start, theta, strata):
    """Sum over all strata of -(y + theta) log(1 + m), and its derivative in log(theta)."""
    first, last = start[0], start[start.size - 1]
    size = min(BLOCK, last - first)
    means, slopes = np.empty(size), np.empty(size)  # logarithms are taken in whole vectors
    value, lost, slope = 0.0, 0.0, 0.0
    s = 0
    for begin in range(first, last, BLOCK):
        end = min(last, begin + BLOCK)
        s = _means(nodes, start, theta, strata, s, begin, end, means)
        A, Y = nodes[NODE_A, begin:end], nodes[NODE_Y, begin:end]
        for k in range(A.size):
            m = means[k]
            p = m / (1.0 + m)
            theta_a = theta * A[k]
            log_1m = log1p(m)
            # p - log(1 + m) = -m^2/2 + ... : the difference of two nearly equal numbers when m is small.
            small = difference_series(m)
            difference = p - log_1m if m > 1e-3 else small
            means[k] = -(Y[k] + theta_a) * log_1m
            slopes[k] = theta_a * difference + Y[k] * p
        part = _sum(means[: A.size])
        total = value + part  # all parts are negative; what rounding takes from the sum is kept (Neumaier 1974)
        lost += (value - total) + part if value <= part else (part - total) + value
        value = total
        slope += _sum(slopes[: A.size])
    return value + lost, slope


@kernel
def _means(nodes, start, theta, strata, s, begin, end, means):
    """Ratios of mean and theta of the nodes from `begin` to `end`, the first of which is of stratum s or a later one.

    Returns
    -------
    The stratum of the last.
    """
    per_theta = 1.0 / theta
    if start.size - 1 == start[start.size - 1] - start[0]:
        E, eta = nodes[NODE_E, begin:end], strata[ETA, begin - start[0] : end - start[0]]
        for k in range(E.size):
            means[k] = E[k] * exp(min(eta[k], MAX_ETA)) * per_theta
        return s
    at = begin
    while at < end:
        while start[s + 1] <= at:
            s += 1
        stop = min(end, start[s + 1])
        scale = math.exp(min(strata[ETA, s], MAX_ETA)) * per_theta
        E, own = nodes[NODE_E, at:stop], means[at - begin : stop - begin]
        for k in range(E.size):
            own[k] = E[k] * scale
        at = stop
    return s


@kernel
def _sum(values):
    """Sum in four strands, so that no addition waits for the one before it; always in this order."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    whole = values.size // 4 * 4
    for k in range(0, whole, 4):
        a += values[k]
        b += values[k + 1]
        c += values[k + 2]
        d += values[k + 3]
    for k in range(whole, values.size):
        a += values[k]
    return (a + b) + (c + d)


@kernel
def _blocks(start, rows):
    """Strata at which blocks of nodes begin, and the end; scratch (rows, N) for the largest of them.

    A block has as many nodes as stay in the cache, but no stratum is divided.
    """
    begins = np.empty(start.size, np.int64)
    n, size = 0, 0
    for s in range(start.size - 1):
        if n == 0 or start[s + 1] - start[begins[n - 1]] > BLOCK:
            begins[n] = s
            n += 1
        size = max(size, start[s + 1] - start[begins[n - 1]])
    begins[n] = start.size - 1
    return begins[: n + 1], np.empty((rows, size))


@kernel
def _of_block(nodes, start, strata, s, end, of_node):
    """Nodes of the strata from s to `end`, and their means, which are put into the first row of `of_node`.

    What follows of these is computed for whole blocks, node by node, since compilers turn such loops into vector
    instructions, and added up afterwards: sums they leave as they are written.
    """
    first, last = start[s], start[end]
    # Slices, as an index that may be negative to the compiler keeps it from loading neighbours at once.
    E, A, Y = nodes[NODE_E, first:last], nodes[NODE_A, first:last], nodes[NODE_Y, first:last]
    mu = of_node[0, : last - first]
    for i in range(s, end):
        scale = math.exp(min(strata[ETA, i], MAX_ETA))
        own, means = E[start[i] - first : start[i + 1] - first], mu[start[i] - first : start[i + 1] - first]
        for k in range(own.size):
            means[k] = own[k] * scale
    return E, A, Y, mu


@kernel
def _add_two(start, s, end, of_node, out):
    """Sum two rows over the nodes of every stratum from s to `end`, side by side: no addition waits for another."""
    for i in range(s, end):
        at = slice(start[i] - start[s], start[i + 1] - start[s])
        x, y = of_node[0, at], of_node[1, at]
        a, b = 0.0, 0.0
        for k in range(x.size):
            a += x[k]
            b += y[k]
        out[0, i], out[1, i] = a, b


@kernel
def _add_five(start, s, end, of_node, out):
    """Sum five rows, as `_add_two`."""
    for i in range(s, end):
        at = slice(start[i] - start[s], start[i + 1] - start[s])
        x, y, z, u, v = of_node[0, at], of_node[1, at], of_node[2, at], of_node[3, at], of_node[4, at]
        a, b, c, d, e = 0.0, 0.0, 0.0, 0.0, 0.0
        for k in range(x.size):
            a += x[k]
            b += y[k]
            c += z[k]
            d += u[k]
            e += v[k]
        out[0, i], out[1, i], out[2, i], out[3, i], out[4, i] = a, b, c, d, e


@kernel
def difference_series(m):
    """M / (1 + m) - log(1 + m) for small m: the sum over k >= 2 of (-1)^(k-1) m^k (k-1)/k."""
    return m * m * (-0.5 + m * (2 / 3 + m * (-0.75 + m * (0.8 + m * (-5 / 6 + m * 6 / 7)))))
