"""The distribution of a response given its linear predictor: moments, probabilities, random numbers.

    gaussian   y ~ N(mu, sigma^2)                      mu = eta
    poisson    y ~ Poisson(mu)                         mu = exp(eta)
    nbinom2    y ~ NB2(mu, theta), Var = mu + mu^2/theta

With zero inflation a count is 0 with probability pi (a structural zero), else it comes of the family (Lambert 1992,
doi 10.2307/1269547).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import gammaln, xlogy

MAX_THETA = 1e12  # beyond this scipy's negative binomial loses digits, and it is a Poisson


@dataclass(frozen=True, eq=False)
class Distribution:
    """Distribution of every observation.

    Attributes
    ----------
    family
        `"gaussian"`, `"poisson"` or `"nbinom2"`.
    mu
        (n,) mean of the family, without zero inflation.
    theta
        Size of the negative binomial; inf for the other families.
    sigma
        Residual standard deviation of the gaussian family; NaN for counts.
    pi
        (n,) probability of a structural zero; 0 without zero inflation.
    """

    family: str
    mu: np.ndarray
    theta: float
    sigma: float
    pi: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Expected response."""
        return (1 - self.pi) * self.mu

    @property
    def variance(self) -> np.ndarray:
        """Variance of the response."""
        if self.family == "gaussian":
            return np.full(self.mu.shape, self.sigma**2)
        of_family = self.mu + self.mu**2 / self.theta
        return (1 - self.pi) * (of_family + self.pi * self.mu**2)

    @property
    def zero(self) -> np.ndarray:
        """Probability of a count of 0."""
        return self.pi + (1 - self.pi) * np.exp(self._log_zero)

    @property
    def family_zero(self) -> np.ndarray:
        """Probability that the family gives a 0, zero inflation aside."""
        return np.exp(self._log_zero)

    @property
    def _log_zero(self) -> np.ndarray:
        if self._is_poisson:
            return -self.mu
        return -self.theta * np.log1p(self.mu / self.theta)

    @property
    def _is_poisson(self) -> bool:
        return self.family == "poisson" or self.theta > MAX_THETA

    def _counts(self) -> stats.rv_frozen:
        if self._is_poisson:
            return stats.poisson(self.mu)
        return stats.nbinom(self.theta, self.theta / (self.theta + self.mu))

    def log_prob(self, y: np.ndarray) -> np.ndarray:
        """Log density or probability of each observation."""
        if self.family == "gaussian":
            return stats.norm.logpdf(y, self.mu, self.sigma)
        if self._is_poisson:
            value = xlogy(y, self.mu) - self.mu - gammaln(y + 1)
        else:
            theta = self.theta
            value = gammaln(y + theta) - gammaln(theta) - gammaln(y + 1)
            value = value + xlogy(y, self.mu / (self.mu + theta)) - theta * np.log1p(self.mu / theta)
        with np.errstate(divide="ignore"):
            return np.where(y == 0, np.log(self.pi + (1 - self.pi) * np.exp(value)), np.log1p(-self.pi) + value)

    def cdf(self, y: np.ndarray) -> np.ndarray:
        """Probability of at most y."""
        if self.family == "gaussian":
            return stats.norm.cdf(y, self.mu, self.sigma)
        return np.where(y < 0, 0.0, self.pi + (1 - self.pi) * self._counts().cdf(y))

    def sf(self, y: np.ndarray) -> np.ndarray:
        """Probability of more than y, accurate where `cdf` is 1 but for rounding."""
        if self.family == "gaussian":
            return stats.norm.sf(y, self.mu, self.sigma)
        return np.where(y < 0, 1.0, (1 - self.pi) * self._counts().sf(y))

    def deviance_residuals(self, y: np.ndarray) -> np.ndarray:
        """Signed roots of each observation's part of the deviance; there is none with zero inflation."""
        mu = self.mu
        if self.family == "gaussian":
            return y - mu
        if self._is_poisson:
            half = xlogy(y, y / mu) - (y - mu)
        else:
            half = xlogy(y, y / mu) - (y + self.theta) * np.log((y + self.theta) / (mu + self.theta))
        # rounding: the deviance of an observation that is fitted exactly is 0
        return np.sign(y - mu) * np.sqrt(2 * np.maximum(half, 0.0))

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a response for each observation."""
        if self.family == "gaussian":
            return rng.normal(self.mu, self.sigma)
        rate = self.mu if self._is_poisson else self.mu * rng.gamma(self.theta, 1 / self.theta, self.mu.shape)
        counts = rng.poisson(rate).astype(np.float64)
        return np.where(rng.random(self.mu.shape) < self.pi, 0.0, counts)
