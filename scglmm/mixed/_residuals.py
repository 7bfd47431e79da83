"""Residuals of the rows of the fit, random effects included in the fitted values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

if TYPE_CHECKING:
    from ._result import GLMMResult

TINY = 1e-300  # the quantile of a probability of 0 would be infinite
TYPES = ("response", "pearson", "deviance", "quantile")


def residuals(result: GLMMResult, type: str, rng: np.random.Generator | int | None) -> pd.Series:
    """Compute residuals; see `GLMMResult.residuals`."""
    if type not in TYPES:
        msg = f"type={type!r} is not one of {', '.join(map(repr, TYPES))}."
        raise ValueError(msg)
    y, distribution = result.model.y, result.distribution()
    if type == "response":
        values = y - distribution.mean
    elif type == "pearson":
        with np.errstate(invalid="ignore"):
            values = (y - distribution.mean) / np.sqrt(distribution.variance)
        values[(y == 0) & (distribution.mean == 0)] = 0.0  # separated rows, fitted exactly
    elif type == "deviance":
        if result.model.zi_design is not None:
            msg = (
                "Deviance residuals are not defined with zero inflation: use type='quantile', which is standard normal "
                "under the model, or 'pearson'."
            )
            raise ValueError(msg)
        values = distribution.deviance_residuals(y)
    else:
        values = quantile_residuals(result, np.random.default_rng(rng))
    return pd.Series(values, index=result.model.frame.index, name=type)


def quantile_residuals(result: GLMMResult, rng: np.random.Generator) -> np.ndarray:
    """Take normal quantiles of the distribution function, uniform within the jump at a count (Dunn and Smyth 1996)."""
    y, distribution = result.model.y, result.distribution()
    if result.family == "gaussian":
        return (y - distribution.mu) / result.sigma
    share = rng.random(y.size)
    low, high = distribution.cdf(y - 1), distribution.cdf(y)
    above, least = distribution.sf(y - 1), distribution.sf(y)
    below = stats.norm.ppf(np.maximum(low + share * (high - low), TINY))
    # far in the upper tail probabilities are 1 but for rounding: what is left above says more
    upper = stats.norm.isf(np.maximum(above - share * (above - least), TINY))
    return np.where(low < 0.5, below, upper)
