r"""Power of a test of one effect in the negative binomial mixed model, from its information.

A cell with mean mu tells w(mu) = mu / (1 + mu/theta) about its linear predictor: the expected curvature of NB2. Equal
cells add up, so what the m cells of donor j tell is h_j = m w(mu_j), mu_j = mu exp(u_j), and with donor variance
sigma2 the donor counts for

    I_j = 1 / (sigma2 + 1/h_j) = (1 / (sigma2 + 1/w)) m / (1 + (m - 1) rho),     rho = sigma2 / (sigma2 + 1/w)

in the information of its group: its m cells are worth as many independent ones as the last fraction says. Donors
differ (u_j is normal; the number of cells may be log-normal), so I_j is random: its mean M and its squared coefficient
of variation c come from Gauss-Hermite quadrature, and everything else from them. With n donors in each of two groups

    Var(delta) = sum over groups of (1 + c/n) / (n M)              1/(n M), and the second-order term of 1/sum I_j
    df = (J - p) / (1 + c)

J - p are the containment degrees of freedom of J donors and p coefficients between them, and J/(1 + c) is the leading
term of Satterthwaite's for sigma2 estimated by REML: 2 Var^2 / (d^2 S) with d = sum I^2 / (sum I)^2 and 1/S =
sum I^2 / 2 is (sum I)^2 / sum I^2. Within donors, with the linear predictors of donor j in both conditions eta_ja =
x'beta + u_j + e_ja, Var u = sigma2, Var e = tau2/2 (tau2 is the variance between donors of the effect), generalised
least squares of the two conditions of each donor take the place of I_j.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from scipy import stats

BETWEEN, WITHIN = "between", "within"
NODES = 15  # of Gauss-Hermite, for each normal variable
CELL_NODES = 9
ROWS = 500  # studies at a time
FIELDS = ("effect", "mean", "theta", "var_donor", "var_effect", "n_cells", "cells_cv", "fraction")


@dataclass(frozen=True)
class Study:
    """Parameters of n studies, each (n,), natural log.

    Attributes
    ----------
    effect
        Log fold change for the median donor.
    mean
        Mean count per cell without the effect, over all donors.
    theta
        NB2 size, inf for Poisson.
    var_donor
        Variance between donors.
    var_effect
        Variance between donors of the effect, within donors only.
    n_cells
        Mean number of cells per donor, in all conditions.
    cells_cv
        Its coefficient of variation between donors.
    fraction
        Share of the donors (between) or of each donor's cells (within) that have the effect.
    within
        Whether donors have both conditions.
    """

    effect: np.ndarray
    mean: np.ndarray
    theta: np.ndarray
    var_donor: np.ndarray
    var_effect: np.ndarray
    n_cells: np.ndarray
    cells_cv: np.ndarray
    fraction: np.ndarray
    within: bool


@dataclass(frozen=True)
class Moments:
    """What one donor tells about the effect, over donors.

    Attributes
    ----------
    mean, spread
        (n, groups) mean of the information of a donor, and its squared coefficient of variation; one group where donors
        have both conditions.
    factor
        (n,) of the variance: 1 between donors; within donors below 1 where the comparison of different donors adds to
        that within them.
    rho
        (n,) correlation of the cells of a donor, as far as the effect is concerned.
    """

    mean: np.ndarray
    spread: np.ndarray
    factor: np.ndarray
    rho: np.ndarray


def weight(mu: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Give the expected information of a cell with mean mu on its linear predictor."""
    return mu / (1 + mu / theta)


def moments(study: Study) -> Moments:
    """Integrate over donors what one of them tells."""
    integrate = _within if study.within else _between
    n = study.mean.size
    parts = [
        integrate(replace(study, **{name: getattr(study, name)[at : at + ROWS] for name in FIELDS}))
        for at in range(0, n, ROWS)
    ]
    return Moments(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Moments)))


def group_sizes(study: Study, n_donors: np.ndarray) -> np.ndarray:
    """(n, groups) donors of each group: whole numbers, at least one in each."""
    if study.within:
        return np.asarray(n_donors, float)[:, None]
    treated = np.clip(np.floor(n_donors * study.fraction + 0.5), 1, n_donors - 1)
    return np.stack([n_donors - treated, treated], axis=1).astype(float)


def variance(found: Moments, n: np.ndarray) -> np.ndarray:
    """Variance of the estimate with (n, groups) donors."""
    return found.factor * ((1 + found.spread / n) / (n * found.mean)).sum(axis=1)


def degrees_of_freedom(found: Moments, n: np.ndarray, n_covariates: np.ndarray) -> np.ndarray:
    """Degrees of freedom with (n, groups) donors; 0 where there are not enough of them."""
    donors = n.sum(axis=1)
    spread = (n * found.spread).sum(axis=1) / donors
    return np.maximum(donors - n.shape[1] - n_covariates, 0) / (1 + spread)


def power(effect: np.ndarray, se: np.ndarray, df: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Power of the two-sided t test; NaN without degrees of freedom."""
    shift = np.abs(effect) / se
    df = np.where(df > 0, df, np.nan)
    critical = stats.t.isf(alpha / 2, df)
    found = stats.nct.sf(critical, df, shift) + stats.nct.sf(critical, df, -shift)
    normal = stats.norm.sf(critical - shift) + stats.norm.sf(critical + shift)
    return np.clip(np.where(df > 1e6, normal, found), 0.0, 1.0)


def _gauss(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the standard normal."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    return x, w / w.sum()


def _cells(study: Study, nodes: np.ndarray) -> np.ndarray:
    """Log-normal numbers of cells of a donor at the nodes of a normal, (n, nodes)."""
    spread = np.log1p(study.cells_cv[:, None] ** 2)
    return study.n_cells[:, None] * np.exp(np.sqrt(spread) * nodes - spread / 2)


def _moments(information: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over donors, and squared coefficient of variation."""
    mean, square = ((information**k * w).reshape(len(information), -1).sum(axis=1) for k in (1, 2))
    return mean, np.maximum(square / mean**2 - 1, 0.0)


def _between(study: Study) -> Moments:
    x, wx = _gauss(NODES)
    y, wy = _gauss(CELL_NODES)
    sigma2, theta = study.var_donor[:, None, None], study.theta[:, None, None]
    base = (np.log(study.mean) - study.var_donor / 2)[:, None, None]
    cells = _cells(study, y)[:, None, :]
    groups = []
    for effect in (np.zeros_like(study.effect), study.effect):
        told = weight(np.exp(base + effect[:, None, None] + np.sqrt(sigma2) * x[:, None]), theta)
        groups.append(_moments(1 / (sigma2 + 1 / (cells * told)), wx[:, None] * wy))
    mean, spread = (np.stack(m, axis=1) for m in zip(*groups, strict=True))
    told = weight(np.exp(base + np.sqrt(sigma2) * x[:, None]), theta)[..., 0] @ wx
    rho = study.var_donor / (study.var_donor + 1 / told)
    return Moments(mean, spread, np.ones(rho.size), rho)


def _within(study: Study) -> Moments:
    x, wx = _gauss(NODES)
    y, wy = _gauss(CELL_NODES)
    w = wx[:, None, None] * wx[:, None] * wy
    wide = (slice(None), None, None, None)
    omega = study.var_effect / 2
    total = study.var_donor + omega
    shared = np.divide(study.var_donor, total, out=np.zeros_like(total), where=total > 0)[wide]
    base, sd, theta = (np.log(study.mean) - total / 2)[wide], np.sqrt(total)[wide], study.theta[wide]
    # u + e_0 and u + e_1 are normal with the correlation sigma2 / (sigma2 + omega)
    control = x[:, None, None] + np.zeros((1, NODES, 1))
    treated = shared * x[:, None, None] + np.sqrt(1 - shared**2) * x[:, None]
    told = [weight(np.exp(base + sd * control), theta), weight(np.exp(base + study.effect[wide] + sd * treated), theta)]
    cells = _cells(study, y)[:, None, None, :]
    fraction = study.fraction[wide]
    v = [omega[wide] + 1 / (cells * f * t) for f, t in zip((1 - fraction, fraction), told, strict=True)]
    # X'V^-1 X of one donor with V = diag(v) + sigma2 and the rows (1, 0) and (1, 1) of X
    sigma2 = study.var_donor[wide]
    det = v[0] * v[1] + sigma2 * (v[0] + v[1])
    dd, od, oo = (np.einsum("nabc,abc->n", i / det, w) for i in (v[0] + sigma2, v[0], v[0] + v[1]))
    mean, spread = _moments(1 / (v[0] + v[1]), w)
    factor = mean / (dd - od**2 / oo)
    mean_told = [np.einsum("nab,ab->n", np.broadcast_to(t[..., 0], (len(omega), NODES, NODES)), w.sum(2)) for t in told]
    one_cell = 1 / ((1 - study.fraction) * mean_told[0]) + 1 / (study.fraction * mean_told[1])
    rho = study.var_effect / (study.var_effect + one_cell)
    return Moments(mean[:, None], spread[:, None], factor, rho)
