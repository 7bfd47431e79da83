"""Adaptive shrinkage: effects of all genes share a prior that is unimodal at 0 (Stephens 2017).

With estimate b_j and standard error s_j of the effect beta_j of gene j (doi 10.1093/biostatistics/kxw041, sections 2
and 3 of the supplement):

    b_j | beta_j ~ N(beta_j, s_j^2)        beta_j ~ sum_k pi_k N(0, sigma_k^2),    sigma_0 = 0

over a fixed grid of sigma_k, dense enough to stand for every scale mixture of normals. The weights maximise the
marginal likelihood times a penalty that prefers the point mass at 0,

    sum_j log sum_k pi_k N(b_j; 0, s_j^2 + sigma_k^2)  +  (w - 1) log pi_0

which is concave. Newton steps on the simplex (each a least squares problem with weights of at least 0, as in Kim,
Carbonetto, Stephens and Anitescu 2020, doi 10.1080/10618600.2019.1689985) find it to a stated gap.

With few degrees of freedom b_j / s_j is not normal. The standard error is then replaced by the one with which a normal
test has the p-value of the t test, |b_j| / Phi^-1(1 - p_j / 2) (Lu and Stephens 2019, arXiv:1901.10679).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls
from scipy.special import betaln, ndtr, ndtri_exp
from scipy.stats import norm, t

GRID_STEP = np.sqrt(2)
GAP = 1e-6  # how far the penalised log-likelihood may be below its maximum
MAX_NEWTON, MAX_EM, WARM_UP = 60, 5_000, 10


@dataclass(frozen=True)
class Prior:
    """A scale mixture of normals.

    Attributes
    ----------
    scale
        (K,) standard deviations, natural log of fold changes; the first is 0, the point mass.
    weight
        (K,) they add up to 1.
    loglik
        Marginal log-likelihood of the estimates, without the penalty.
    gap
        By how much the penalised log-likelihood may be below its maximum.
    """

    scale: np.ndarray
    weight: np.ndarray
    loglik: float
    gap: float


@dataclass(frozen=True)
class Posterior:
    """What is known of the effect of every gene.

    Attributes
    ----------
    mean, sd
        (G,) posterior mean and standard deviation.
    lfdr, lfsr
        (G,) posterior probability that the effect is 0; that it is 0 or has not the more probable sign.
    svalue
        (G,) mean lfsr of the genes with an lfsr of at most this one.
    """

    mean: np.ndarray
    sd: np.ndarray
    lfdr: np.ndarray
    lfsr: np.ndarray
    svalue: np.ndarray


def adjusted_se(estimate: np.ndarray, se: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Find the standard errors with which normal tests have the p-values of t tests.

    Parameters
    ----------
    estimate, se, df
        (G,) estimates, their standard errors and degrees of freedom (inf: nothing changes).
    """
    out = np.array(se, float)
    at = np.isfinite(df) & np.isfinite(se)
    statistic = np.abs(estimate[at]) / se[at]
    # A ratio of two small numbers near 0 is taken at its limit, the ratio of the densities there.
    small = statistic < 1e-4
    ratio = np.full(statistic.shape, 1.0)
    ratio[small] = norm.pdf(0) / t.pdf(0, df[at][small])
    ratio[~small] = statistic[~small] / _normal_score(statistic[~small], df[at][~small])
    out[at] *= ratio
    return out


def _normal_score(statistic: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Find the normal quantile with the tail probability of a positive t statistic."""
    tail = t.sf(statistic, df)
    log_tail = np.log(np.maximum(tail, 1e-300))
    # Where the tail underflows: the leading term of the incomplete beta function that it is half of.
    far = tail < 1e-290
    half = df[far] / 2
    x = 1 / (1 + np.minimum(statistic[far], 1e150) ** 2 / df[far])
    log_tail[far] = half * np.log(x) - np.log1p(-x) / 2 - np.log(2 * half) - betaln(half, 0.5)
    return -ndtri_exp(log_tail)


def make_grid(estimate: np.ndarray, se: np.ndarray) -> np.ndarray:
    """Choose scales from a tenth of the smallest standard error to twice the largest effect, and 0.

    Parameters
    ----------
    estimate, se
        (G,) finite, the standard errors positive.
    """
    smallest = se.min() / 10
    excess = (estimate**2 - se**2).max()
    largest = 2 * np.sqrt(excess) if excess > 0 else 8 * smallest
    n = max(1, int(np.ceil(np.log(max(largest / smallest, 1.0)) / np.log(GRID_STEP))))
    return np.concatenate([[0.0], largest * GRID_STEP ** np.arange(-n, 1.0)])


def fit_prior(
    estimate: np.ndarray, se: np.ndarray, scale: np.ndarray | None = None, null_weight: float = 10.0
) -> Prior:
    """Estimate the weights of the prior by marginal likelihood.

    Parameters
    ----------
    estimate, se
        (G,) finite, the standard errors positive.
    scale
        (K,) the grid, 0 first; that of `make_grid` by default.
    null_weight
        The w of the penalty; 1 is none.
    """
    scale = make_grid(estimate, se) if scale is None else scale
    log_density = _log_density(estimate, se, scale)
    top = log_density.max(axis=1)
    density = np.exp(log_density - top[:, None])
    weight = _maximise(density, null_weight - 1.0)
    _, gap = _gradient(density, weight, null_weight - 1.0)
    return Prior(scale, weight, float(np.log(density @ weight).sum() + top.sum()), gap)


def posterior(estimate: np.ndarray, se: np.ndarray, prior: Prior) -> Posterior:
    """Posterior of every gene's effect.

    Parameters
    ----------
    estimate, se
        (G,) finite, the standard errors positive.
    prior
        Their prior.
    """
    used = prior.weight > 0
    scale, log_weight = prior.scale[used], np.log(prior.weight[used])
    log_part = log_weight + _log_density(estimate, se, scale)
    part = np.exp(log_part - log_part.max(axis=1, keepdims=True))
    part /= part.sum(axis=1, keepdims=True)
    kept = scale**2 / (scale**2 + se[:, None] ** 2)  # what of the estimate is kept
    means, sds = kept * estimate[:, None], np.sqrt(kept) * se[:, None]
    mean = (part * means).sum(axis=1)
    sd = np.sqrt((part * (sds**2 + (means - mean[:, None]) ** 2)).sum(axis=1))
    spread = scale > 0
    z = means[:, spread] / sds[:, spread]
    null = part[:, ~spread].sum(axis=1)
    positive, negative = ((part[:, spread] * ndtr(sign * z)).sum(axis=1) for sign in (1, -1))
    lfsr = null + np.minimum(positive, negative)
    return Posterior(mean, sd, null, lfsr, s_values(lfsr))


def s_values(lfsr: np.ndarray) -> np.ndarray:
    """For each gene the mean local false sign rate of the genes that have at most its own."""
    order = np.argsort(lfsr, kind="stable")
    ordered = lfsr[order]
    means = np.cumsum(ordered) / np.arange(1, ordered.size + 1)
    out = np.empty_like(lfsr)
    out[order] = means[np.searchsorted(ordered, ordered, side="right") - 1]
    return out


def _log_density(estimate: np.ndarray, se: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(G, K) log density of the estimates under each component."""
    return norm.logpdf(estimate[:, None], scale=np.hypot(se[:, None], scale))


def _gradient(density: np.ndarray, weight: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Gradient of the penalised log-likelihood, and by how much it may be below its maximum over the simplex."""
    gradient = (1 / (density @ weight)) @ density
    if penalty:
        gradient[0] += penalty / weight[0]
    return gradient, float(gradient.max() - weight @ gradient)


def _value(density: np.ndarray, weight: np.ndarray, penalty: float) -> float:
    return float(np.log(density @ weight).sum() + (penalty * np.log(weight[0]) if penalty else 0.0))


def _maximise(density: np.ndarray, penalty: float) -> np.ndarray:
    """Weights of the mixture that maximise the penalised likelihood."""
    n, k = density.shape
    total = n + penalty
    weight = np.full(k, 1 / k)
    for _ in range(WARM_UP):
        weight = weight * _gradient(density, weight, penalty)[0] / total
    for _ in range(MAX_NEWTON):
        gradient, gap = _gradient(density, weight, penalty)
        if gap < GAP:
            return weight
        proposal = _newton(density, weight, gradient, penalty)
        better = _line_search(density, weight, proposal, penalty) if proposal is not None else None
        # the expectation-maximisation step always rises
        weight = weight * gradient / total if better is None else better
    for _ in range(MAX_EM):
        gradient, gap = _gradient(density, weight, penalty)
        if gap < GAP:
            break
        weight = weight * gradient / total
    return weight / weight.sum()


def _newton(density: np.ndarray, weight: np.ndarray, gradient: np.ndarray, penalty: float) -> np.ndarray | None:
    """Maximum of the quadratic model over weights of at least 0.

    The criterion divided by its degree n + w - 1, minus the sum of the weights, has its maximum on the simplex, so that
    the sum needs no constraint.
    """
    total = density.shape[0] + penalty
    ratio = density / (density @ weight)[:, None]
    hessian = ratio.T @ ratio
    if penalty:
        hessian[0, 0] += penalty / weight[0] ** 2
    hessian /= total
    # Neighbouring components are nearly the same. The ridge is about the present weights, so the maximum stays.
    ridge = 1e-10 * hessian.diagonal().max()
    hessian[np.diag_indices_from(hessian)] += ridge
    try:
        root = cholesky(hessian)
        found, _ = nnls(root, solve_triangular(root, 2 * gradient / total - 1 + ridge * weight, trans="T"))
    except (np.linalg.LinAlgError, RuntimeError):
        return None
    return found / found.sum() if found.sum() > 0 else None


def _line_search(density: np.ndarray, weight: np.ndarray, proposal: np.ndarray, penalty: float) -> np.ndarray | None:
    """Go towards the proposal as far as the criterion rises enough; None where it does not."""
    value = _value(density, weight, penalty)
    slope = _gradient(density, weight, penalty)[0] @ (proposal - weight)
    if not slope > 0:
        return None
    step = 1.0
    for _ in range(20):
        tried = weight + step * (proposal - weight)
        if (not penalty or tried[0] > 0) and _value(density, tried, penalty) >= value + 1e-4 * step * slope:
            return tried
        step /= 2
    return None
