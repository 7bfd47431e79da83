"""Confidence intervals: Wald, and by profile likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

from scglmm.inference.profile import Held, Profile
from scglmm.results.names import near_first

from ._tests import check_level, quantile

if TYPE_CHECKING:
    from scglmm.inference.response_fit import ResponseFit

    from ._result import GLMMResult

METHODS = ("wald", "profile")
MAX_STEPS, MAX_FACTORS = 12, 40
STEP = 1.3


def confint(result: GLMMResult, level: float, method: str, parm: str | Sequence[str] | None) -> pd.DataFrame:
    """Compute intervals; see `GLMMResult.confint`."""
    check_level(level)
    if method not in METHODS:
        msg = f"method={method!r} is not one of {', '.join(map(repr, METHODS))}."
        raise ValueError(msg)
    names = result.model.design.columns
    wanted = names if parm is None else [parm] if isinstance(parm, str) else list(parm)
    held = _variances(result)
    for name in wanted:
        if name in held and method == "wald":
            msg = f"parm: {name!r} has no Wald interval, its distribution is too skewed: use method='profile'."
            raise ValueError(msg)
        if name not in names and name not in held:
            valid = [*names, *(held if method == "profile" else [])]
            msg = f"parm: {name!r} is no parameter with an interval; they are {near_first(name, valid)}."
            raise KeyError(msg)
    fit = result.estimates
    if method == "wald":
        half = quantile(level, fit.df) * fit.se
        low, high = fit.beta - half, fit.beta + half
        table = pd.DataFrame({"estimate": fit.beta, "low": low, "high": high}, index=names)
        return table.loc[wanted]
    if not result.converged or fit.lost.any():
        msg = f"A profile needs finite estimates of all coefficients; the status of this fit is {result.status!r}."
        raise ValueError(msg)
    from ._fit import refit

    best = refit(result, reml=False) if result.reml else fit
    rows = [
        _profile(result, best, names.index(name), level)
        if name in names
        else _profile_variance(result, best, held[name], level)
        for name in wanted
    ]
    return pd.DataFrame(rows, index=wanted, columns=["estimate", "low", "high"])


def _profile(result: GLMMResult, best: ResponseFit, j: int, level: float) -> tuple[float, float, float]:
    """Where the profile log-likelihood of coefficient j has fallen by half the chi-square quantile."""
    drop = stats.chi2.ppf(level, 1)
    estimate, se = float(best.beta[j]), float(best.se[j])

    def excess(b: float) -> float:
        return 2 * (best.loglik - _loglik_at(result, j, b)) - drop

    return estimate, _cross(excess, estimate, -se, drop), _cross(excess, estimate, se, drop)


def _variances(result: GLMMResult) -> dict[str, Held]:
    """Names of the standard deviations, and of theta or sigma."""
    names = {
        f"sd[{term.group}]" if effect == "(Intercept)" else f"sd[{term.group}:{effect}]": Held(i, j)
        for i, term in enumerate(result.model.design.random)
        for j, effect in enumerate(term.columns)
    }
    extra = {"gaussian": "sigma", "nbinom2": "theta"}.get(result.family)
    return names | ({extra: Held()} if extra else {})


def _profile_variance(result: GLMMResult, best: ResponseFit, held: Held, level: float) -> tuple[float, float, float]:
    """Interval of a standard deviation or of theta: searched on the log scale, down to 0 where that is not excluded."""
    if result.n_quad != 1:
        msg = f"Profiles of variances use Laplace's approximation, and this fit has n_quad={result.n_quad}."
        raise ValueError(msg)
    model = result.model
    profile = Profile(model.design, model.y, model.zi_design, best)
    if held.term is None:
        estimate = best.residual_sd if result.family == "gaussian" else best.theta
    else:
        estimate = float(np.sqrt(best.sigma[held.term][held.column, held.column]))
    drop = stats.chi2.ppf(level, 1)

    def excess(value: float) -> float:
        return 2 * (best.loglik - profile.loglik(held, value)) - drop

    if not np.isfinite(estimate):
        return estimate, np.nan, np.nan  # theta at infinity
    start = estimate or 0.1 * _unit(result)
    reaches_zero = estimate == 0 or (held.term is not None and excess(0.0) < 0)
    low = 0.0 if reaches_zero else _cross_log(excess, start, 1 / STEP)
    return estimate, low, _cross_log(excess, start, STEP)


def _unit(result: GLMMResult) -> float:
    return result.sigma if result.family == "gaussian" else 1.0


def _cross_log(excess: Callable[[float], float], start: float, factor: float) -> float:
    """Walk away by factors until the likelihood has fallen far enough, then find the place; NaN if never."""
    inside = start
    for _ in range(MAX_FACTORS):
        outside = inside * factor
        value = excess(outside)
        if not np.isfinite(value):
            return np.nan
        if value > 0:
            log = brentq(lambda t: excess(float(np.exp(t))), np.log(inside), np.log(outside), xtol=1e-6)
            return float(np.exp(log))
        inside = outside
    return np.nan


def _loglik_at(result: GLMMResult, j: int, b: float) -> float:
    """Largest log-likelihood with coefficient j at b: its part of the linear predictor becomes an offset."""
    from ._fit import refit

    design = result.model.design
    others = np.delete(np.arange(design.X.shape[1]), j)
    offset = b * design.X[:, j] + (0.0 if design.offset is None else design.offset)
    columns = [design.columns[i] for i in others]
    reduced = replace(design, X=np.ascontiguousarray(design.X[:, others]), columns=columns, terms=[], offset=offset)
    return refit(result, design=reduced, reml=False).loglik


def _cross(excess: Callable[[float], float], estimate: float, step: float, drop: float) -> float:
    """Walk away from the estimate until the likelihood has fallen far enough, then find the place; NaN if never."""
    inside, value_inside = estimate, -drop
    reach = np.sqrt(drop)
    for _ in range(MAX_STEPS):
        outside = estimate + reach * step
        value = excess(outside)
        if not np.isfinite(value):
            return np.nan
        if value > 0:
            return float(brentq(excess, inside, outside, xtol=1e-6 * abs(step), rtol=1e-10, maxiter=50))
        inside, value_inside = outside, value
        # the signed root of the fall is nearly linear in b
        reach *= min(2.0, max(1.05, 1.05 * np.sqrt(drop / (value_inside + drop))))
    return np.nan
