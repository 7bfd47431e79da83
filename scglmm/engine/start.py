"""Starting values: close enough that the quasi-Newton search needs about ten gradients.

beta and v start at the joint mode for guessed variances, theta from the moments of the counts around that mode, and
each variance from one step of the EM algorithm.
"""

from __future__ import annotations

import math

import numpy as np

from scglmm._jit import YES, entry, kernel

from .families import GAUSSIAN, NB2
from .layout import ETA, MAX_ETA, NODE_A, NODE_E, NODE_Y
from .ldl import selected_inverse
from .mode import NEAR, find_mode

SIGMA = 0.5
RESIDUAL = 0.5
SIGMA_RANGE = (0.05, 3.0)
THETA_RANGE = (0.02, 200.0)


@entry
def starting_point(data, structure, X, beta, v, psi, work):
    """Fill beta, v, psi with starting values and return the one of log(theta); NaN when no mode is found.

    beta comes with a first guess: the pooled rate. Gaussian responses are expected with variance near 1.
    """
    n_psi = psi.size
    for k in range(n_psi):
        psi[k] = SIGMA if structure.psi_at[0, k] == structure.psi_at[1, k] else 0.0
    theta = RESIDUAL if data.family == GAUSSIAN else 1.0
    if find_mode(data, structure, X, psi, theta, YES, beta, v, work, NEAR) < 0:
        return np.nan
    if data.family == NB2:
        theta = _moment_theta(data, work.strata)
        if find_mode(data, structure, X, psi, theta, YES, beta, v, work, NEAR) < 0:
            return np.nan
    _em_step(structure, psi, v, work)
    return math.log(theta)


@kernel
def _moment_theta(data, strata):
    """Size that makes the sum of (y - mu)^2 what NB2 expects; the sums over cells are taken on the nodes."""
    squares = 0.0  # sum of y^2 = sum_j (2j + 1) N(y > j)
    for j in range(data.exceed.size):
        squares += (2 * j + 1) * data.exceed[j]
    for i in range(data.tail.shape[1]):
        top = float(data.exceed.size)
        squares += data.tail[1, i] * (data.tail[0, i] ** 2 - top * top)
    cross = 0.0
    mu_sum = 0.0
    mu_squares = 0.0
    for s in range(data.start.size - 1):
        scale = math.exp(min(strata[ETA, s], MAX_ETA))
        for k in range(data.start[s], data.start[s + 1]):
            mu = data.nodes[NODE_E, k] * scale
            cross += data.nodes[NODE_Y, k] * mu
            mu_sum += data.nodes[NODE_A, k] * mu
            mu_squares += data.nodes[NODE_A, k] * mu * mu
    excess = squares - 2.0 * cross + mu_squares - mu_sum
    if not excess > 0.0:
        return THETA_RANGE[1]
    return min(THETA_RANGE[1], max(THETA_RANGE[0], mu_squares / excess))


@kernel
def _em_step(structure, psi, v, work):
    """Scale each column of Lambda by the root mean square of its effects: posterior mean squared plus variance."""
    selected_inverse(work.values, structure.starts, structure.entries, work.inverse, work.effects)
    S = structure.z.shape[0]
    seen = np.zeros(v.size, np.bool_)
    for k in range(psi.size):
        if structure.psi_at[0, k] != structure.psi_at[1, k]:
            continue
        slot = structure.psi_at[1, k]
        for effect in range(v.size):
            seen[effect] = False
        total = 0.0
        count = 0
        for s in range(S):
            effect = structure.z_column[s, slot]
            if not seen[effect]:
                seen[effect] = True
                total += v[effect] * v[effect] + work.inverse[effect]
                count += 1
        factor = math.sqrt(total / max(1, count))
        new = min(SIGMA_RANGE[1], max(SIGMA_RANGE[0], psi[k] * factor))
        # The effects stay what they were: u = psi v.
        for effect in range(v.size):
            if seen[effect]:
                v[effect] *= psi[k] / new
        psi[k] = new
