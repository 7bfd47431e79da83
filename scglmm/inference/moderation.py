"""Moderation across genes: the standard deviations of the random effects integrated out under a prior from all genes.

With few donors a gene says little about the variance between them. A plug-in estimate is 0 too often and too far from
the truth otherwise; degrees of freedom repair the level at the price of power. All genes together say much more: their
standard deviations come from a distribution that can be estimated (`scglmm.inference.prior`), and given it

    p(beta | gene) = integral of N(beta; beta(sigma), C(sigma)) over the posterior of sigma,
    p(sigma | gene) ~ exp(REML criterion(sigma)) prior(sigma)

where the REML criterion, beta(sigma) and C(sigma) are maximised over theta. For normal data with one known shape of
C(sigma) and an inverse chi-square prior this mixture is the t distribution of limma's moderated statistic (Smyth 2004,
doi 10.2202/1544-6115.1027); here the prior is free and the integral is a sum over nodes. The mixture is reported as the
scaled t distribution with the same two-sided 5% and 0.05% points: its scale is the standard error, and its degrees of
freedom grow with what is borrowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats
from scipy.special import ndtr

from .frame import Frame
from .prior import Prior, estimate_prior, log_sd_grid
from .sd_profile import MIN_SD, NODES, Profile, barycentric, can_profile

POINTS = {1: 64, 2: 18, 3: 11}  # of each standard deviation in the integrals, besides 0
SHARP = 20.0  # fall of the log-likelihood beyond which points are not spent
MAX_GENES = {1: 20_000, 2: 1_500, 3: 500}  # from which a prior is estimated
LEVELS = (0.05, 0.0005)  # two-sided, where the t distribution meets the mixture
MAX_DF = 1e6  # beyond this a t is a z
BATCH = 64
MIN_GENES = 200  # from which a prior is estimated without being asked
FEWEST_GENES = 50  # and if asked

NO_PRIOR = "no gene has a REML profile"


def why_not_moderated(
    frame: Frame, n_genes: int, wanted: bool | None, method: str, *, family: str = "nbinom2", inflated: bool = False
) -> str:
    """Give the reason why fits are not moderated; empty when they are.

    Parameters
    ----------
    frame
        The model.
    n_genes
        Number of genes that are fitted.
    wanted
        What the user asked for; None means wherever it can be done.
    method
        `"reml"` or `"ml"`. Quadrature goes with the latter only.
    family, inflated
        The family, and whether zeros are inflated: only plain negative binomial models are moderated.
    """
    if method != "reml":
        return "maximum likelihood"
    if inflated:
        return "zero-inflated models are not moderated"
    if family != "nbinom2":
        return f"family={family!r} is not moderated, only 'nbinom2' is"
    if wanted is False:
        return "moderate=False"
    if not frame.terms:
        return "there is no random effect"
    if not can_profile(frame):
        wide = [term.group for term in frame.terms if len(term.columns) > 1]
        return f"(x|{wide[0]}) has correlated effects" if wide else f"there are {len(frame.terms)} random terms"
    least = FEWEST_GENES if wanted else MIN_GENES
    return f"only {n_genes} genes are tested, fewer than {least}" if n_genes < least else ""


@dataclass(frozen=True)
class Moderated:
    """Estimates of one gene under the prior, in the user's units.

    Attributes
    ----------
    beta, se, df
        (p,).
    vcov
        (p, p).
    d_vcov
        (R, p, p) such that a contrast has df = 2 (c'Cc)^2 / sum_r (c'D_r c)^2.
    variances
        (R,) posterior means of sigma^2.
    """

    beta: np.ndarray
    se: np.ndarray
    df: np.ndarray
    vcov: np.ndarray
    d_vcov: np.ndarray
    variances: np.ndarray


@dataclass(frozen=True)
class Points:
    """Quadrature of B genes: the values of every standard deviation.

    Attributes
    ----------
    likelihood
        (B, Q, ..., Q) up to a factor; along each axis 0 and then Q - 1 points of log(sigma).
    interpolate
        For each term (B, Q, K) from the nodes of the profiles to the points.
    spread
        For each term (B, Q, grid + 1) share of each weight of the prior at each point.
    sd
        For each term (B, Q) standard deviations.
    """

    likelihood: np.ndarray
    interpolate: list[np.ndarray]
    spread: list[np.ndarray]
    sd: list[np.ndarray]


def place_points(profiles: Sequence[Profile], grid: np.ndarray) -> Points:
    """Put points where the likelihood of each gene is, and interpolate it there."""
    R = profiles[0].variance.size
    n = POINTS[R]
    variance, low_u, high_u = (np.array([getattr(q, name) for q in profiles]) for name in ("variance", "low", "high"))
    value = np.array([q.value for q in profiles])
    zero = np.array([q.begins_at_zero for q in profiles])
    low = np.where(zero, np.log(MIN_SD), 0.5 * np.log(np.maximum(MIN_SD**2, np.exp(low_u) - variance)))
    high = 0.5 * np.log(np.maximum((1.01 * MIN_SD) ** 2, np.exp(high_u) - variance))
    for _ in range(2):  # where the nodes are, then where the likelihood is
        fraction = np.linspace(0.0, 1.0, n)
        log_sd = [low[:, r, None] + (high - low)[:, r, None] * fraction for r in range(R)]
        interpolate = [
            _interpolation(variance[:, r], low_u[:, r], high_u[:, r], log_sd[r], value.shape[1]) for r in range(R)
        ]
        log_likelihood = _apply(interpolate, value)
        log_likelihood -= log_likelihood.max(axis=tuple(range(1, R + 1)), keepdims=True)
        for r in range(R):
            there = log_likelihood.max(axis=tuple(a for a in range(1, R + 1) if a != r + 1)) > -SHARP
            inside = there[:, 1:].any(axis=1)
            first, last = there[:, 1:].argmax(axis=1), n - 1 - there[:, :0:-1].argmax(axis=1)
            step = (high[:, r] - low[:, r]) / (n - 1)
            # Down to where it is as good as 0, unless the likelihood has gone before.
            zero[:, r] &= there[:, 0]
            low[:, r], high[:, r] = (
                np.where(inside, low[:, r] + np.maximum(0, first - 1) * step, low[:, r]),
                np.where(inside, low[:, r] + np.minimum(n - 1, last + 1) * step, high[:, r]),
            )
    likelihood = np.exp(log_likelihood)
    for r in range(R):
        at_zero = np.moveaxis(likelihood, r + 1, 1)[:, 0]
        at_zero[~zero[:, r]] = 0.0
    spread = [_spread(log_sd[r], grid, zero[:, r]) for r in range(R)]
    sd = [np.concatenate([np.zeros((len(profiles), 1)), np.exp(x)], axis=1) for x in log_sd]
    return Points(likelihood, interpolate, spread, sd)


def moderate(
    profiles: Sequence[Profile | None], log_mean: np.ndarray, frame: Frame
) -> tuple[list[Moderated | None], Prior | None]:
    """Estimate the prior over all genes, and every gene under it; no prior when no gene has a profile.

    Parameters
    ----------
    profiles
        Of the genes; None for those that cannot be profiled.
    log_mean
        (G,) natural log of their mean counts.
    frame
        The model.
    """
    R = len(frame.terms)
    grid = log_sd_grid(R)
    there = np.array([g for g, profile in enumerate(profiles) if profile is not None])
    if there.size == 0:
        return [None] * len(profiles), None
    # Evenly over the range of expression, in an order that does not depend on that of the genes.
    ordered = there[np.argsort(log_mean[there], kind="stable")]
    chosen = ordered[np.unique(np.linspace(0, ordered.size - 1, min(ordered.size, MAX_GENES[R])).round().astype(int))]
    batches = [chosen[begin : begin + BATCH] for begin in range(0, chosen.size, BATCH)]
    likelihood = np.concatenate([_likelihood([profiles[g] for g in batch], grid) for batch in batches])
    prior = estimate_prior(likelihood, log_mean[chosen])
    found: list[Moderated | None] = [None] * len(profiles)
    for begin in range(0, there.size, BATCH):
        genes = there[begin : begin + BATCH]
        weights = [prior.at(log_mean[genes], r) for r in range(R)]
        for g, moderated in zip(
            genes, _moderate_batch([profiles[g] for g in genes], weights, grid, frame), strict=True
        ):
            found[g] = moderated
    return found, prior


def _likelihood(profiles: Sequence[Profile], grid: np.ndarray) -> np.ndarray:
    """(B, K + 1, ..., K + 1) likelihood at 0 and averaged with the hat functions of the grid."""
    points = place_points(profiles, grid)
    return _apply([spread.swapaxes(1, 2) for spread in points.spread], points.likelihood)


def _moderate_batch(
    profiles: Sequence[Profile], weights: list[np.ndarray], grid: np.ndarray, frame: Frame
) -> list[Moderated]:
    """Estimates of some genes; `weights` are their priors, one (genes, K + 1) for each term."""
    R, p = len(frame.terms), frame.X.shape[1]
    nodes = (len(profiles), *(NODES[R],) * R)
    points = place_points(profiles, grid)
    shares = points.likelihood
    for r, (spread, weight) in enumerate(zip(points.spread, weights, strict=True)):
        prior = np.einsum("bqk,bk->bq", spread, weight)
        shares = shares * np.expand_dims(prior, [a + 1 for a in range(R) if a != r])
    shares /= shares.sum(axis=tuple(range(1, R + 1)), keepdims=True)
    posterior = shares.reshape(len(profiles), -1)

    def at_points(values: np.ndarray) -> np.ndarray:
        """(B, Q^R, ...) from values at the nodes."""
        found = _apply(points.interpolate, values.reshape(*nodes, -1))
        return found.reshape(*posterior.shape, -1)

    # Variances through their logarithms, covariances as correlations: both are smooth and stay what they are.
    lower = np.tril_indices(p)
    vcov = np.array([q.vcov for q in profiles], float)
    sd = np.sqrt(vcov[:, :, np.flatnonzero(lower[0] == lower[1])])
    correlation = at_points(vcov / (sd[:, :, lower[0]] * sd[:, :, lower[1]]))
    sd = np.exp(at_points(np.log(sd)))
    vcov = correlation * sd[:, :, lower[0]] * sd[:, :, lower[1]]
    beta = at_points(np.array([q.beta for q in profiles]))
    mean = np.einsum("bq,bqi->bi", posterior, beta)
    left = beta - mean[:, None]
    se, df = match_t(posterior, left, sd)
    total = np.zeros((len(profiles), p, p))
    average = np.einsum("bq,bqk->bk", posterior, vcov)
    total[:, lower[0], lower[1]] = average
    total[:, lower[1], lower[0]] = average
    total += (left * posterior[:, :, None]).swapaxes(1, 2) @ left
    ratio = se / np.sqrt(np.einsum("bii->bi", total))
    total *= ratio[:, :, None] * ratio[:, None, :]
    d_vcov = _moves(shares, points.sd, vcov, se, df)
    marginal = [shares.sum(axis=tuple(a + 1 for a in range(R) if a != r)) for r in range(R)]
    variances = np.stack(
        [
            np.einsum("bq,bq->b", m, q**2) / t.scale[0] ** 2
            for m, q, t in zip(marginal, points.sd, frame.terms, strict=True)
        ],
        axis=1,
    )
    return [Moderated(*values) for values in zip(mean, se, df, total, d_vcov, variances, strict=True)]


def _moves(shares: np.ndarray, sd: list[np.ndarray], vcov: np.ndarray, se: np.ndarray, df: np.ndarray) -> np.ndarray:
    """(B, R, p, p) how the covariance moves with each variance, per posterior standard deviation.

    Scaled so that every coefficient has the degrees of freedom that it is reported with.
    """
    B, p = se.shape
    R = len(sd)
    posterior = shares.reshape(B, -1)
    lower = np.tril_indices(p)
    moves = np.zeros((B, R, p, p))
    scores: list[np.ndarray] = []
    for r in range(R):
        score = np.expand_dims(sd[r] ** 2, [a + 1 for a in range(R) if a != r])
        score = np.broadcast_to(score, shares.shape).reshape(B, -1)
        score = score - np.einsum("bq,bq->b", posterior, score)[:, None]
        for other in scores:
            score = score - other * np.einsum("bq,bq,bq->b", posterior, other, score)[:, None]
        size = np.sqrt(np.einsum("bq,bq,bq->b", posterior, score, score))[:, None]
        score = np.divide(score, size, out=np.zeros_like(score), where=size > 1e-12)
        scores.append(score)
        move = np.einsum("bq,bqk->bk", posterior * score, vcov)
        moves[:, r, lower[0], lower[1]] = move
        moves[:, r, lower[1], lower[0]] = move
    found = np.sqrt(np.einsum("brii,brii->bi", moves, moves))
    factor = np.sqrt(np.divide(np.sqrt(2.0 / df) * se**2, found, out=np.zeros_like(se), where=found > 0))
    return moves * (factor[:, :, None] * factor[:, None, :])[:, None]


def match_t(posterior: np.ndarray, shift: np.ndarray, sd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and degrees of freedom of the t distributions with the two-sided `LEVELS` of normal mixtures.

    Parameters
    ----------
    posterior
        (B, Q) weights.
    shift, sd
        (B, Q, p) means, around 0, and standard deviations.
    """
    start = np.sqrt(np.einsum("bq,bqi->bi", posterior, sd**2 + shift**2))
    points = [
        _mixture_point(posterior, shift, sd, level, start * factor)
        for level, factor in zip(LEVELS, (2.0, 3.6), strict=True)
    ]
    df = np.interp(-points[1] / points[0], *_df_table())
    df = np.where(df > 0.99 * MAX_DF, np.inf, df)
    return points[0] / stats.t.isf(LEVELS[0] / 2, df), df


def _mixture_point(
    posterior: np.ndarray, shift: np.ndarray, sd: np.ndarray, level: float, start: np.ndarray
) -> np.ndarray:
    """Where the two-sided tail of a normal mixture has a given probability: Newton on its logarithm."""
    found, left, x = np.empty_like(start), np.arange(len(start)), start
    for _ in range(30):
        above, below = (shift - x[:, None]) / sd, (-x[:, None] - shift) / sd
        tail = np.einsum("bq,bqi->bi", posterior, ndtr(above) + ndtr(below))
        density = np.einsum("bq,bqi->bi", posterior, (np.exp(-0.5 * above**2) + np.exp(-0.5 * below**2)) / sd)
        tail, density = np.maximum(tail, 1e-300), np.maximum(density / np.sqrt(2 * np.pi), 1e-300)
        step = np.log(tail / level) * tail / density
        x = x + np.clip(step, -0.5 * x, x)
        found[left] = x
        going = ~(np.abs(step / x).max(axis=1) < 1e-6)  # the next step would be the square of this
        if not going.any():
            break
        if not going.all():
            left, x, posterior, shift, sd = left[going], x[going], posterior[going], shift[going], sd[going]
    return found


@cache
def _df_table() -> tuple[np.ndarray, np.ndarray]:
    """Minus the ratio of the two points of a t distribution, ascending, and its degrees of freedom."""
    df = np.exp(np.linspace(np.log(0.5), np.log(MAX_DF), 4000))
    return -stats.t.isf(LEVELS[1] / 2, df) / stats.t.isf(LEVELS[0] / 2, df), df


def _interpolation(variance: np.ndarray, low: np.ndarray, high: np.ndarray, log_sd: np.ndarray, K: int) -> np.ndarray:
    """(B, Q, K) from the nodes of a term to 0 and the points: barycentric Lagrange interpolation."""
    sigma2 = np.concatenate([np.zeros((len(log_sd), 1)), np.exp(2 * log_sd)], axis=1)
    u = np.log(variance[:, None] + sigma2)
    # At 0 when that is out of range: anything finite, it gets no weight.
    x = np.clip((2 * u - (low + high)[:, None]) / (high - low)[:, None], -1.0, 1.0)
    return barycentric(x, K)


def _spread(log_sd: np.ndarray, grid: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """(B, Q, K + 1) share of each weight of the prior at 0 and at each point (trapezoidal rule)."""
    (B, n), K = log_sd.shape, grid.size
    step = np.repeat((log_sd[:, -1:] - log_sd[:, :1]) / (n - 1), n, axis=1)
    step[:, [0, -1]] *= 0.5
    spacing = grid[1] - grid[0]
    hat = np.maximum(0.0, 1 - np.abs(log_sd[:, :, None] - grid) / spacing)
    area = np.full(K, spacing)
    area[[0, -1]] *= 0.5
    spread = np.zeros((B, n + 1, K + 1))
    spread[:, 0, 0] = zero
    spread[:, 1:, 1:] = hat * (step[:, :, None] / area)
    return spread


def _apply(matrices: list[np.ndarray], tensor: np.ndarray) -> np.ndarray:
    """Multiply the axes after the first of a (B, ...) tensor by (B, new, old) matrices, one for each axis."""
    for axis, matrix in enumerate(matrices, start=1):
        moved = np.moveaxis(tensor, axis, 1)
        shape = moved.shape
        product = matrix @ moved.reshape(*shape[:2], -1)
        tensor = np.moveaxis(product.reshape(shape[0], -1, *shape[2:]), 1, axis)
    return tensor
