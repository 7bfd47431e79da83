"""Tests of fixed effects: Wald z for maximum likelihood, Satterthwaite t for REML, Benjamini-Hochberg over genes.

REML, with C(psi, theta) the covariance of beta at fixed variances and S the inverse of minus the Hessian of the REML
criterion (Satterthwaite 1946; Fai and Cornelius 1996; Kuznetsova et al. 2017, doi 10.18637/jss.v082.i13):

    Var(c'beta) = c'C c        df = 2 Var^2 / (d'S d),    d = dVar/d(psi, log theta)

Parameters on a boundary take no part in S and d. Where the variance that carries the contrast is 0, the formula says
nothing and containment degrees of freedom are used (`scglmm.inference.containment`).
"""

from __future__ import annotations

import numpy as np
from scipy import stats

MAX_DF = 1e9  # beyond this a t is a z


def satterthwaite(
    contrast: np.ndarray, covariance: np.ndarray, d_covariance: np.ndarray, parameters: np.ndarray
) -> float:
    """Degrees of freedom of a contrast.

    Parameters
    ----------
    contrast
        (p,).
    covariance
        (p, p) of beta at fixed variances.
    d_covariance
        (m, p, p) its derivatives with respect to the interior parameters.
    parameters
        (m, m) covariance S of those parameters.

    Returns
    -------
    Degrees of freedom, inf where the variance does not depend on the parameters.
    """
    variance = contrast @ covariance @ contrast
    d = np.einsum("i,kij,j->k", contrast, d_covariance, contrast)
    spread = d @ parameters @ d
    if not spread > 2 * variance**2 / MAX_DF:
        return np.inf
    return float(2 * variance**2 / spread)


def two_sided(statistic: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Two-sided p-values of t statistics; infinite degrees of freedom are z."""
    statistic = np.abs(statistic)
    p = np.where(np.isinf(df), 2 * stats.norm.sf(statistic), np.nan)
    finite = np.isfinite(df) & (df > 0)
    p[finite] = 2 * stats.t.sf(statistic[finite], df[finite])
    p[np.isnan(statistic)] = np.nan
    return p


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjust the p-values of each column over its tested rows; NaN stays NaN (Benjamini and Hochberg 1995)."""
    adjusted = np.full_like(p, np.nan)
    for j in range(p.shape[1]):
        tested = ~np.isnan(p[:, j])
        if tested.any():
            adjusted[tested, j] = stats.false_discovery_control(p[tested, j], method="bh")
    return adjusted
