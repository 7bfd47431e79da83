"""Shares of variance: fractions by term, R², intraclass correlation, squared coefficients of variation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scglmm.inference.response_fit import ResponseFit
from scglmm.inference.varpart import COUNT_NOISE, METHODS, RESIDUALS, fractions, log_mean_exp, mean_rate

if TYPE_CHECKING:
    from ._result import GLMMResult


class R2(NamedTuple):
    """Share of the variance that the model explains: with, and without the random effects.

    Examples
    --------
    >>> import scglmm
    >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
    >>> round(fit.r2().marginal, 3)
    0.279
    """

    conditional: float
    marginal: float


class ICC(NamedTuple):
    """Share of the random effects in the variance without (`adjusted`) and with that of the fixed effects.

    Examples
    --------
    >>> import scglmm
    >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
    >>> {name: round(share, 3) for name, share in fit.icc().by_group.items()}
    {'Subject': 0.722}
    """

    adjusted: float
    unadjusted: float
    by_group: dict[str, float]


class Components(NamedTuple):
    """Variances on the link scale: fixed effects, every random term, and the distribution's own."""

    fixed: float
    random: dict[str, float]
    distribution: float


def components(result: GLMMResult) -> Components:
    """Variances behind R² and ICC (Nakagawa, Johnson and Schielzeth 2017, doi 10.1098/rsif.2017.0213).

    The distribution-specific variance of counts is log(1 + 1/mu + 1/theta), with mu the exponential of the intercept of
    the model without fixed effects.
    """
    _check(result)
    design = result.model.design
    fixed = float(np.var(design.X @ result.estimates.beta, ddof=1))
    if result.family == "gaussian":
        own = result.sigma**2
    else:
        mu = np.exp(null_fit(result).beta[0])
        own = float(np.log1p(1 / mu + 1 / result.theta))
    return Components(fixed, _random(result, result.estimates), own)


def null_fit(result: GLMMResult) -> ResponseFit:
    """Fit the model with an intercept and the same random effects, unless the fit is that model."""
    from ._fit import null_design, refit

    design = result.model.design
    if design.columns == ["(Intercept)"]:
        return result.estimates
    return refit(result, design=null_design(design))


def r2(result: GLMMResult) -> R2:
    """R²; see `GLMMResult.r2`."""
    fixed, random, own = components(result)
    total = fixed + sum(random.values()) + own
    return R2((fixed + sum(random.values())) / total, fixed / total)


def icc(result: GLMMResult) -> ICC:
    """Intraclass correlation; see `GLMMResult.icc`."""
    if not result.model.design.random:
        msg = f"The model {result.formula!r} has no random effects, so there is no intraclass correlation."
        raise ValueError(msg)
    fixed, random, own = components(result)
    between = sum(random.values())
    by_group = {group: variance / (between + own) for group, variance in random.items()}
    return ICC(between / (between + own), between / (fixed + between + own), by_group)


def cv2(result: GLMMResult) -> pd.DataFrame:
    """Squared coefficients of variation; see `GLMMResult.cv2`."""
    _check(result)
    variances = _random(result, result.estimates)
    mean = float(np.mean(result.model.y))
    if result.family == "gaussian":
        variances["Residual"] = result.sigma**2
        table = pd.DataFrame({"variance": variances})
        table["cv2"] = table["variance"] / mean**2 if mean != 0 else np.nan
        share = table["variance"]
    else:
        null = null_fit(result)
        rate = float(_rate(result, null))
        table = pd.DataFrame({"variance": variances, "cv2": {name: np.expm1(v) for name, v in variances.items()}})
        table = table.reindex(list(variances))
        if result.family == "nbinom2":
            table.loc["Overdispersion"] = np.nan, 1 / result.theta
        table.loc["Counting"] = np.nan, 1 / rate
        share = table["cv2"]
    table["percent"] = 100 * share / share.sum()
    table.index.name = "component"
    return table


def varpart(result: GLMMResult, method: str) -> pd.Series:
    """Fractions of variance; see `GLMMResult.varpart`."""
    if method not in METHODS:
        msg = f"method={method!r} is not one of {', '.join(map(repr, METHODS))}."
        raise ValueError(msg)
    _check(result)
    design, fit = result.model.design, result.estimates
    offset = 0.0 if design.offset is None else design.offset
    linear = float(np.var(fit.eta - offset, ddof=1))
    parts = {}
    for term in design.terms:
        columns = list(term.columns)
        parts[term.name] = float(np.var(design.X[:, columns] @ fit.beta[columns], ddof=1))
    parts |= _random(result, fit)
    if result.family == "gaussian":
        total = sum(parts.values())
        whole = linear + result.sigma**2
        shares = {name: (q / total if total > 0 else 0.0) * linear / whole for name, q in parts.items()}
        return pd.Series(shares | {RESIDUALS: 1 - sum(shares.values())}, name="fraction")
    rate = np.array([_rate(result, null_fit(result))])
    values = fractions(
        np.array([linear]), np.array([list(parts.values())]).reshape(1, -1), rate, np.array([result.theta]), method
    )[0]
    return pd.Series(values, index=[*parts, COUNT_NOISE, RESIDUALS], name="fraction")


def _rate(result: GLMMResult, null: ResponseFit) -> float:
    """Mean over rows of exp(b0 + o + s2/2) in the model with an intercept and the random effects."""
    design = result.model.design
    offset = np.zeros(result.nobs) if design.offset is None else design.offset
    s2 = np.array(sum(_random(result, null).values()))
    return float(mean_rate(null.beta[0], log_mean_exp(offset), s2))


def _random(result: GLMMResult, fit: ResponseFit) -> dict[str, float]:
    """Variance of every random term: for a slope the mean over the rows of z'Sigma z. Terms of one group are added."""
    variances: dict[str, float] = {}
    for term, sigma in zip(result.model.design.random, fit.sigma, strict=True):
        moment = term.covariates.T @ term.covariates / result.nobs
        variances[term.group] = variances.get(term.group, 0.0) + float(np.sum(sigma * moment))
    return variances


def _check(result: GLMMResult) -> None:
    if not result.converged or result.estimates.lost.any():
        msg = f"Shares of variance need finite estimates of all coefficients; this fit has status {result.status!r}."
        raise ValueError(msg)
