"""Checks of a fit as numbers, each with a sentence that says what was found and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from scglmm.inference.gene import POISSON_LIMIT, SEPARATED, ZI_BOUNDARY
from scglmm.inference.quadrature import is_inexact

from ._effects import correlation

if TYPE_CHECKING:
    from scglmm.inference.response_fit import ResponseFit

    from ._result import GLMMResult

HIGH_VIF, MODERATE_VIF = 10.0, 5.0
GRADIENT = 1e-3


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes
    ----------
    name
        Which check.
    ok
        Whether nothing has to be done.
    message
        What was found, and what to do, in a sentence or two.
    values
        The numbers behind it.

    Examples
    --------
    >>> import scglmm
    >>> fit = scglmm.glmm("Reaction ~ Days + (Days|Subject)", scglmm.datasets.sleepstudy())
    >>> check = scglmm.mixed.check_singular(fit)
    >>> check.ok, check.message
    (True, 'All variances of the random effects are above 0.')
    """

    name: str
    ok: bool
    message: str
    values: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} = {_number(value)}" for name, value in self.values.items())
        return f"{self.name}: {'ok' if self.ok else 'look'}\n  {self.message}" + (f"\n  {numbers}" if numbers else "")


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def check(result: GLMMResult) -> list[Check]:
    """Run all checks that apply to a fit.

    Parameters
    ----------
    result
        A fit of :func:`scglmm.glmm`.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:2000]
    >>> fit = scglmm.glmm("PTPRG ~ offset(log(libSize)) + Dx + Age + (1|SubID)", adata, family="nbinom2")
    >>> [check.name for check in scglmm.mixed.check(fit)][:2]
    ['convergence', 'singularity']
    """
    checks = [check_convergence(result)]
    if not result.converged:
        return checks
    if result.model.design.random:
        checks.append(check_singular(result))
    if result.family != "gaussian":
        checks += [check_overdispersion(result), check_zeroinflation(result)]
    if len(result.model.design.terms) > 1:
        checks.append(check_collinearity(result))
    return checks


def check_overdispersion(result: GLMMResult) -> Check:
    """Compare the spread of the counts about their fitted values with what the family expects.

    Parameters
    ----------
    result
        A fit of counts.

    Returns
    -------
    `chisq` (sum of squared Pearson residuals), `ratio` (`chisq` over `df`), `df` (observations minus parameters) and
    `p` (upper tail of the chi-square), as R's `performance`. A ratio above 1 is overdispersion.

    Raises
    ------
    ValueError
        The family is Gaussian, which estimates its residual variance.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:2000]
    >>> fit = scglmm.glmm("PTPRG ~ offset(log(libSize)) + Dx + Age + (1|SubID)", adata, family="nbinom2")
    >>> scglmm.mixed.check_overdispersion(fit).ok
    True
    """
    _check_counts(result, "check_overdispersion()")
    chisq = float(np.sum(result.residuals("pearson") ** 2))
    df = result.nobs - result.n_params
    if df <= 0:
        msg = f"There are {result.nobs} observations and {result.n_params} parameters: no residual degrees of freedom."
        raise ValueError(msg)
    ratio, p = chisq / df, float(stats.chi2.sf(chisq, df))
    values = {"chisq": chisq, "ratio": ratio, "df": df, "p": p}
    if p < 0.05 and ratio > 1:
        if result.family == "poisson":
            todo = "standard errors are too small: use family='nbinom2'."
        elif ratio < 1.5:
            todo = "that is little; look at the quantile residuals before changing the model."
        else:
            todo = "look for a missing covariate, a missing random effect or rows that do not belong."
        message = f"Counts vary {ratio:.3g} times as much as the model expects ({_p(p)}): {todo}"
        return Check("overdispersion", False, message, values)
    if stats.chi2.cdf(chisq, df) < 0.05:
        message = (
            f"Counts vary less than the model expects (ratio {ratio:.3g}): tests are cautious; a simpler model may do."
        )
        return Check("overdispersion", True, message, values)
    return Check("overdispersion", True, f"Counts vary as the model expects (ratio {ratio:.3g}, {_p(p)}).", values)


def check_zeroinflation(result: GLMMResult, tolerance: float = 0.05) -> Check:
    """Compare the number of zeros with what the model expects, zero inflation of the model included.

    Parameters
    ----------
    result
        A fit of counts.
    tolerance
        Relative difference that is let pass.

    Returns
    -------
    `observed` and `predicted` zeros, and their `ratio` (predicted / observed).

    Raises
    ------
    ValueError
        The family is Gaussian.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:2000]
    >>> fit = scglmm.glmm("PTPRG ~ offset(log(libSize)) + Dx + Age + (1|SubID)", adata, family="nbinom2")
    >>> scglmm.mixed.check_zeroinflation(fit).ok
    True
    """
    _check_counts(result, "check_zeroinflation()")
    observed = int((result.model.y == 0).sum())
    predicted = round(float(result.distribution().zero.sum()))
    ratio = predicted / observed if observed else np.nan
    values = {"observed": observed, "predicted": predicted, "ratio": ratio}
    if observed == 0:
        return Check("zero inflation", True, "There are no zeros in the response.", values)
    if ratio < 1 - tolerance:
        if result.model.zi_design is not None:
            todo = "let the zero inflation depend on covariates (ziformula='~ x')."
        elif result.family == "poisson":
            todo = "use family='nbinom2', and if zeros are still missing ziformula='~ 1'."
        else:
            todo = "compare with a zero-inflated model (ziformula='~ 1') by its AIC."
        message = f"There are {observed:,} zeros and the model expects {predicted:,}, too few: {todo}"
        return Check("zero inflation", False, message, values)
    if ratio > 1 + tolerance:
        todo = (
            "the overdispersion may not come from zeros; look for covariates that explain large counts."
            if result.family == "nbinom2"
            else "look for covariates that explain large counts."
        )
        message = f"There are {observed:,} zeros and the model expects {predicted:,}, too many: {todo}"
        return Check("zero inflation", False, message, values)
    message = f"There are {observed:,} zeros, and the model expects {predicted:,}."
    return Check("zero inflation", True, message, values)


def check_singular(result: GLMMResult) -> Check:
    """Look for variances of 0, and correlations of -1 or 1, among the random effects.

    Parameters
    ----------
    result
        A fit with random effects.

    Returns
    -------
    `values`: for every random term the smallest eigenvalue of its correlation matrix, 0 where a variance is 0.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:2000]
    >>> fit = scglmm.glmm("PTPRG ~ offset(log(libSize)) + Dx + Age + (1|SubID)", adata, family="nbinom2")
    >>> scglmm.mixed.check_singular(fit).ok
    True
    """
    random = result.model.design.random
    if not random:
        msg = f"The model {result.formula!r} has no random effects."
        raise ValueError(msg)
    values, found = {}, []
    for term, spelled, sigma, singular in zip(
        random, result.model.formula.random, result.estimates.sigma, result.estimates.singular, strict=True
    ):
        zero = np.diag(sigma) <= 0
        values[str(spelled)] = 0.0 if zero.any() else float(max(0.0, np.linalg.eigvalsh(correlation(sigma))[0]))
        if not singular:
            continue
        if zero.all() and zero.size == 1:
            found.append(f"the variance of {term.group!r} is 0 (simplify by leaving {spelled} out)")
        elif zero.any():
            names = " and ".join(repr(name) for name, is_zero in zip(term.columns, zero, strict=True) if is_zero)
            found.append(f"in {spelled} the variance of {names} is 0 (simplify by leaving it out)")
        elif zero.size == 2:
            sign = "-1" if sigma[0, 1] < 0 else "1"
            found.append(
                f"in {spelled} the correlation is {sign} (simplify to uncorrelated effects, "
                f"({spelled.effects}||{spelled.group}), or to (1|{spelled.group}))"
            )
        else:
            found.append(f"the covariance matrix of {spelled} has lost a dimension (simplify its effects)")
    if not found:
        return Check("singularity", True, "All variances of the random effects are above 0.", values)
    message = (
        f"The fit is singular: {'; '.join(found)}. The estimates are valid; the data do not show that variation, or "
        "there are too few groups to see it."
    )
    return Check("singularity", False, message, values)


def check_convergence(result: GLMMResult) -> Check:
    """Look whether the search ended at a maximum.

    Parameters
    ----------
    result
        A fit.

    Returns
    -------
    `gradient`, the largest absolute slope of the log-likelihood at the end in the engine's units (columns of mean
    square 1), and `evaluations`.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:2000]
    >>> fit = scglmm.glmm("PTPRG ~ offset(log(libSize)) + Dx + Age + (1|SubID)", adata, family="nbinom2")
    >>> scglmm.mixed.check_convergence(fit).ok
    True
    """
    fit = result.estimates
    values = {"gradient": fit.grad, "evaluations": fit.n_eval}
    if not result.converged:
        message = (
            "No maximum of the likelihood was found: simplify the random effects, bring covariates to a common scale, "
            "or look for rows that the family cannot explain."
        )
        return Check("convergence", False, message, values)
    if fit.status == SEPARATED:
        lost = [name for name, gone in zip(result.model.design.columns, fit.lost, strict=True) if gone]
        message = (
            f"The maximum is at infinity for {', '.join(lost)}, because all counts in a part of the data are 0: leave "
            "the term out, or pool levels; the other coefficients are valid."
        )
        return Check("convergence", False, message, values)
    if is_inexact(fit.quadrature_error):
        return Check("convergence", False, few_points(fit), values | {"quadrature_error": fit.quadrature_error})
    if fit.status == ZI_BOUNDARY:
        message = (
            "The zero inflation cannot be told from none (its logit is at or near minus infinity): leave ziformula "
            "out; the other estimates are valid."
        )
        return Check("convergence", False, message, values)
    if fit.status == POISSON_LIMIT or (result.family == "nbinom2" and np.isinf(result.theta)):
        message = "Theta is at infinity, so there is no overdispersion: family='poisson' says the same."
        return Check("convergence", True, message, values)
    scale = GRADIENT * max(1.0, 1e-3 * abs(fit.loglik))
    if fit.grad > scale:
        message = f"The slope at the end of the search is {fit.grad:.2g}, which is not quite 0: treat with care."
        return Check("convergence", False, message, values)
    return Check("convergence", True, "The search ended at a maximum of the likelihood.", values)


def few_points(fit: ResponseFit) -> str:
    """Message about quadrature that has not converged."""
    return (
        f"n_quad={fit.n_quad} points are too few: four times as many change the log-likelihood by "
        f"{fit.quadrature_error:.2g} at the same estimates. Use more, or n_quad=1 for Laplace's approximation."
    )


def vif(result: GLMMResult) -> pd.DataFrame:
    """Inflation of the variance of every fixed term by the others (Fox and Monette 1992, doi 10.2307/2290467).

    Parameters
    ----------
    result
        A fit with at least two fixed terms.

    Returns
    -------
    DataFrame, terms × (`vif`, `df`, `se_factor`): the generalised variance inflation factor, from the correlations of
    the estimates; the number of columns of the term; and vif^(1/(2 df)), the factor by which collinearity widens
    standard errors.

    Raises
    ------
    ValueError
        There are fewer than two terms.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:2000]
    >>> fit = scglmm.glmm("PTPRG ~ offset(log(libSize)) + Dx + Age + (1|SubID)", adata, family="nbinom2")
    >>> list(scglmm.mixed.vif(fit).index)
    ['Dx', 'Age']
    """
    design, V = result.model.design, result.estimates.vcov
    if len(design.terms) < 2:
        msg = f"The model {result.formula!r} has fewer than two fixed terms: there is nothing to be collinear with."
        raise ValueError(msg)
    if not np.isfinite(V).all():
        msg = f"Collinearity needs finite estimates of all coefficients; the status of this fit is {result.status!r}."
        raise ValueError(msg)
    columns = [c for term in design.terms for c in term.columns]
    R = correlation(V[np.ix_(columns, columns)])
    whole = np.linalg.slogdet(R)[1]
    rows = []
    for term in design.terms:
        own = np.isin(columns, term.columns)
        log_vif = np.linalg.slogdet(R[np.ix_(own, own)])[1] + np.linalg.slogdet(R[np.ix_(~own, ~own)])[1] - whole
        df = int(own.sum())
        rows.append((np.exp(log_vif), df, np.exp(log_vif / (2 * df))))
    index = pd.Index([term.name for term in design.terms], name="term")
    return pd.DataFrame(rows, index=index, columns=["vif", "df", "se_factor"])


def check_collinearity(result: GLMMResult) -> Check:
    """Say what the variance inflation factors say.

    Parameters
    ----------
    result
        A fit with at least two fixed terms.

    Returns
    -------
    `values`: the generalised variance inflation factor of every term. In a model with interactions they are large by
    construction unless covariates are centred.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:2000]
    >>> fit = scglmm.glmm("PTPRG ~ offset(log(libSize)) + Dx + Age + (1|SubID)", adata, family="nbinom2")
    >>> scglmm.mixed.check_collinearity(fit).ok
    True
    """
    table = vif(result)
    values = table["vif"].to_dict()
    per_column = table["se_factor"] ** 2
    high = per_column[per_column >= MODERATE_VIF]
    if high.empty:
        message = f"Fixed effects can be told apart (largest variance inflation {per_column.max():.3g})."
        return Check("collinearity", True, message, values)
    listed = ", ".join(f"{name} ({value:.3g})" for name, value in high.items())
    crossed = [name for name in high.index if ":" in name]
    todo = (
        "with an interaction this is usual: centre the covariates in it to read the main effects."
        if crossed
        else "their standard errors are wide; leave one of them out, or combine them, unless all are needed."
    )
    strength = "High" if high.max() >= HIGH_VIF else "Moderate"
    return Check("collinearity", False, f"{strength} collinearity of {listed}: {todo}", values)


def _check_counts(result: GLMMResult, what: str) -> None:
    if result.family == "gaussian":
        msg = f"{what} is for counts; family='gaussian' estimates its residual variance. Look at scglmm.pl.check_model."
        raise ValueError(msg)


def _p(p: float) -> str:
    return f"p = {p:.3g}" if p >= 1e-4 else "p < 0.0001"
