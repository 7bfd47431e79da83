"""Contrasts and joint tests of fixed effects, from what was stored of the fits of many genes.

With C the covariance of the estimates and D_k its scaled derivatives (`scglmm.inference.gene.GeneFit.d_vcov`), a
contrast c has

    Var(c'beta) = c'Cc        df = 2 (c'Cc)^2 / sum_k (c'D_k c)^2

which is Satterthwaite's formula of `scglmm.inference.wald`. q independent contrasts L have the Wald statistic

    F = (L beta)' (L C L')^-1 (L beta) / q

With the eigenvectors of L C L' it is the mean of q squares of uncorrelated t statistics, each with degrees of freedom
nu_m. Were they independent, the mean of F would be E/q with E = sum nu_m/(nu_m - 2), and the denominator degrees of
freedom are those of the F distribution with that mean, 2E/(E - q) (Fai and Cornelius 1996, doi
10.1080/00949659608811740; Kuznetsova et al. 2017, doi 10.18637/jss.v082.i13). As there, they depend a little on how
the hypotheses are written, because eigenvectors do; F itself does not.

Containment: where a variance is estimated at 0, the degrees of freedom of a coefficient that it carries are not
Satterthwaite's, and which variance carries a combination cannot be told from what is stored. A combination with such a
coefficient gets the fewest degrees of freedom among its coefficients, which is conservative.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from .wald import MAX_DF


def contrast(
    weights: np.ndarray, beta: np.ndarray, vcov: np.ndarray, d_vcov: np.ndarray, df: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate, standard error and degrees of freedom of a contrast, for every gene.

    Parameters
    ----------
    weights
        (k,) none of them 0.
    beta, df
        (G, k) estimates and degrees of freedom of the coefficients; NaN where there are none.
    vcov
        (G, k, k) their covariance.
    d_vcov
        (G, m, k, k) its scaled derivatives; m is 0 for maximum likelihood.
    """
    variance = np.einsum("i,gij,j->g", weights, vcov, weights)
    with np.errstate(invalid="ignore"):
        se = np.sqrt(variance)
    if weights.size == 1:
        return beta @ weights, se, df[:, 0].copy()
    derivatives = np.einsum("i,gkij,j->gk", weights, d_vcov, weights)
    found = _satterthwaite(variance, derivatives)
    return beta @ weights, se, _contain(found, vcov, d_vcov, df)


def joint(
    L: np.ndarray, beta: np.ndarray, vcov: np.ndarray, d_vcov: np.ndarray, df: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """F statistic of several contrasts at once and its denominator degrees of freedom, for every gene.

    Parameters
    ----------
    L
        (q, k) contrasts in its rows, linearly independent; no column is 0.
    beta, vcov, d_vcov, df
        As for `contrast`.
    """
    n = beta.shape[0]
    statistic, denominator = np.full((2, n), np.nan)
    known = np.isfinite(beta).all(axis=1) & np.isfinite(vcov).all(axis=(1, 2))
    beta, vcov, d_vcov, df = beta[known], vcov[known], d_vcov[known], df[known]
    values, vectors = np.linalg.eigh(L @ vcov @ L.T)
    rotated = np.einsum("gji,jk->gik", vectors, L)  # uncorrelated contrasts in its rows
    estimates = np.einsum("gik,gk->gi", rotated, beta)
    statistic[known] = np.mean(estimates**2 / values, axis=1)
    derivatives = np.einsum("gai,gkij,gaj->gak", rotated, d_vcov, rotated)
    found = combine_df(_satterthwaite(values, derivatives))
    denominator[known] = _contain(found, vcov, d_vcov, df)
    return statistic, denominator


def combine_df(df: np.ndarray) -> np.ndarray:
    """Denominator degrees of freedom of the mean of squares of uncorrelated t statistics.

    Parameters
    ----------
    df
        (..., q) their degrees of freedom.

    Returns
    -------
    2E/(E - q) with E = sum df/(df - 2). As one of them falls to 2 this does, too; with fewer than 2 the mean does not
    exist, and the fewest are taken.
    """
    least = df.min(axis=-1)
    usable = np.where(df > 2, df, 3.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # E - q = sum 2/(df - 2): no difference of nearly equal numbers when there are many
        mean = np.where(np.isinf(usable), 1.0, usable / (usable - 2)).sum(axis=-1)
        combined = mean / (1 / (usable - 2)).sum(axis=-1)
    return np.where(least > 2, combined, least)


def f_test(statistic: np.ndarray, df1: np.ndarray, df2: np.ndarray) -> np.ndarray:
    """P-values of F statistics; infinite denominator degrees of freedom are a chi-square."""
    statistic, df1, df2 = np.broadcast_arrays(statistic, df1, df2)
    p = np.full(statistic.shape, np.nan)
    infinite = np.isinf(df2)
    p[infinite] = stats.chi2.sf((statistic * df1)[infinite], df1[infinite])
    finite = np.isfinite(df2) & (df2 > 0)
    p[finite] = stats.f.sf(statistic[finite], df1[finite], df2[finite])
    return p


def independent_rows(L: np.ndarray) -> np.ndarray:
    """Keep, of contrasts (rows), each that is no linear combination of those before it."""
    scaled = L / np.abs(L).max(axis=1, keepdims=True)
    kept: list[int] = []
    for row in range(len(L)):
        if np.linalg.matrix_rank(scaled[[*kept, row]], tol=1e-9) > len(kept):
            kept.append(row)
    return L[kept]


def _satterthwaite(variance: np.ndarray, derivatives: np.ndarray) -> np.ndarray:
    """2 Var^2 / sum_k d_k^2 (last axis), inf where the variance does not depend on the parameters."""
    spread = (derivatives**2).sum(axis=-1)
    top = 2 * variance**2
    with np.errstate(divide="ignore", invalid="ignore"):
        df = top / spread
    return np.where(np.isnan(variance), np.nan, np.where(spread > top / MAX_DF, df, np.inf))


def _contain(found: np.ndarray, vcov: np.ndarray, d_vcov: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Degrees of freedom of a combination where those of one of its coefficients are not Satterthwaite's."""
    own = _satterthwaite(np.einsum("gii->gi", vcov), np.einsum("gkii->gik", d_vcov))
    with np.errstate(invalid="ignore"):
        # NaN: no degrees of freedom are left for the coefficient
        differs = ~(np.isclose(own, df, rtol=1e-5, atol=0.0) | ((own > MAX_DF / 10) & (df > MAX_DF / 10)))
    return np.where(differs.any(axis=1), df.min(axis=1), found)
