"""Prior of the standard deviations of the random effects, estimated over all genes.

For each random term, independently: a mass at 0, and a density of log(sigma) whose location follows the mean expression
of the gene. They maximise the marginal likelihood of all genes, each seen through its REML profile, by EM (Kiefer and
Wolfowitz 1956; Laird 1978), less a penalty on the third derivative of the logarithm of the density (Silverman 1982, doi
10.1214/aos/1176345872): without information it is a log-normal distribution, with much of it any shape. A little weight
is spread evenly, so a gene far above the others keeps its own estimate and does not move the density.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .sd_profile import MAX_SD, MIN_SD

SPACING = {1: 0.15, 2: 0.3, 3: 0.5}  # of the grid of log(sigma), by the number of terms
ROUGHNESS = 0.3  # half of it times the integral of the squared third derivative is the penalty
FLOOR = 1e-4  # weight spread evenly
MAX_ITERATIONS = 200
FEWEST_ITERATIONS = 10
TOLERANCE = 0.01  # of the marginal log-likelihood of all genes
GENES_PER_KNOT = 300
MAX_KNOTS = 4  # of the location
FINE_KNOTS = 17  # at which the weights are kept
SMALLEST_RANGE = 0.1  # of the log mean, for a trend
MAX_SHIFT = 3.0  # of log(sigma), along the trend
EDGE = 0.95  # weight at 0 above which the data are said not to show any variance
UPPER_EDGE = 0.2
MIN_MASS = 1e-4  # at 0 and elsewhere

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
    """Estimate the prior by penalised maximum marginal likelihood.

    Parameters
    ----------
    likelihood
        (G, K + 1, ..., K + 1) of every gene, up to a factor: at 0 and averaged with the hat functions of the grid.
    log_mean
        (G,) of the genes.
    """
    n_terms = likelihood.ndim - 1
    grid = log_sd_grid(n_terms)
    # Sums over genes are taken in one order, whatever that of the genes is.
    order = np.argsort(log_mean, kind="stable")
    if (np.diff(order) < 0).any():
        likelihood, log_mean = likelihood[order], log_mean[order]
    knots, trend = _knots(log_mean)
    basis = hats(log_mean, knots)
    terms = [_Term(grid, trend) for _ in range(n_terms)]
    last, n_iterations = -np.inf, 0
    while n_iterations < MAX_ITERATIONS:
        n_iterations += 1
        priors = [basis @ term.weights for term in terms]
        for r, term in enumerate(terms):
            # Likelihood of every value of this term's sigma, the others integrated out.
            left = _integrate(likelihood, priors, r)
            marginal = np.maximum(1e-300, np.einsum("gk,gk->g", left, priors[r]))
            term.update(term.weights * (basis.T @ (left / marginal[:, None])))
        # The marginal likelihood is the same whichever term is integrated out last.
        value = np.log(marginal).sum()
        if n_iterations > FEWEST_ITERATIONS and abs(value - last) < TOLERANCE:
            break
        last = value
    return Prior(knots, grid, [term.weights for term in terms], log_mean.size, n_iterations)


class _Term:
    """Mass at 0, density and location of one standard deviation.

    Attributes
    ----------
    weights
        (B, K + 1) at the fine knots.
    """

    def __init__(self, grid: np.ndarray, trend: np.ndarray) -> None:
        self.spacing = grid[1] - grid[0]
        third = np.diff(np.eye(grid.size), 3, axis=0)
        # Its mean, of which the density does not depend, is held at 0; and a little everywhere, for where no gene is.
        held = np.full((grid.size, grid.size), 1 / grid.size) + 1e-6 * np.eye(grid.size)
        self.penalty = ROUGHNESS * self.spacing**-5 * third.T @ third + held
        self.trend = trend
        self.slopes = np.zeros(trend.shape[1])
        self.mass = 0.1
        start = -0.5 * (grid - math.log(0.2)) ** 2
        self.log_density = start - start.mean()
        self._build()

    def _build(self) -> None:
        """Weights at the knots from the parameters."""
        size = self.log_density.size
        steps = self.trend @ self.slopes / self.spacing
        whole = np.floor(steps).astype(int)
        self.part = (steps - whole)[:, None]
        # A point of the shifted density lies between these two.
        self.upper = np.clip(np.arange(size) - whole[:, None], 0, size - 1)
        self.lower = np.clip(np.arange(size) - whole[:, None] - 1, 0, size - 1)
        density = np.exp(self.log_density - self.log_density.max())
        self.density = density / density.sum()
        shifted = self._shift(self.density)
        total = shifted.sum(axis=1, keepdims=True)
        weights = np.hstack([np.full_like(total, self.mass), (1 - self.mass) * shifted / total])
        self.shifted = shifted
        self.weights = (1 - FLOOR) * weights + FLOOR / (size + 1)

    def _shift(self, values: np.ndarray) -> np.ndarray:
        """(B, K) values of the density, moved along the trend."""
        return (1 - self.part) * values[self.upper] + self.part * values[self.lower]

    def update(self, expected: np.ndarray) -> None:
        """One step of EM from the (B, K + 1) expected numbers of genes at the knots."""
        size = self.log_density.size
        expected = expected * (1 - FLOOR / (size + 1) / self.weights)  # without those of the even part
        at_zero, expected = expected[:, 0].sum(), expected[:, 1:]
        n = expected.sum()
        self.mass = float(np.clip(at_zero / max(at_zero + n, 1e-300), MIN_MASS, 1 - MIN_MASS))
        # Back to the density before it was moved: each point came from two.
        ratio = expected / np.maximum(self.shifted, 1e-300)
        counts = np.bincount(self.upper.ravel(), ((1 - self.part) * ratio).ravel(), size)
        counts = self.density * (counts + np.bincount(self.lower.ravel(), (self.part * ratio).ravel(), size))
        if self.slopes.size:
            self._follow(expected)
        self.log_density = _maximise(self.log_density, counts, self.penalty)
        self._build()

    def _follow(self, expected: np.ndarray) -> None:
        """Scoring step of the location; slopes have a standard normal prior."""
        slope = self._shift(np.gradient(self.log_density, self.spacing))
        gradient = -self.trend.T @ np.einsum("bk,bk->b", expected, slope) - self.slopes
        information = np.einsum("bk,bk->b", expected, slope**2)
        hessian = self.trend.T @ (information[:, None] * self.trend) + np.eye(self.slopes.size)
        moved = self.slopes + np.clip(np.linalg.solve(hessian, gradient), -0.5, 0.5)
        self.slopes = np.clip(moved, -MAX_SHIFT, MAX_SHIFT)


def _maximise(log_density: np.ndarray, counts: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Two Newton steps of the penalised multinomial likelihood, which is concave in the log density."""
    n = counts.sum()

    def value(x: np.ndarray) -> float:
        return counts @ x - n * np.log(np.exp(x - x.max()).sum()) - n * x.max() - 0.5 * x @ penalty @ x

    best = value(log_density)
    for _ in range(2):
        density = np.exp(log_density - log_density.max())
        density /= density.sum()
        gradient = counts - n * density - penalty @ log_density
        hessian = n * (np.diag(density) - np.outer(density, density)) + penalty
        step = np.linalg.solve(hessian, gradient)
        step *= min(1.0, 5.0 / max(1e-300, np.abs(step).max()))
        for _ in range(20):
            # A fall within rounding is none: what is found must not depend on the order of the genes.
            if (found := value(log_density + step)) >= best - 1e-10 * abs(best):
                log_density, best = log_density + step, found
                break
            step *= 0.5
    return log_density


def _knots(log_mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B,) knots at which weights are kept, and (B, L) what the location is linear in, of mean 0 over the genes."""
    low, high = log_mean.min(), log_mean.max()
    if high - low < SMALLEST_RANGE:
        return np.median(log_mean)[None], np.zeros((1, 0))
    fine = np.linspace(low, high, FINE_KNOTS)
    n = int(np.clip(1 + log_mean.size // GENES_PER_KNOT, 2, MAX_KNOTS))
    coarse = np.unique(np.quantile(log_mean, np.linspace(0, 1, n)))
    of_genes = hats(log_mean, coarse).mean(axis=0)
    # One less than knots: the location where the first would be 1 is that of the density.
    return fine, (hats(fine, coarse) - of_genes)[:, 1:]


def _integrate(likelihood: np.ndarray, priors: list[np.ndarray], keep: int) -> np.ndarray:
    """(G, K + 1) likelihood of one term's sigma with the others integrated out under their priors."""
    for term in reversed(range(len(priors))):
        if term != keep:
            # Axis 0 is genes, then what is before this term, this term, and at most `keep` behind it.
            n, size = priors[term].shape
            behind = math.prod(likelihood.shape[term + 2 :])
            shape = likelihood.shape[: term + 1] + likelihood.shape[term + 2 :]
            if behind == 1:
                likelihood = likelihood.reshape(n, -1, size) @ priors[term][:, :, None]
            else:
                likelihood = priors[term][:, None, None, :] @ likelihood.reshape(n, -1, size, behind)
            likelihood = likelihood.reshape(shape)
    return likelihood
