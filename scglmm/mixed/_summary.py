"""The summary of a fit, as text in the layout of R's `summary()` and as HTML for notebooks."""

from __future__ import annotations

import html as markup
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._checks import check_convergence, check_singular
from ._effects import correlation
from ._format import LEGEND, aligned, column, decimals, p_value, stars

if TYPE_CHECKING:
    from ._result import GLMMResult

Table = tuple[list[str], list[list[str]]]

_KINDS = {
    "gaussian": ("Linear mixed model", "Linear model"),
    "poisson": ("Generalized linear mixed model", "Generalized linear model"),
    "nbinom2": ("Generalized linear mixed model", "Generalized linear model"),
}


def summary(result: GLMMResult) -> str:
    """Summary as text."""
    lines = [title(result), *(f"{name:>9}: {value}" for name, value in _head(result)), ""]
    lines += aligned(*_criteria(result), left=())
    if result.model.design.random:
        lines += ["", "Random effects:"]
        lines += [f" {line}" for line in aligned(*_random_table(result), left=(0, 1))]
    lines.append(_sizes(result))
    dispersion = _dispersion(result)
    if dispersion:
        lines += ["", dispersion]
    lines += ["", _fixed_title(result) + ":"]
    lines += _coefficients(result.coef_table)
    if result.model.zi_design is not None:
        lines += ["", "Zero-inflation model (logit of the probability of a structural zero):"]
        lines += _coefficients(result.zi_table)
    lines += _legend(result)
    notes = _notes(result)
    if notes:
        lines += ["", *(f"Note: {note}" for note in notes)]
    return "\n".join(lines)


def html(result: GLMMResult) -> str:
    """Summary as HTML."""
    escape = markup.escape
    parts = ["<div>", f"<p><b>{escape(title(result))}</b></p>", "<table>"]
    parts += [
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in _head(result)
    ]
    parts += ["</table>", _html_table(_criteria(result), 0)]
    if result.model.design.random:
        parts += ["<p><b>Random effects</b></p>", _html_table(_random_table(result), 2)]
    parts.append(f"<p>{escape(_sizes(result))}</p>")
    if _dispersion(result):
        parts.append(f"<p>{escape(_dispersion(result))}</p>")
    parts += [f"<p><b>{escape(_fixed_title(result))}</b></p>", _html_table(_coefficient_table(result.coef_table), 1)]
    if result.model.zi_design is not None:
        parts += ["<p><b>Zero-inflation model (logit)</b></p>", _html_table(_coefficient_table(result.zi_table), 1)]
    parts += [f"<p><small>{escape(line)}</small></p>" for line in _legend(result) if line != "---"]
    parts += [f"<p>Note: {escape(note)}</p>" for note in _notes(result)]
    return "\n".join([*parts, "</div>"])


def title(result: GLMMResult) -> str:
    """Say what was fitted, and how."""
    kind = _KINDS[result.family][not result.model.design.random]
    method = "REML" if result.reml else "maximum likelihood"
    if result.family == "gaussian" or not result.model.design.random:
        return f"{kind} fit by {method}"
    how = (
        "Laplace approximation" if result.n_quad == 1 else f"adaptive Gauss-Hermite quadrature, {result.n_quad} points"
    )
    return f"{kind} fit by {method} ({how})"


def _head(result: GLMMResult) -> list[tuple[str, str]]:
    head = [("Family", f"{result.family} ( {result.link} )"), ("Formula", result.formula)]
    if result.ziformula is not None:
        head.append(("Zero infl", result.ziformula))
    return head


def _criteria(result: GLMMResult) -> Table:
    values = [result.aic, result.bic, result.loglik, -2 * result.loglik, result.df_residual]
    names = ["AIC", "BIC", "logLik", "REMLcrit" if result.reml else "deviance", "df.resid"]
    texts = [*column(values[:4], 1), *column(values[4:], 1)]
    width = max(map(len, [*names, *texts])) + 1
    return [name.rjust(width) for name in names], [[text.rjust(width) for text in texts]]


def _random_table(result: GLMMResult) -> Table:
    """Variances, standard deviations and correlations, a row per effect."""
    rows: list[tuple[str, str, float, float, list[str]]] = []
    width = 0
    for term, sigma in zip(result.model.design.random, result.estimates.sigma, strict=True):
        cor = correlation(sigma)
        for j, name in enumerate(term.columns):
            before = ["NaN" if np.isnan(r) else f"{r:.2f}" for r in cor[j, :j]]
            rows.append((term.group if j == 0 else "", name, sigma[j, j], np.sqrt(sigma[j, j]), before))
            width = max(width, j)
    if result.family == "gaussian":
        rows.append(("Residual", "", result.sigma**2, result.sigma, []))
    variances, deviations = [row[2] for row in rows], [row[3] for row in rows]
    # a variance of practically 0 must not give the others twelve decimals
    cut = 1e-6 * max(deviations)
    texts = zip(
        column(variances, decimals([v for v in variances if v > cut**2]), 3),
        column(deviations, decimals([d for d in deviations if d > cut]), 3),
        strict=True,
    )
    header = ["Groups", "Name", "Variance", "Std.Dev.", *(["Corr", *[""] * (width - 1)] if width else [])]
    table = [
        [row[0], row[1], variance, deviation, *row[4], *[""] * (width - len(row[4]))]
        for row, (variance, deviation) in zip(rows, texts, strict=True)
    ]
    return header, table


def _sizes(result: GLMMResult) -> str:
    groups = "; ".join(f"{name}, {n:,}" for name, n in result.n_groups.items())
    dropped = f"; {result.model.dropped:,} rows with missing values left out" if result.model.dropped else ""
    return f"Number of obs: {result.nobs:,}" + (f", groups:  {groups}" if groups else "") + dropped


def _dispersion(result: GLMMResult) -> str:
    lines = []
    if result.family == "nbinom2":
        lines.append(f"Dispersion parameter theta for nbinom2 family: {column([result.theta], 4)[0]}")
    elif result.family == "gaussian" and not result.model.design.random:
        lines.append(f"Residual standard error: {column([result.sigma], decimals([result.sigma]))[0]}")
    if result.family != "gaussian" and result.converged:
        lines.append(f"Pearson dispersion: {result.dispersion:.4g}")
    return "\n".join(lines)


def _fixed_title(result: GLMMResult) -> str:
    return "Fixed effects" if result.model.zi_design is None else "Fixed effects (conditional model)"


def _coefficient_table(table: pd.DataFrame) -> Table:
    places = decimals(table["se"])
    is_t = np.isfinite(table["df"].to_numpy()).any()
    letter = "t" if is_t else "z"
    header = ["", "Estimate", "Std. Error", *(["df"] if is_t else []), f"{letter} value", f"Pr(>|{letter}|)", ""]
    cells = [
        list(map(str, table.index)),
        column(table["estimate"], places),
        column(table["se"], places),
        *([column(table["df"], 1)] if is_t else []),
        column(table["statistic"], 3),
        [p_value(p) for p in table["p"]],
        [stars(p) for p in table["p"]],
    ]
    return header, [list(row) for row in zip(*cells, strict=True)]


def _coefficients(table: pd.DataFrame) -> list[str]:
    header, rows = _coefficient_table(table)
    return aligned(header, rows, left=(0, len(header) - 1))


def _legend(result: GLMMResult) -> list[str]:
    tables = [result.coef_table, result.zi_table]
    return ["---", LEGEND] if any(stars(p) for table in tables for p in table["p"]) else []


def _notes(result: GLMMResult) -> list[str]:
    notes = []
    convergence = check_convergence(result)
    if convergence.message and (not convergence.ok or (np.isinf(result.theta) and result.family == "nbinom2")):
        notes.append(convergence.message)
    if result.converged and result.model.design.random and result.singular:
        notes.append(check_singular(result).message)
    return notes


def _html_table(table: Table, n_left: int) -> str:
    header, rows = table
    left, right = ' style="text-align:left"', ' style="text-align:right"'

    def cells(row: list[str], tag: str) -> str:
        return "".join(
            f"<{tag}{left if j < n_left else right}>{markup.escape(cell.strip())}</{tag}>" for j, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(header, 'th')}</tr></thead><tbody>{body}</tbody></table>"
