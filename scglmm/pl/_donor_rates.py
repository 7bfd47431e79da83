"""What `scglmm.pl.donors` draws: the rates of donors, and what a stored result makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from scglmm.formula import design_matrix
from scglmm.pl._refit import Cells
from scglmm.results import StoredResult
from scglmm.results.names import near_first, storable

_LIBRARY = 50
"""Median exposure from which on exposures are library sizes."""
_CURVE = 40
"""Points of a curve along a numeric covariate."""


@dataclass(frozen=True)
class Estimate:
    """Fitted rates on the log scale: at every level, or along the curve."""

    at: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def choose_x(cells: Cells, x: str | None) -> str:
    """Find the column of the fixed part that goes on the axis; see :func:`scglmm.pl.donors` for what is raised."""
    columns = list(cells.design.data)
    if x is None:
        if cells.design.first_factor is not None:
            return cells.design.first_factor
        if len(columns) != 1:
            listed = ", ".join(map(repr, columns)) or "none"
            msg = f"The formula has no factor to put on the axis: choose with `x` among its columns, {listed}."
            raise ValueError(msg)
        return columns[0]
    if x not in columns:
        msg = f"{x!r} is not a column in the fixed part of the formula. Columns: {near_first(x, columns)}."
        raise KeyError(msg)
    return x


def choose_donor(cells: Cells, adata: AnnData, donor: str | None) -> list[str]:
    """Find the columns of obs that make a point; see :func:`scglmm.pl.donors` for what is raised."""
    if donor is not None:
        if donor not in adata.obs:
            msg = f"No column {donor!r} in `adata.obs`. Columns: {near_first(donor, adata.obs.columns)}."
            raise KeyError(msg)
        return [donor]
    if not cells.design.formula.random:
        msg = "The formula has no random effect: say with `donor` which column of `adata.obs` tells the donors."
        raise ValueError(msg)
    return list(cells.design.formula.random[0].columns)


def exposure_scale(offset: np.ndarray, exposure: float | None) -> tuple[float, str]:
    """Scale of the rates, and what the axis is called."""
    if exposure is not None and not exposure > 0:
        msg = f"`exposure` must be above 0, not {exposure!r}."
        raise ValueError(msg)
    median = float(np.exp(np.median(offset)))
    if exposure is None:
        exposure = 1e4 if median >= _LIBRARY else median
        if exposure == median:
            return median, "counts in a cell of median exposure"
    return exposure, f"counts per {exposure:,.0f}" if exposure >= 2 else f"counts per exposure of {exposure:g}"


def levels_of(column: pd.Series) -> list:
    """Levels of a factor that occur, in the order of its categories."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return list(column.cat.remove_unused_categories().cat.categories)
    return sorted(column.unique())


def is_number(column: pd.Series) -> bool:
    """Whether a column is a numeric covariate; booleans are factors."""
    return pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)


def donor_rates(obs: pd.DataFrame, x: str, unit: list[str], cells: Cells, gene: int) -> pd.DataFrame:
    """Rate of the gene in every donor (in every condition, where `x` is a factor), and what belongs to it.

    Returns
    -------
    Table with the columns `donor`, `x` (its mean, for a number), `n_cells` and `rate`: counts per unit of exposure.
    """
    donor = obs[unit].astype(str).agg(":".join, axis=1).to_numpy()
    frame = pd.DataFrame({"donor": donor, "x": obs[x].to_numpy(), "y": cells.counts(gene), "e": np.exp(cells.offset)})
    grouped = frame.groupby(["donor"] if is_number(obs[x]) else ["donor", "x"], observed=True, sort=True)
    out = pd.DataFrame({"n_cells": grouped.size(), "rate": grouped["y"].sum() / grouped["e"].sum()})
    if is_number(obs[x]):
        out["x"] = grouped["x"].mean()
    return out.reset_index()


def contrasts_of(
    cells: Cells, obs: pd.DataFrame, unit: list[str], x: str, levels: list | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the design with `x` at each level (or along its range), averaged over donors, and where they go."""
    rows, weights = _covariates(cells, obs, unit, x)
    values = np.linspace(obs[x].min(), obs[x].max(), _CURVE) if levels is None else levels
    parts = []
    for value in values:
        column = pd.Series([value] * len(rows), index=rows.index)
        new = rows.assign(**{x: column if levels is None else column.astype(obs[x].dtype)})
        parts.append(weights @ design_matrix(cells.design, new))
    return np.array(parts), np.asarray(values) if levels is None else np.arange(len(levels), dtype=float)


def _covariates(cells: Cells, obs: pd.DataFrame, unit: list[str], x: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Covariates other than `x`: every combination of factors that a donor has, numbers averaged; donors count 1."""
    columns = [c for c in cells.design.data if c != x]
    donor = obs[unit].astype(str).agg(":".join, axis=1).rename("donor of the cell")
    factors = [c for c in columns if not is_number(obs[c])]
    numbers = [c for c in columns if is_number(obs[c])]
    grouped = pd.concat([donor, obs[columns]], axis=1).groupby([donor.name, *factors], observed=True)
    rows = (grouped[numbers].mean() if numbers else grouped.size().to_frame("n")).reset_index()
    weights = 1 / rows.groupby(donor.name)[donor.name].transform("size").to_numpy()
    return rows, weights / weights.sum()


def stored_estimate(
    result: StoredResult,
    design_columns: list[str],
    group: str | None,
    gene: int,
    contrasts: np.ndarray,
    at: np.ndarray,
    level: float,
) -> Estimate | None:
    """Estimates of the contrasts from what is stored; None where the gene has none."""
    order = [result.coefficients_in(group).index(storable(c)) for c in design_columns]
    coef = result.table("coef", group).to_numpy()[gene][order]
    dof = result.table("dof", group).to_numpy()[gene][order]
    p = len(order)
    vcov = np.zeros((p, p))
    vcov[np.tril_indices(p)] = result.vcov(group)[gene]
    vcov = (vcov + np.tril(vcov, -1).T)[np.ix_(order, order)]
    if not np.isfinite(coef).all() or not np.isfinite(vcov).all():
        return None
    variance = np.einsum("ki,ij,kj->k", contrasts, vcov, contrasts)
    part = np.where(np.abs(contrasts) > 1e-9, dof, np.inf).min(axis=1)
    return interval(contrasts @ coef, np.sqrt(np.maximum(variance, 0.0)), part, at, level)


def interval(mean: np.ndarray, se: np.ndarray, df: np.ndarray, at: np.ndarray, level: float) -> Estimate:
    half = stats.t.ppf((1 + level) / 2, df) * se
    return Estimate(at, mean, mean - half, mean + half)
