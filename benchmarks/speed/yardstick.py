r"""The log-likelihood at given estimates, by adaptive Gauss–Hermite quadrature on the cells.

.. math:: \log L = \sum_d \log \int N(u; 0, \sigma^2) \prod_{i \in d} NB2(y_i \mid e^{o_i + x_i'\beta + u}, \theta)\, du

numpy and scipy on the uncompressed cells, and nothing of scglmm's engine, so that it favours nobody. With one point it
is the Laplace approximation with the observed curvature, which glmmTMB maximises; with 25 points it is the integral.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, logsumexp

NEWTON_STEPS = 100


def log_likelihood(
    y: np.ndarray,
    eta: np.ndarray,
    donor: np.ndarray,
    sigma2: float,
    theta: float,
    n_points: int = 1,
) -> float:
    """Evaluate the log-likelihood.

    Parameters
    ----------
    y, eta, donor
        (n,) counts, offset plus fixed part (natural log), numbers of the donors.
    sigma2, theta
        Variance between donors, NB2 size (infinite for Poisson).
    n_points
        Points of the quadrature.
    """
    n_donors = int(donor.max()) + 1
    poisson = not np.isfinite(theta) or theta > 1e8

    def by_donor(values: np.ndarray) -> np.ndarray:
        return np.bincount(donor, values, n_donors)

    def density(u: np.ndarray) -> np.ndarray:
        """Log-probability of each donor's counts, (donors,)."""
        log_mu = eta + u[donor]
        mu = np.exp(log_mu)
        if poisson:
            return by_donor(y * log_mu - mu)
        return by_donor(y * (log_mu - np.log(theta)) - (y + theta) * np.log1p(mu / theta))

    constant = -gammaln(y + 1).sum()
    if not poisson:
        constant += (gammaln(y + theta) - gammaln(theta)).sum()
    if sigma2 <= 0:
        return float(constant + density(np.zeros(n_donors)).sum())

    def slope_and_curvature(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mu = np.exp(eta + u[donor])
        share = np.zeros_like(mu) if poisson else mu / (mu + theta)
        slope = y - mu if poisson else y - (y + theta) * share
        curvature = mu if poisson else (y + theta) * share * (1 - share)
        return by_donor(slope) - u / sigma2, by_donor(curvature) + 1 / sigma2

    u = np.zeros(n_donors)
    value = density(u) - u**2 / (2 * sigma2)
    for _ in range(NEWTON_STEPS):
        slope, curvature = slope_and_curvature(u)
        step = slope / curvature
        while True:  # halved where it went down
            new = density(u + step) - (u + step) ** 2 / (2 * sigma2)
            down = new < value - 1e-9 * np.abs(value)
            if not down.any():
                break
            step = np.where(down, step / 2, step)
        u, value = u + step, new
        if np.abs(step).max() < 1e-10:
            break
    curvature = slope_and_curvature(u)[1]

    x, weight = np.polynomial.hermite.hermgauss(n_points)
    width = np.sqrt(2 / curvature)
    terms = np.empty((n_points, n_donors))
    for k in range(n_points):
        at = u + width * x[k]
        terms[k] = density(at) - at**2 / (2 * sigma2) + np.log(weight[k]) + x[k] ** 2
    per_donor = logsumexp(terms, axis=0) + np.log(width) - 0.5 * np.log(2 * np.pi * sigma2)
    return float(constant + per_donor.sum())
