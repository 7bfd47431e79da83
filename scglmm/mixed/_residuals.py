"""Residuals of the rows of the fit, random effects included in the fitted values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

if TYPE_CHECKING:
    from ._result import GLMMResult

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
    low, high = distribution.cdf(y - 1), distribution.cdf(y)
    u = low + rng.random(y.size) * (high - low)
    # the normal quantile of exactly 0 or 1 is infinite
    return stats.norm.ppf(np.clip(u, 1e-15, 1 - 1e-15))
