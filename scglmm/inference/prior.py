"""Prior of the standard deviations of the random effects, estimated over all genes.

For each random term, independently, a distribution on 0 and a grid of log(sigma) that changes with the mean expression
of the gene: between knots (quantiles of the log mean) the weights are interpolated. The weights maximise the marginal
likelihood of all genes, each seen through its REML profile, by EM; after every step the weights on log(sigma) are
smoothed (EMS: Silverman et al. 1990, doi 10.1111/j.2517-6161.1990.tb01779.x), which is what keeps a nonparametric
estimate (Kiefer and Wolfowitz 1956; Laird 1978) from becoming a few spikes. Nothing is assumed of its shape: there may
be a mass at 0, and a gene far above the others keeps its own estimate because some mass stays everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .sd_profile import MAX_SD, MIN_SD

SPACING = {1: 0.15, 2: 0.3, 3: 0.5}  # of the grid of log(sigma), by the number of terms
BANDWIDTH = 0.3  # standard deviation of the smoothing kernel in log(sigma)
FLOOR = 1e-4  # total weight spread evenly
MAX_ITERATIONS = 300
TOLERANCE = 3e-6
GENES_PER_KNOT = 300
MAX_KNOTS = 4
EDGE = 0.95  # weight at 0 above which the data are said not to show any variance
UPPER_EDGE = 0.2

OK, AT_ZERO, AT_UPPER = "ok", "at_zero", "at_upper_limit"


def log_sd_grid(n_terms: int) -> np.ndarray:
    """Grid of log(sigma), natural log, without the 0."""
    n = 1 + math.ceil((math.log(MAX_SD) - math.log(MIN_SD)) / SPACING[n_terms])
    return np.linspace(math.log(MIN_SD), math.log(MAX_SD), n)


@dataclass(frozen=True)
class Prior:
    """Prior of the standard deviations of R random terms.

    Attributes
    ----------
    knots
        (B,) log mean expression (natural log of counts per cell).
    log_sd
        (K,) grid of log(sigma), natural log, engine's units.
    weights
        For each term (B, K + 1): weight of 0 and of the hat function at every grid point.
    n_genes
        Genes it was estimated from.
    n_iterations
        Of EM.
    """

    knots: np.ndarray
    log_sd: np.ndarray
    weights: list[np.ndarray]
    n_genes: int
    n_iterations: int

    def at(self, log_mean: np.ndarray, term: int) -> np.ndarray:
        """(G, K + 1) weights for genes of given log mean."""
        return hats(log_mean, self.knots) @ self.weights[term]

    def status(self, term: int) -> str:
        """`ok`, or the edge on which the prior of a term lies."""
        weights = self.weights[term].mean(axis=0)
        if weights[0] > EDGE:
            return AT_ZERO
        return AT_UPPER if weights[-1] > UPPER_EDGE else OK

    def quantiles(self, log_mean: np.ndarray, term: int, levels: np.ndarray) -> np.ndarray:
        """(G, levels) quantiles of sigma, engine's units."""
        below = np.cumsum(self.at(log_mean, term), axis=1)
        sd = np.concatenate([[0.0], np.exp(self.log_sd)])
        # Steps: the smallest grid point at which the distribution function reaches the level, between it and the last.
        return np.array([np.interp(levels, row, sd) for row in below])


def hats(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """(G, B) linear interpolation weights of x between knots, constant outside."""
    if knots.size == 1:
        return np.ones((x.size, 1))
    return np.stack([np.interp(x, knots, row) for row in np.eye(knots.size)], axis=1)


def estimate_prior(likelihood: np.ndarray, log_mean: np.ndarray) -> Prior:
    """Estimate the prior by maximum marginal likelihood with smoothing.

    Parameters
    ----------
    likelihood
        (G, K + 1, ..., K + 1) of every gene, up to a factor: at 0 and averaged with the hat functions of the grid.
    log_mean
        (G,) of the genes.
    """
    n_terms = likelihood.ndim - 1
    grid = log_sd_grid(n_terms)
    n_knots = int(np.clip(log_mean.size // GENES_PER_KNOT, 1, MAX_KNOTS))
    knots = np.unique(np.quantile(log_mean, np.linspace(0, 1, n_knots))) if n_knots > 1 else np.median(log_mean)[None]
    basis = hats(log_mean, knots)
    smoother = _smoother(grid)
    size = grid.size + 1
    weights = [np.full((knots.size, size), 1 / size) for _ in range(n_terms)]
    n_iterations = 0
    while n_iterations < MAX_ITERATIONS:
        n_iterations += 1
        priors = [basis @ w for w in weights]
        updated = []
        for term in range(n_terms):
            # Likelihood of every value of this term's sigma, the others integrated out.
            left = _integrate(likelihood, priors, term)
            share = left / np.maximum(1e-300, (left * priors[term]).sum(axis=1, keepdims=True))
            new = weights[term] * (basis.T @ share)
            new /= new.sum(axis=1, keepdims=True)
            new[:, 1:] = new[:, 1:] @ smoother
            updated.append((1 - FLOOR) * new + FLOOR / size)
        change = max(np.abs(a - b).max() for a, b in zip(weights, updated, strict=True))
        weights = updated
        if change < TOLERANCE:
            break
    return Prior(knots, grid, weights, log_mean.size, n_iterations)


def _integrate(likelihood: np.ndarray, priors: list[np.ndarray], keep: int) -> np.ndarray:
    """(G, K + 1) likelihood of one term's sigma with the others integrated out under their priors."""
    for term in reversed(range(len(priors))):
        if term != keep:
            # Axis 0 is genes; higher axes have gone already, so this term is the last but for `keep`.
            axis = term + 1
            likelihood = np.einsum("g...k,gk->g...", np.moveaxis(likelihood, axis, -1), priors[term])
    return likelihood


def _smoother(grid: np.ndarray) -> np.ndarray:
    """(K, K) Gaussian kernel; rows sum to 1, so that mass is kept at the ends."""
    kernel = np.exp(-0.5 * ((grid[:, None] - grid) / BANDWIDTH) ** 2)
    return kernel / kernel.sum(axis=1, keepdims=True)
