"""Poisson and zero-inflated counts on nodes: the kernels of `scglmm.engine.nb2` for what is not plain NB2.

A cell is 0 with probability pi, logit pi = zeta, and follows NB2 (or Poisson) otherwise. With f0 = (1 + m)^-theta the
probability that the latter gives 0, A' the weights of the cells with counts and Z of those without,

    log-likelihood = [that of the cells with counts: NB2 with A' for A]
                     + sum Z log(e^zeta + f0) - sum A log(1 + e^zeta)

Zeros have, with c = log f0 and r0 = f0 / (e^zeta + f0) the probability that a zero is one of the family's,

    F' = r0 c'     F'' = k c'^2 + r0 c''     F''' = k (1 - 2 r0) c'^3 + 3 k c' c'' + r0 c''',     k = r0 (1 - r0)

where c' = -mu r, c'' = -mu r^2, c''' = -mu r^3 (1 - m), and derivatives of r0 in zeta and log(theta) are -k and k times
that of c. The log-likelihood is not concave in eta: F'' > 0 is possible.

Poisson is NB2 with 1/theta = 0, so m = 0 and r = 1, and c = -mu.
"""

from __future__ import annotations

import math

from scglmm._jit import kernel

from .layout import ETA, F_ZETA, G_THETA, G_ZETA, H_THETA, H_ZETA, MAX_ETA, NODE_A, NODE_E, NODE_Y, ZETA, G, H, T
from .nb2 import difference_series


@kernel
def log_zero(mu, per_theta):
    """Log-probability of a zero, c = -theta log(1 + m)."""
    return -math.log1p(mu * per_theta) / per_theta if per_theta > 0.0 else -mu


@kernel
def softplus(x):
    """log(1 + e^x)."""
    return x + math.log1p(math.exp(-x)) if x > 0.0 else math.log1p(math.exp(x))


@kernel
def score_curvature(data, per_theta, strata):
    """First derivative in eta (row G of `strata`) and minus the second (row H) of every stratum."""
    nodes, start, zeros, zeta = data.nodes, data.start, data.extra.zeros, data.extra.rows[ZETA]
    inflated = zeros.size > 0
    for s in range(start.size - 1):
        scale = math.exp(min(strata[ETA, s], MAX_ETA))
        g = 0.0
        h = 0.0
        for k in range(start[s], start[s + 1]):
            mu = nodes[NODE_E, k] * scale
            m = mu * per_theta
            r = 1.0 / (1.0 + m)
            weight = nodes[NODE_A, k]
            if inflated and zeros[k] != 0.0:
                weight -= zeros[k]
                r0 = 1.0 / (1.0 + math.exp(zeta[s] - log_zero(mu, per_theta)))
                slope = -mu * r
                g += zeros[k] * r0 * slope
                h -= zeros[k] * r0 * slope * ((1.0 - r0) * slope + r)
            a_mu = weight * mu
            g += (nodes[NODE_Y, k] - a_mu) * r
            h += (nodes[NODE_Y, k] * m + a_mu) * r * r
        strata[G, s] = g
        strata[H, s] = h


@kernel
def derivatives(data, per_theta, strata):
    """As `score_curvature`, with the rows T, G_THETA, H_THETA, and F_ZETA, G_ZETA, H_ZETA of the zero inflation."""
    nodes, start, zeros, rows = data.nodes, data.start, data.extra.zeros, data.extra.rows
    inflated = zeros.size > 0
    for s in range(start.size - 1):
        scale = math.exp(min(strata[ETA, s], MAX_ETA))
        g = 0.0
        h = 0.0
        t = 0.0
        g_theta = 0.0
        h_theta = 0.0
        f_zeta = 0.0
        g_zeta = 0.0
        h_zeta = 0.0
        for k in range(start[s], start[s + 1]):
            mu = nodes[NODE_E, k] * scale
            m = mu * per_theta
            r = 1.0 / (1.0 + m)
            r2 = r * r
            weight = nodes[NODE_A, k]
            if inflated:
                f_zeta -= weight / (1.0 + math.exp(-rows[ZETA, s]))
            if inflated and zeros[k] != 0.0:
                z = zeros[k]
                weight -= z
                r0 = 1.0 / (1.0 + math.exp(rows[ZETA, s] - log_zero(mu, per_theta)))
                q0 = 1.0 - r0
                if r0 > 0.5:
                    q0 = 1.0 / (1.0 + math.exp(log_zero(mu, per_theta) - rows[ZETA, s]))
                both = r0 * q0
                skew = both * (q0 - r0)
                c1 = -mu * r
                c2 = c1 * r
                c3 = c2 * r * (1.0 - m)
                g += z * r0 * c1
                h -= z * (both * c1 * c1 + r0 * c2)
                t -= z * (skew * c1 * c1 * c1 + 3.0 * both * c1 * c2 + r0 * c3)
                f_zeta += z * q0
                g_zeta -= z * both * c1
                h_zeta += z * (skew * c1 * c1 + both * c2)
                if per_theta > 0.0:
                    c_theta = log_ratio(m) / per_theta
                    c1_theta = c2 * m
                    c2_theta = 2.0 * c1_theta * r
                    g_theta += z * (both * c_theta * c1 + r0 * c1_theta)
                    h_theta -= z * (
                        skew * c_theta * c1 * c1 + 2.0 * both * c1 * c1_theta + both * c_theta * c2 + r0 * c2_theta
                    )
            a_mu = weight * mu
            residual = nodes[NODE_Y, k] - a_mu
            curvature = (nodes[NODE_Y, k] * m + a_mu) * r2
            g += residual * r
            h += curvature
            third = curvature * (1.0 - m) * r
            t += third
            g_theta += residual * m * r2
            h_theta += a_mu * r2 - third
        strata[G, s] = g
        strata[H, s] = h
        strata[T, s] = t
        # With Poisson nothing depends on theta.
        strata[G_THETA, s] = g_theta if per_theta > 0.0 else 0.0
        strata[H_THETA, s] = h_theta if per_theta > 0.0 else 0.0
        rows[F_ZETA, s] = f_zeta
        rows[G_ZETA, s] = g_zeta
        rows[H_ZETA, s] = h_zeta


@kernel
def log_ratio(m):
    """Compute p - log(1 + m), p = m / (1 + m): the derivative of -theta log(1 + m) in log(theta), per theta."""
    return m / (1.0 + m) - math.log1p(m) if m > 1e-3 else difference_series(m)


@kernel
def log_likelihood(data, per_theta, strata):
    """Sum over all strata of what depends on mu or zeta, and its derivative in log(theta).

    With rounding errors carried along (Neumaier 1974): terms of millions of counts leave a small difference between
    this sum and what needs the histogram alone.
    """
    nodes, start, zeros, zeta = data.nodes, data.start, data.extra.zeros, data.extra.rows[ZETA]
    inflated = zeros.size > 0
    f, lost = 0.0, 0.0
    f_theta = 0.0
    for s in range(start.size - 1):
        scale = math.exp(min(strata[ETA, s], MAX_ETA))
        for k in range(start[s], start[s + 1]):
            mu = nodes[NODE_E, k] * scale
            m = mu * per_theta
            weight = nodes[NODE_A, k]
            c = log_zero(mu, per_theta)
            c_theta = log_ratio(m) / per_theta if per_theta > 0.0 else 0.0
            term = 0.0
            if inflated:
                term -= weight * softplus(zeta[s])
                if zeros[k] != 0.0:
                    weight -= zeros[k]
                    above = c - zeta[s]
                    term += zeros[k] * (zeta[s] + softplus(above))
                    f_theta += zeros[k] * c_theta / (1.0 + math.exp(-above))
            term += weight * c - nodes[NODE_Y, k] * math.log1p(m)
            f_theta += weight * c_theta + nodes[NODE_Y, k] * m / (1.0 + m)
            total = f + term
            lost += (f - total) + term if abs(f) >= abs(term) else (term - total) + f
            f = total
    return f + lost, f_theta
