"""Likelihood-ratio tests of nested models."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from scipy import stats

from scglmm.formula import Design

from ._result import GLMMResult


def lrt(small: GLMMResult, large: GLMMResult) -> pd.DataFrame:
    """Compare two nested models by their likelihoods.

    The order of the models does not matter. Models with different fixed effects have to be fitted by maximum likelihood
    (``reml=False``), since restricted likelihoods of different fixed effects are not comparable; models that differ
    only in their random effects may be fitted either way.

    Parameters
    ----------
    small, large
        Fits of the same response on the same rows; what is in the smaller model is in the larger one as well.

    Returns
    -------
    DataFrame, two rows (the smaller model first), in the columns of R's ``anova(small, large)``: `npar`, `aic`, `bic`,
    `loglik`, `deviance`, `chisq`, `df`, `p`; and `p_mixture` where the larger model adds variances, which lie on the
    boundary of what is possible under the smaller one: p-value by an equal mixture of chi-squares with `df` and with
    `df` less the number of new variances of one term (Self and Liang 1987, doi 10.1080/01621459.1987.10478472; Stram
    and Lee 1994, doi 10.2307/2533455), and `p` is too large. It is NaN where the mixture is not known.

    Raises
    ------
    ValueError
        The models are not comparable; the message says why.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scglmm
    >>> rng = np.random.default_rng(1)
    >>> data = pd.DataFrame({"x": rng.normal(size=120), "g": np.repeat(np.arange(12), 10)})
    >>> data["y"] = 2 + data["x"] + rng.normal(size=12)[data["g"]] + rng.normal(size=120)
    >>> with_x = scglmm.glmm("y ~ x + (1|g)", data, reml=False)
    >>> without = scglmm.glmm("y ~ 1 + (1|g)", data, reml=False)
    >>> scglmm.lrt(without, with_x)["df"].to_list()
    [nan, 1.0]
    """
    for fit in (small, large):
        if not isinstance(fit, GLMMResult):
            msg = f"lrt() compares two fits of scglmm.glmm, not {type(fit).__name__}."
            raise TypeError(msg)
    if small.n_params > large.n_params:
        small, large = large, small
    _check_same_data(small, large)
    _check_estimable(small, large)
    _check_nested(small, large)
    statistic = 2 * (large.loglik - small.loglik)
    df = large.n_params - small.n_params
    if statistic < -1e-4 * max(1.0, abs(large.loglik) * 1e-3):
        warnings.warn(
            f"The larger model has the lower likelihood ({large.loglik:.6g} against {small.loglik:.6g}): one of the "
            "fits is not at its maximum, or the approximation of the likelihood is poor here; p is 1.",
            UserWarning,
            stacklevel=2,
        )
    statistic = max(statistic, 0.0)
    fits = (small, large)
    table = pd.DataFrame(
        {
            "npar": [fit.n_params for fit in fits],
            "aic": [fit.aic for fit in fits],
            "bic": [fit.bic for fit in fits],
            "loglik": [fit.loglik for fit in fits],
            "deviance": [-2 * fit.loglik for fit in fits],
            "chisq": [np.nan, statistic],
            "df": [np.nan, df],
            "p": [np.nan, stats.chi2.sf(statistic, df)],
        },
        index=pd.Index([_name(fit) for fit in fits], name="model"),
    )
    if _adds_boundary(small, large):
        table["p_mixture"] = [np.nan, _mixture(small, large, statistic, df)]
    return table


def _name(fit: GLMMResult) -> str:
    extra = "" if fit.ziformula is None else f", zero inflation {fit.ziformula}"
    return f"{fit.formula} [{fit.family}{extra}]"


def _check_same_data(small: GLMMResult, large: GLMMResult) -> None:
    if small.model.response != large.model.response:
        msg = (
            f"The models have different responses, {small.model.response!r} and {large.model.response!r}, so their "
            "likelihoods cannot be compared."
        )
        raise ValueError(msg)
    if small.nobs != large.nobs or not np.array_equal(small.model.y, large.model.y):
        rows = f" ({small.nobs:,} and {large.nobs:,} rows)" if small.nobs != large.nobs else ""
        msg = (
            f"The models are fitted to different data{rows}, so their likelihoods cannot be compared. If missing "
            "values were dropped, leave the same rows out before both fits."
        )
        raise ValueError(msg)
    first, second = (
        np.zeros(f.nobs) if f.model.design.offset is None else f.model.design.offset for f in (small, large)
    )
    if not np.allclose(first, second):
        msg = "The models have different offsets, so they are not nested."
        raise ValueError(msg)


def _check_estimable(small: GLMMResult, large: GLMMResult) -> None:
    for fit in (small, large):
        if not np.isfinite(fit.loglik) or not fit.converged:
            msg = f"The model {fit.formula!r} has not converged, so it has no maximum of the likelihood to compare."
            raise ValueError(msg)
    if small.reml != large.reml:
        msg = "One model is fitted by REML and the other by maximum likelihood: fit both with reml=False."
        raise ValueError(msg)
    if small.n_quad != large.n_quad:
        msg = (
            f"The likelihoods are approximated differently (n_quad={small.n_quad} and {large.n_quad}): use the same "
            "n_quad for both."
        )
        raise ValueError(msg)
    X, Y = small.model.design.X, large.model.design.X
    if small.reml and not (X.shape == Y.shape and _spans(X, Y)):
        msg = (
            "The models have different fixed effects and are fitted by REML, whose likelihoods are then not "
            "comparable: fit both with reml=False."
        )
        raise ValueError(msg)


def _check_nested(small: GLMMResult, large: GLMMResult) -> None:
    families = (small.family, large.family)
    if families[0] != families[1] and families != ("poisson", "nbinom2"):
        msg = f"A model of family {families[0]!r} is not nested in one of family {families[1]!r}."
        raise ValueError(msg)
    if not _spans(large.model.design.X, small.model.design.X):
        msg = (
            f"The models are not nested: fixed effects of {small.formula!r} are not among those of {large.formula!r}. "
            "Compare them by AIC."
        )
        raise ValueError(msg)
    zi_small, zi_large = small.model.zi_design, large.model.zi_design
    if zi_small is not None and (zi_large is None or not _spans(zi_large.X, zi_small.X)):
        msg = "The models are not nested: the zero inflation of the smaller one is not in the larger one."
        raise ValueError(msg)
    missing = _effects(small.model.design) - _effects(large.model.design)
    if missing:
        group, effect = sorted(missing)[0]
        msg = (
            f"The models are not nested: {large.formula!r} has no random {effect!r} for {group!r}, and the smaller "
            "model has. Compare them by AIC."
        )
        raise ValueError(msg)
    if small.n_params == large.n_params:
        msg = "The models have the same number of parameters: there is nothing to test."
        raise ValueError(msg)


def _effects(design: Design) -> set[tuple[str, str]]:
    """Which effect varies between the levels of which group."""
    return {(term.group, name) for term in design.random for name in term.columns}


def _spans(X: np.ndarray, Y: np.ndarray) -> bool:
    """Whether the columns of Y are combinations of those of X."""
    size = np.abs(X).max(axis=0)
    scaled = X / np.where(size > 0, size, 1.0)
    rest = Y - scaled @ np.linalg.lstsq(scaled, Y, rcond=None)[0]
    return bool(np.abs(rest).max(initial=0.0) <= 1e-7 * max(1.0, np.abs(Y).max(initial=0.0)))


def _adds_boundary(small: GLMMResult, large: GLMMResult) -> bool:
    """Whether the smaller model is on the boundary of the larger one."""
    return (
        bool(_effects(large.model.design) - _effects(small.model.design))
        or small.family != large.family
        or (small.model.zi_design is None) != (large.model.zi_design is None)
    )


def _mixture(small: GLMMResult, large: GLMMResult, statistic: float, df: int) -> float:
    """P-value where exactly one variance (with its covariances) is new and nothing else; else NaN."""
    new = _effects(large.model.design) - _effects(small.model.design)
    same_family = small.family == large.family
    same_zi = (small.model.zi_design is None) == (large.model.zi_design is None)
    same_fixed = small.model.design.X.shape == large.model.design.X.shape
    if same_fixed and same_zi and (len(new) == 1) == same_family and len(new) <= 1:
        upper = stats.chi2.sf(statistic, df)
        lower = stats.chi2.sf(statistic, df - 1) if df > 1 else float(statistic <= 0)
        return float((upper + lower) / 2)
    return np.nan
