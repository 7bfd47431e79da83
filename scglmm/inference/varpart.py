"""Variance fractions of a count on the link scale (Nakagawa, Johnson and Schielzeth 2017, doi 10.1098/rsif.2017.0213).

    G           variance over cells of the linear predictor without the offset, random effects included
    q           of a fixed term: variance over cells of its part of the linear predictor; of a random term: its
                variance, for a slope the mean over cells of z'Sigma z
    lambda      mean over cells of exp(b0 + o + s2/2) in the model with an intercept and the random effects
    D, D_inf    distribution-specific variance, and what of it would stay with infinitely many reads

    fraction of a term  G/(G+D) q/sum(q)      CountNoise  (D - D_inf)/(G+D)      Residuals  D_inf/(G+D)

The offset has no fraction. Rows sum to 1.
"""

from __future__ import annotations

import numpy as np
from scipy.special import polygamma

METHODS = ("trigamma", "lognormal", "delta")
COUNT_NOISE, RESIDUALS = "CountNoise", "Residuals"

LARGEST_LOG = 300.0  # the squares of exp(300) and of its reciprocal are still numbers


def distribution_variance(rate: np.ndarray, theta: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Distribution-specific variances D and D_inf of NB2 on the log scale.

    Parameters
    ----------
    rate
        Mean count lambda, positive.
    theta
        Size of the negative binomial; inf is Poisson, whose D_inf is 0.
    method
        `"trigamma"`, `"lognormal"` or `"delta"`.
    """
    noise = 1 / rate + 1 / theta
    with np.errstate(divide="ignore"):
        if method == "trigamma":
            return polygamma(1, 1 / noise), np.where(np.isinf(theta), 0.0, polygamma(1, theta))
        if method == "lognormal":
            return np.log1p(noise), np.log1p(1 / theta)
    if method == "delta":
        return noise, 1 / theta
    msg = f"method={method!r} is not one of {', '.join(METHODS)}."
    raise ValueError(msg)


def fractions(
    linear: np.ndarray, parts: np.ndarray, rate: np.ndarray, theta: np.ndarray, method: str = "trigamma"
) -> np.ndarray:
    """Variance fractions of many genes.

    Parameters
    ----------
    linear
        (genes,) G.
    parts
        (genes, terms) q of every fixed and random term.
    rate, theta
        (genes,) lambda and the size of the negative binomial.
    method
        Definition of the distribution-specific variance.

    Returns
    -------
    (genes, terms + 2): the terms, CountNoise, Residuals. NaN where an argument is.
    """
    D, D_inf = distribution_variance(rate, theta, method)
    total = parts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        # Terms that explain nothing at all leave G = 0 to share out.
        share = np.where(total[:, None] > 0, parts / total[:, None], 0.0)
    explained = np.where(total > 0, linear, np.where(np.isnan(total), np.nan, 0.0))
    whole = explained + D
    return np.column_stack([share * (explained / whole)[:, None], (D - D_inf) / whole, D_inf / whole])


def mean_rate(intercept: np.ndarray, exposure: float, variance: np.ndarray) -> np.ndarray:
    """Mean count lambda = exp(intercept + exposure + variance / 2), kept from 0 and infinity.

    Parameters
    ----------
    intercept, variance
        (genes,) of the model without fixed effects: its intercept (natural log) and its total random variance.
    exposure
        `log_mean_exp` of the offsets.
    """
    return np.exp(np.clip(intercept + exposure + variance / 2, -LARGEST_LOG, LARGEST_LOG))


def log_mean_exp(offset: np.ndarray) -> float:
    """Log of the mean over cells of exp(offset)."""
    top = offset.max()
    return float(top + np.log(np.mean(np.exp(offset - top))))
