"""REML profile of one gene over the standard deviations of its random effects, on a few Chebyshev nodes.

Moderation (`scglmm.inference.moderation`) integrates over the standard deviations instead of estimating them gene by
gene. The criterion of a one-way layout with sampling variance v of a donor is a function of log(v + sigma^2) that no
other singularity comes near, so with u = log(v + sigma^2), v that of the best measured level, it is interpolated
between few nodes; so are the fixed effects and the logarithms of their variances.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from scglmm._jit import YES
from scglmm.engine.fit import Fit
from scglmm.engine.laplace import laplace
from scglmm.engine.layout import Data, H, make_work
from scglmm.engine.profile import profile

from .frame import Frame

NODES = {1: 12, 2: 8, 3: 5}  # for each standard deviation, by how many there are
MIN_SD, MAX_SD = 0.01, 10.0  # natural log; below is as good as 0, above nothing is believed
DROP = 24.0  # where the log-likelihood has fallen by this, it is not looked at any more
SCAN = 7  # points at which each standard deviation is scanned for that, from 0 to the largest


@dataclass(frozen=True)
class Profile:
    """REML criterion of one gene as a function of its R standard deviations, one for each random term.

    Attributes
    ----------
    variance
        (R,) v of ``u = log(v + sigma^2)``, in the engine's units of sigma.
    low, high
        (R,) range of u; ``low == log(variance)`` when it begins at sigma = 0.
    value
        (K, ..., K) criterion, the largest is 0.
    beta
        (K^R, p) fixed effects, in the user's units.
    vcov
        (K^R, p (p + 1) / 2) their covariance at these standard deviations, lower triangle by rows; single precision.
    """

    variance: np.ndarray
    low: np.ndarray
    high: np.ndarray
    value: np.ndarray
    beta: np.ndarray
    vcov: np.ndarray

    @property
    def begins_at_zero(self) -> np.ndarray:
        """(R,) whether the range of each standard deviation begins at 0."""
        return self.low <= np.log(self.variance)


def can_profile(frame: Frame) -> bool:
    """Whether there are one to three random terms of one column each."""
    return len(frame.terms) in NODES and all(len(term.columns) == 1 for term in frame.terms)


def make_profile(data: Data, frame: Frame, fitted: Fit, shift: float) -> Profile | None:
    """Profile one gene around its fit; None where the criterion could not be evaluated.

    Parameters
    ----------
    data, frame
        The gene and the model, for which `can_profile` holds.
    fitted
        Its REML fit.
    shift
        What was subtracted from the offsets.
    """
    R, p = len(frame.terms), frame.X.shape[1]
    variance = _resolution(data, frame, fitted)
    if variance is None:
        return None
    low, high = _range(data, frame, fitted, variance)
    u = 0.5 * (low + high) + 0.5 * (high - low) * chebyshev(NODES[R])[:, None]
    sd = np.sqrt(np.maximum(0.0, np.exp(u) - variance))
    path, back = _snake(NODES[R], R)
    value, beta, vcov = _evaluate(data, frame, fitted, sd[path, np.arange(R)])
    if not np.isfinite(value).all():
        return None
    value, beta, vcov = value[back], beta[back], vcov[back]
    lower = np.tril_indices(p)
    return Profile(
        variance,
        low,
        high,
        (value - value.max()).reshape((NODES[R],) * R),
        (beta - shift * frame.intercept) @ frame.back.T,
        (frame.back @ vcov @ frame.back.T)[:, lower[0], lower[1]].astype(np.float32),
    )


@cache
def chebyshev(n: int) -> np.ndarray:
    """Chebyshev points of the first kind, ascending."""
    return -np.cos((2 * np.arange(n) + 1) * np.pi / (2 * n))


@cache
def _snake(n: int, R: int) -> tuple[np.ndarray, np.ndarray]:
    """Path through a grid on which neighbours are neighbours, (n^R, R) indices, and the way back to the usual order."""
    path = np.arange(n)[:, None]
    for _ in range(R - 1):
        # Every other row backwards.
        path = np.vstack([np.column_stack([np.full(len(path), k), path[:: 1 if k % 2 == 0 else -1]]) for k in range(n)])
    return path, np.argsort(np.ravel_multi_index(tuple(path.T), (n,) * R))


def _resolution(data: Data, frame: Frame, fitted: Fit) -> np.ndarray | None:
    """(R,) sampling variance of the best measured level of each term, at the fit."""
    work = make_work(frame.structure, frame.Q)
    par = np.concatenate([fitted.psi, [fitted.log_theta]])
    beta, v, gradient = fitted.beta.copy(), fitted.v.copy(), np.empty(par.size)
    value = laplace(data, frame.structure, frame.Q, YES, YES, par, beta, v, gradient, work)
    if not np.isfinite(value):
        return None
    information = [
        np.bincount(term.codes, frame.structure.z[:, r] ** 2 * work.strata[H], term.n_levels).max()
        for r, term in enumerate(frame.terms)
    ]
    return 1.0 / np.maximum(1e-8, information)


def _range(data: Data, frame: Frame, fitted: Fit, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the criterion is within `DROP` of its largest value, found by scanning one standard deviation at a time."""
    low, high = np.log(variance), np.log(variance + MAX_SD**2)
    scan = np.linspace(low, high, SCAN)
    psi = np.tile(np.abs(fitted.psi), (variance.size, SCAN, 1))
    for r, v in enumerate(variance):
        psi[r, :, r] = np.sqrt(np.maximum(0.0, np.exp(scan[:, r]) - v))
    value, _, _ = _evaluate(data, frame, fitted, psi.reshape(-1, variance.size))
    value = np.where(np.isfinite(value), value, -np.inf).reshape(variance.size, SCAN)
    for r in range(variance.size):
        best = max(fitted.value, value[r].max())
        at = np.log(variance[r] + fitted.psi[r] ** 2) if fitted.value >= value[r].max() else scan[value[r].argmax(), r]
        gone = value[r] < best - DROP
        low[r] = scan[gone & (scan[:, r] < at), r].max(initial=low[r])
        high[r] = scan[gone & (scan[:, r] > at), r].min(initial=high[r])
    return low, high


def _evaluate(data: Data, frame: Frame, fitted: Fit, psi: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Criterion, fixed effects and their covariance in the engine's units at (K, R) standard deviations."""
    n, p = len(psi), frame.X.shape[1]
    value, beta, vcov = np.empty(n), np.empty((n, p)), np.empty((n, p, p))
    profile(
        data,
        frame.structure,
        frame.Q,
        np.ascontiguousarray(psi),
        fitted.log_theta,
        np.bool_(not fitted.theta_at_limit),
        fitted.beta.copy(),
        fitted.v.copy(),
        make_work(frame.structure, frame.Q),
        value,
        beta,
        vcov,
    )
    return value, beta, vcov
