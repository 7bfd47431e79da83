"""From the fits of the genes to the tables that are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scglmm.inference.gene import random_variance
from scglmm.inference.varpart import COUNT_NOISE, RESIDUALS, fractions, log_mean_exp, mean_rate
from scglmm.inference.wald import benjamini_hochberg, two_sided
from scglmm.results.table import GeneTable

if TYPE_CHECKING:
    from scglmm.compression.counts import Summary
    from scglmm.formula import Design
    from scglmm.inference.frame import Frame
    from scglmm.inference.genes import GeneFits
    from scglmm.inference.inflation import Inflation

    from ._counts import Source
    from ._options import RunOptions
    from ._prepare import Run

TOO_FEW_COUNTS = "too_few_counts"


def make_tables(
    var_names: pd.Index, run: Run, fits: list[GeneFits], options: RunOptions
) -> dict[str | None, GeneTable]:
    """Arrange the fits of every group by gene, and adjust p-values across groups if that is wanted."""
    tables = {}
    for k, group in enumerate(run.fitted):
        tables[group.name] = make_table(
            var_names,
            group.design,
            group.frame,
            run.offsets[k],
            run.positions,
            run.testable[k],
            fits[k],
            run.summaries[k],
            run.source,
            options.varpart_method,
            group.inflation,
            options.n_quad,
        )
    if options.padj_across:
        adjust_across(list(tables.values()))
    return tables


def make_table(
    var_names: pd.Index,
    design: Design,
    frame: Frame,
    offset: np.ndarray,
    positions: np.ndarray,
    testable: np.ndarray,
    fits: GeneFits,
    summary: Summary,
    source: Source,
    varpart_method: str,
    inflation: Inflation | None = None,
    n_quad: int = 1,
) -> GeneTable:
    """Arrange the fits by gene.

    Parameters
    ----------
    var_names
        Genes of `adata`.
    design, frame, offset
        The model, and the offsets of the cells.
    positions
        (G,) positions in `var_names` of the genes that were selected.
    testable
        (G,) which of them were fitted.
    fits
        Their fits.
    summary, source
        Sums of the counts, and which column of the matrix a gene is.
    varpart_method
        See `scglmm.inference.varpart`.
    inflation
        The zero inflation, if there is one.
    n_quad
        Points of quadrature.
    """
    n, p = positions.size, len(design.columns)

    def spread(values: np.ndarray) -> np.ndarray:
        """Values of the fitted genes among all that were selected, NaN for the others."""
        full = np.full((n, *values.shape[1:]), np.nan)
        full[testable] = values
        return full

    coef = spread(fits.column("beta").reshape(-1, p))
    se = spread(fits.column("se").reshape(-1, p))
    dof = spread(fits.column("df").reshape(-1, p))
    stat = coef / se
    pval = two_sided(stat, dof)
    lower = np.tril_indices(p)
    vcov = spread(fits.column("vcov").reshape(-1, p, p)[:, lower[0], lower[1]])
    # without a single fit nothing says how many parameters there are
    m = fits.fits[0].d_vcov.shape[0] if fits.fits else 0
    dvcov = spread(fits.column("d_vcov").reshape(-1, m, p, p)[..., lower[0], lower[1]]) if m else None
    terms = dict(enumerate(design.columns)) | {j: term.name for term in design.terms for j in term.columns}
    columns = source.columns[positions]
    # All columns at once: a covariance matrix of many columns would leave a fragmented table.
    found: dict[str, np.ndarray] = {"theta": fits.column("theta")}
    found |= _variance_columns(frame, fits)
    if fits.prior is not None:
        found |= _moderated_columns(frame, fits)
    found |= _inflation_columns(inflation, fits) | {"loglik": fits.column("loglik")}
    donors = np.zeros(n, np.int64)
    donors[testable] = fits.donors
    status = np.full(n, TOO_FEW_COUNTS, dtype=object)
    status[testable] = fits.column("status")
    record = ["n_eval", "grad"] + ["quadrature_error"] * (n_quad > 1)
    fit = pd.DataFrame(
        {name: spread(values) for name, values in found.items()}
        | {
            "mean": summary.gene_total[columns] / frame.n_total,
            "n_cells": summary.gene_cells[columns],
            "n_donors": donors,
        }
        | {name: spread(fits.column(name).astype(float)) for name in record}
        | {"status": status}
        | {name: spread(fits.column(name)) for name in ("null_intercept", "null_var", "var_linpred")}
    )
    variances = np.array([random_variance(frame, f.sigma) for f in fits.fits]).reshape(len(fits.fits), len(frame.terms))
    return GeneTable(
        genes=var_names[positions],
        coefficients=design.columns,
        coef=coef,
        se=se,
        stat=stat,
        dof=dof,
        pval=pval,
        padj=benjamini_hochberg(pval),
        vcov=vcov,
        varpart=_varpart(design, frame, offset, coef, fit, spread(variances), varpart_method),
        fit=fit,
        positions=positions,
        dvcov=dvcov,
        terms=[terms[j] for j in range(p)],
    )


def adjust_across(tables: list[GeneTable]) -> None:
    """Adjust the p-values of every coefficient over the genes of all tables together."""
    for name in dict.fromkeys(c for table in tables for c in table.coefficients):
        where = [(table, table.coefficients.index(name)) for table in tables if name in table.coefficients]
        padj = benjamini_hochberg(np.concatenate([table.pval[:, j] for table, j in where])[:, None])[:, 0]
        ends = np.cumsum([table.pval.shape[0] for table, _ in where])[:-1]
        for (table, j), values in zip(where, np.split(padj, ends), strict=True):
            table.padj[:, j] = values


def variance_names(frame: Frame) -> list[tuple[str, int, int, int]]:
    """Name, term, row and column of every free entry of the covariance matrices of the random terms."""
    names = []
    for r, term in enumerate(frame.terms):
        alone = term.columns == ["(Intercept)"]
        for i, column in enumerate(term.columns):
            label = term.group if alone else f"{term.group}:{column}"
            names.append((f"var[{label}]", r, i, i))
        names += [
            (f"cov[{term.group}:{term.columns[j]},{term.columns[i]}]", r, i, j)
            for i in range(len(term.columns))
            for j in range(i)
        ]
    return names


def _moderated_columns(frame: Frame, fits: GeneFits) -> dict[str, np.ndarray]:
    """Posterior means of the variances; every term has one column where fits are moderated."""
    missing = np.full(len(frame.terms), np.nan)
    values = np.array([missing if fit.moderated is None else fit.moderated for fit in fits.fits])
    names = [name for name, *_ in variance_names(frame)]
    return {f"moderated_{name}": column for name, column in zip(names, values.T, strict=True)}


def inflation_names(inflation: Inflation | None) -> list[str]:
    """Names of the columns of a zero inflation: estimates, then standard errors."""
    columns = [] if inflation is None else inflation.columns
    return [f"{what}[{name}]" for what in ("zi", "zi_se") for name in columns]


def _inflation_columns(inflation: Inflation | None, fits: GeneFits) -> dict[str, np.ndarray]:
    names = inflation_names(inflation)
    if not names:
        return {}
    values = np.array([np.concatenate([fit.zi_beta, fit.zi_se]) for fit in fits.fits]).reshape(-1, len(names))
    return dict(zip(names, values.T, strict=True))


def _variance_columns(frame: Frame, fits: GeneFits) -> dict[str, np.ndarray]:
    return {name: np.array([fit.sigma[r][i, j] for fit in fits.fits], float) for name, r, i, j in variance_names(frame)}


def random_sources(design: Design) -> list[str]:
    """Name the source of variance of every random term: its grouping factor, unless a fixed term has that name."""
    fixed = {term.name for term in design.terms}
    return [f"(1|{term.group})" if term.group in fixed else term.group for term in design.random]


def _varpart(
    design: Design,
    frame: Frame,
    offset: np.ndarray,
    coef: np.ndarray,
    fit: pd.DataFrame,
    variances: np.ndarray,
    method: str,
) -> pd.DataFrame:
    """Fractions of variance: fixed terms, random terms (by grouping factor), CountNoise, Residuals."""
    fixed = {
        term.name: _quadratic(coef[:, list(term.columns)], frame.covariance[np.ix_(term.columns, term.columns)])
        for term in design.terms
    }
    random: dict[str, np.ndarray] = {}
    for r, name in enumerate(random_sources(design)):
        random[name] = random.get(name, 0.0) + variances[:, r]
    parts = np.column_stack([*fixed.values(), *random.values(), np.empty((coef.shape[0], 0))])
    rate = mean_rate(fit["null_intercept"].to_numpy(), log_mean_exp(offset), fit["null_var"].to_numpy())
    values = fractions(fit["var_linpred"].to_numpy(), parts, rate, fit["theta"].to_numpy(), method)
    return pd.DataFrame(values, columns=[*fixed, *random, COUNT_NOISE, RESIDUALS])


def _quadratic(beta: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    return np.einsum("gi,ij,gj->g", beta, covariance, beta)
