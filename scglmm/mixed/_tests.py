"""Tests of fixed effects: contrasts, joint tests, and analysis of variance by term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from scglmm.formula import build_design, design_matrix, parse_formula
from scglmm.formula.coding import factor_column
from scglmm.formula.lexer import quoted
from scglmm.formula.safety import Expression
from scglmm.formula.terms import parse_terms
from scglmm.inference.contrasts import combine_df
from scglmm.inference.wald import two_sided
from scglmm.results.names import near_first

from ._hypothesis import as_weights, parse_hypothesis
from ._wording import worded

if TYPE_CHECKING:
    from ._result import GLMMResult


def condition(result: GLMMResult, values: Mapping[str, Any]) -> np.ndarray:
    """Row of the design with some columns given, the others at their reference level or their mean."""
    design, frame = result.model.design, result.model.frame
    columns = list(design.data)
    for name in values:
        if name not in columns:
            msg = (
                f"cond(): {name!r} is no column of the fixed effects; these are {near_first(name, columns) or 'none'}."
            )
            raise KeyError(msg)
    row: dict[str, Any] = {}
    for name, like in design.data.items():
        if name in values:
            row[name] = values[name]
        elif name in design.factors:
            row[name] = design.references.get(name, design.factors[name][0])
        else:
            row[name] = float(np.mean(frame[name].to_numpy(dtype=np.float64)))
        if isinstance(like, np.ndarray):
            row[name] = _number(row[name], name)
    with worded(plain=not result.model.gene):
        return design_matrix(design, pd.DataFrame({name: [value] for name, value in row.items()}))[0]


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        msg = f"cond(): {name!r} is a number in the model, not {value!r}."
        raise ValueError(msg) from None


def contrast(result: GLMMResult, contrasts: Any, level: float) -> pd.DataFrame:
    """Test linear combinations one by one; see `GLMMResult.contrast`."""
    check_level(level)
    names, weights, values = _read(result, contrasts)
    estimate = _times(weights, result.estimates.beta)
    se = np.sqrt([_quadratic(w, result.estimates.vcov) for w in weights])
    df = np.array([result.estimates.df_of(w) for w in weights])
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = (estimate - values) / se
    half = quantile(level, df) * se
    table = {
        "estimate": estimate,
        "se": se,
        "statistic": statistic,
        "df": df,
        "p": two_sided(statistic, df),
        "low": estimate - half,
        "high": estimate + half,
    }
    return pd.DataFrame(table, index=pd.Index(names, name="contrast"))


def joint_test(result: GLMMResult, contrasts: Any) -> pd.Series:
    """Test several linear combinations at once; see `GLMMResult.joint_test`."""
    terms = {term.name: term.columns for term in result.model.design.terms}
    if isinstance(contrasts, str) and contrasts in terms:
        weights = np.eye(len(result.model.design.columns))[list(terms[contrasts])]
        values = np.zeros(len(weights))
    else:
        _, weights, values = _read(result, contrasts)
    return pd.Series(wald(result, weights, values), index=["statistic", "num_df", "den_df", "p"])


def anova(result: GLMMResult, type: int) -> pd.DataFrame:
    """Test every term; see `GLMMResult.anova`."""
    if type not in (2, 3) or isinstance(type, bool):
        msg = f"type={type!r} is neither 2 nor 3."
        raise ValueError(msg)
    design = result.model.design
    if not design.terms:
        msg = f"The model {result.formula!r} has no fixed terms besides the intercept: there is nothing to test."
        raise ValueError(msg)
    hypotheses = _type_two(result) if type == 2 else _type_three(result)
    rows = [wald(result, weights, np.zeros(len(weights))) for weights in hypotheses]
    index = pd.Index([term.name for term in design.terms], name="term")
    return pd.DataFrame(rows, index=index, columns=["statistic", "num_df", "den_df", "p"])


def wald(result: GLMMResult, weights: np.ndarray, values: np.ndarray) -> tuple[float, int, float, float]:
    """F or chi-square test of ``weights @ beta = values``.

    The denominator df are those of Fai and Cornelius (1996, doi 10.1080/00949659608811740): the contrasts are rotated
    until they are uncorrelated; if each squared t has mean nu/(nu - 2), so has their mean F for the df that solve
    E(F) = mean.

    Returns
    -------
    Statistic (F, or chi-square when the denominator df are infinite), numerator df, denominator df, p.
    """
    fit = result.estimates
    if (weights[:, fit.lost] != 0).any():
        return np.nan, len(weights), np.nan, np.nan
    kept = ~fit.lost
    covariance = weights[:, kept] @ fit.vcov[np.ix_(kept, kept)] @ weights[:, kept].T
    distance = weights[:, kept] @ fit.beta[kept] - values
    if not np.isfinite(covariance).all():
        return np.nan, len(weights), np.nan, np.nan
    # combinations of very different size are brought to the same one before rank is judged
    size = np.sqrt(np.diag(covariance))
    size[size == 0] = 1.0
    variances, rotation = np.linalg.eigh(covariance / np.outer(size, size))
    free = variances > 1e-10 * variances.max()
    rank = int(free.sum())
    rotated = (rotation[:, free].T / size) @ weights
    t2 = ((rotation[:, free].T / size) @ distance) ** 2 / variances[free]
    den_df = float(combine_df(np.array([fit.df_of(w) for w in rotated])))
    total = float(t2.sum())
    if np.isinf(den_df):
        return total, rank, np.inf, float(stats.chi2.sf(total, rank))
    return total / rank, rank, den_df, float(stats.f.sf(total / rank, rank, den_df))


def _type_two(result: GLMMResult) -> list[np.ndarray]:
    """Hypotheses of each term, with the terms that contain it at 0.

    With beta of term T and of its containing terms R jointly normal, the estimate of T where R is 0 is
    beta_T - V_TR V_RR^-1 beta_R.
    """
    design, V = result.model.design, result.estimates.vcov
    factors = [{factor.text for factor in term} for term in parse_terms(design.formula.fixed).terms]
    hypotheses = []
    for i, term in enumerate(design.terms):
        own = list(term.columns)
        above = [c for j, other in enumerate(design.terms) if factors[i] < factors[j] for c in other.columns]
        weights = np.eye(len(design.columns))[own]
        if above and np.isfinite(V).all():
            weights[:, above] = -np.linalg.solve(V[np.ix_(above, above)], V[np.ix_(above, own)]).T
        hypotheses.append(weights)
    return hypotheses


def _type_three(result: GLMMResult) -> list[np.ndarray]:
    """Hypotheses of each term in the coding whose factors sum to zero: X = X_sum A, so beta_sum = A beta."""
    design = result.model.design
    terms = parse_terms(design.formula.fixed)
    recode = {
        factor.text: f"C({quoted(column)}, Sum)"
        for term in terms.terms
        for factor in term
        if (column := _factor(factor, design.factors)) is not None
    }
    p = len(design.columns)
    own = [np.eye(p)[list(term.columns)] for term in design.terms]
    if not recode or len(terms.terms) < 2 or not any(len(term) > 1 for term in terms.terms) or not terms.intercept:
        return own
    products = [":".join(recode.get(factor.text, factor.text) for factor in term) for term in terms.terms]
    other = build_design(parse_formula(f"~ {' + '.join(products)}"), result.model.frame)
    A, _, rank, _ = np.linalg.lstsq(other.X, design.X, rcond=None)
    if rank < p or not np.allclose(other.X @ A, design.X, atol=1e-8 * np.abs(design.X).max()):
        return own  # a coding of the user's that spans another space: its own coefficients
    A[np.abs(A) < 1e-12] = 0.0
    return [A[list(term.columns)] for term in other.terms]


def _factor(factor: Expression, factors: Mapping[str, list[str]]) -> str | None:
    """Column of a factor that is coded by its levels, else None."""
    column = factor_column(factor)
    return column if column in factors else None


def _read(result: GLMMResult, contrasts: Any) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, weights (k, p) and values (k,) of what the user asks for."""
    if isinstance(contrasts, Mapping):
        items = [(str(name), value) for name, value in contrasts.items()]
    elif isinstance(contrasts, str) or (np.ndim(_first(contrasts)) == 0 and not isinstance(_first(contrasts), str)):
        items = [(None, contrasts)]
    else:
        items = [(None, value) for value in contrasts]
    if not items:
        msg = "There is no contrast to test: the list is empty."
        raise ValueError(msg)
    names = result.model.design.columns
    read = []
    for i, (name, value) in enumerate(items):
        if isinstance(value, str):
            weights, constant = parse_hypothesis(value, names, lambda given: condition(result, given))
            read.append((name or value.strip(), weights, constant))
        else:
            read.append((name or f"contrast_{i + 1}", as_weights(value, len(names)), 0.0))
    return [r[0] for r in read], np.array([r[1] for r in read]), np.array([r[2] for r in read])


def _first(values: Any) -> Any:
    return next(iter(values), np.zeros(1)) if isinstance(values, Sequence | np.ndarray) else values


def _times(weights: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Combine the coefficients; NaN only where a coefficient that is NaN takes part."""
    return np.array([w[w != 0] @ beta[w != 0] for w in weights])


def _quadratic(w: np.ndarray, V: np.ndarray) -> float:
    used = np.flatnonzero(w)
    return float(w[used] @ V[np.ix_(used, used)] @ w[used])


def quantile(level: float, df: np.ndarray) -> np.ndarray:
    """Quantile of t, or of the normal where df is inf, for two-sided intervals."""
    df = np.asarray(df, float)
    upper = (1 + level) / 2
    return np.where(np.isinf(df), stats.norm.ppf(upper), stats.t.ppf(upper, np.where(np.isinf(df), 1.0, df)))


def check_level(level: float) -> None:
    """Check the coverage of an interval."""
    if isinstance(level, bool) or not isinstance(level, int | float | np.number) or not 0 < level < 1:
        msg = f"level must be a number between 0 and 1, such as 0.95, not {level!r}."
        raise ValueError(msg)
