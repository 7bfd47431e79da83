"""Variance components, predicted random effects, and coefficients of every level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scglmm.results.names import near_first

if TYPE_CHECKING:
    from ._result import GLMMResult


def correlation(sigma: np.ndarray) -> np.ndarray:
    """Correlation matrix of a covariance matrix; NaN where a variance is 0."""
    sd = np.sqrt(np.diag(sigma))
    with np.errstate(invalid="ignore", divide="ignore"):
        return sigma / np.outer(sd, sd)


def varcorr(result: GLMMResult) -> pd.DataFrame:
    """Variances and correlations, in the columns of R's ``as.data.frame(VarCorr(fit))``."""
    rows: list[tuple[Any, ...]] = []
    for term, sigma in zip(result.model.design.random, result.estimates.sigma, strict=True):
        cor = correlation(sigma)
        for j, name in enumerate(term.columns):
            rows.append((term.group, name, None, sigma[j, j], np.sqrt(sigma[j, j])))
        for j, first in enumerate(term.columns):
            for k in range(j + 1, len(term.columns)):
                rows.append((term.group, first, term.columns[k], sigma[k, j], cor[k, j]))
    if result.family == "gaussian":
        rows.append(("Residual", None, None, result.sigma**2, result.sigma))
    return pd.DataFrame(rows, columns=["grp", "var1", "var2", "vcov", "sdcor"])


def ranef(result: GLMMResult) -> pd.DataFrame:
    """Predicted random effects, one row per effect and level."""
    fit = result.estimates
    tables = []
    for i, term in enumerate(result.model.design.random):
        sd, pred_sd = (
            np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)) for covariance in (fit.ranef_vcov[i], fit.ranef_pev[i])
        )
        for j, name in enumerate(term.columns):
            columns = {
                "group": term.group,
                "level": term.levels,
                "term": name,
                "estimate": fit.ranef[i][:, j],
                "sd": sd[:, j],
                "pred_sd": pred_sd[:, j],
            }
            tables.append(pd.DataFrame(columns))
    if not tables:
        return pd.DataFrame(columns=["group", "level", "term", "estimate", "sd", "pred_sd"])
    return pd.concat(tables, ignore_index=True)


def coef(result: GLMMResult, group: str | None) -> pd.DataFrame:
    """Add fixed and random effects of every level of a grouping factor."""
    design = result.model.design
    groups = list(dict.fromkeys(term.group for term in design.random))
    if not groups:
        msg = f"The model {result.formula!r} has no random effects: see coef_table."
        raise ValueError(msg)
    if group is None and len(groups) == 1:
        group = groups[0]
    if group not in groups:
        what = "Say which grouping factor is meant" if group is None else f"There is no grouping factor {group!r}"
        msg = f"{what}; they are {near_first(group or '', groups)}."
        raise ValueError(msg) if group is None else KeyError(msg)
    levels = next(term.levels for term in design.random if term.group == group)
    table = pd.DataFrame(np.tile(result.estimates.beta, (len(levels), 1)), pd.Index(levels, name=group), design.columns)
    for term, effects in zip(design.random, result.estimates.ranef, strict=True):
        if term.group != group:
            continue
        for j, name in enumerate(term.columns):
            table[name] = effects[:, j] + table.get(name, 0.0)
    return table
