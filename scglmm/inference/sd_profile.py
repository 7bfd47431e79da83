"""REML profile of one gene over the standard deviations of its random effects, on a few Chebyshev nodes.

Moderation (`scglmm.inference.moderation`) integrates over the standard deviations instead of estimating them gene by
gene. The criterion of a one-way layout with sampling variance v of a donor is a function of log(v + sigma^2) that no
other singularity comes near, so with u = log(v + sigma^2), v that of the best measured level, it is interpolated
between few nodes; so are the fixed effects and the logarithms of their variances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from scglmm.engine.fit import Fit
from scglmm.engine.layout import Data, make_work
from scglmm.engine.optimise import LOG_THETA_MIN
from scglmm.engine.profile import profile

from .frame import Frame

NODES = {1: 12, 2: 9, 3: 6}  # for each standard deviation, by how many there are
FEWEST = {1: 4, 2: 2, 3: 2}  # and one for every unit of u are enough where its range is narrow: see `_nodes_for`
CLEAR = 6.0  # a standard deviation this many standard errors from 0 has a likelihood that ends before 0 does
REACH = 7.0  # standard errors of log(sigma) that are looked at in that case
MIN_SD, MAX_SD = 0.002, 10.0  # natural log; below is as good as 0, above nothing is believed
DROP = 16.0  # where the log-likelihood has fallen by this, it is not looked at any more
PROMISE = 0.03  # rise of the log-likelihood by a better theta that is added without going there,
ROUGH_PROMISE = 0.5  # also where a range is looked for
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
    gene = _Gene(data, frame, fitted)
    variance = gene.variance
    low, high = gene.range()
    n = tuple(_nodes_for(width, R) for width in high - low)
    path, back = _snake(n)
    x = np.column_stack([chebyshev(n[r])[path[:, r]] for r in range(R)])
    u = 0.5 * (low + high) + 0.5 * (high - low) * x
    value, beta, vcov = gene.evaluate(np.sqrt(np.maximum(0.0, np.exp(u) - variance)))
    if not np.isfinite(value).all():
        return None
    lower = np.tril_indices(p)
    beta = (beta[back] - shift * frame.intercept) @ frame.back.T
    vcov = (frame.back @ vcov[back] @ frame.back.T)[:, lower[0], lower[1]]
    value = value[back]
    if min(n) < NODES[R]:
        more = _between(n, NODES[R])
        value, beta, vcov = more @ value, more @ beta, more @ vcov
    return Profile(variance, low, high, (value - value.max()).reshape((NODES[R],) * R), beta, vcov.astype(np.float32))


def _nodes_for(width: float, R: int) -> int:
    """Count the nodes of one of R standard deviations that a range of u takes.

    The criterion varies over about a unit of u whatever the range. Of two standard deviations it is then within 0.005
    of that on 13 nodes at half of the places that matter, and within 0.02 at nine tenths of them: as it is on 9 nodes
    where there are few donors and ranges are widest.
    """
    return min(NODES[R], FEWEST[R] + math.ceil(width))


@cache
def chebyshev(n: int) -> np.ndarray:
    """Chebyshev points of the first kind, ascending."""
    return -np.cos((2 * np.arange(n) + 1) * np.pi / (2 * n))


def barycentric(x: np.ndarray, n: int) -> np.ndarray:
    """(..., n) Lagrange basis on n Chebyshev points at x in [-1, 1]."""
    distance = x[..., None] - chebyshev(n)
    weight = (-1.0) ** np.arange(n) * np.sin((2 * np.arange(n) + 1) * np.pi / (2 * n))
    exact = np.abs(distance) < 1e-14
    basis = weight / np.where(exact, 1.0, distance)
    basis /= basis.sum(axis=-1, keepdims=True)
    return np.where(exact.any(axis=-1, keepdims=True), exact.astype(float), basis)


@cache
def _snake(n: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Path through a grid on which neighbours are neighbours, (n1 n2 ..., R) indices, and the way back to its order."""
    path = np.arange(n[-1])[:, None]
    for m in n[-2::-1]:
        # Every other row backwards.
        path = np.vstack([np.column_stack([np.full(len(path), k), path[:: 1 if k % 2 == 0 else -1]]) for k in range(m)])
    return path, np.argsort(np.ravel_multi_index(tuple(path.T), n))


@cache
def _between(few: tuple[int, ...], many: int) -> np.ndarray:
    """(many^R, product of few) interpolation from few nodes to many."""
    matrix = np.ones((1, 1))
    for n in few:
        matrix = np.kron(matrix, barycentric(chebyshev(many), n))
    return matrix


class _Gene:
    """One gene at its REML fit."""

    def __init__(self, data: Data, frame: Frame, fitted: Fit) -> None:
        self.data, self.frame, self.fitted = data, frame, fitted
        self.work = make_work(frame.structure, frame.Q)
        hessian, free = fitted.hessian, fitted.free
        self.curvature = float(hessian[-1, -1]) if free[-1] else 0.0
        # How log(theta) follows the standard deviations; 0 where one of them is not free.
        self.follows = -hessian[-1, :-1] / self.curvature if self.curvature < 0 else np.zeros(free.size - 1)
        self.error = np.full(free.size - 1, np.inf)
        if free.all():
            inverse = np.linalg.inv(-hessian)
            self.error = np.sqrt(np.maximum(0.0, np.diag(inverse)[:-1]))
        self.variance = self._resolution()
        self.is_clear = np.abs(fitted.psi) > CLEAR * self.error

    def _resolution(self) -> np.ndarray:
        """(R,) sampling variance of the best measured level of each term."""
        z = self.frame.structure.z
        information = [
            np.bincount(term.codes, z[:, r] ** 2 * self.fitted.h, term.n_levels).max()
            for r, term in enumerate(self.frame.terms)
        ]
        return 1.0 / np.maximum(1e-8, information)

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the criterion is within `DROP` of its largest value, in u.

        From its curvature where that settles it, else by scanning one standard deviation at a time.
        """
        psi, clear, variance = np.abs(self.fitted.psi), self.is_clear, self.variance
        reach = np.exp(np.divide(REACH * self.error, psi, where=clear, out=np.zeros(psi.size)))
        low = np.log(variance + np.where(clear, psi / reach, 0.0) ** 2)
        high = np.log(variance + np.where(clear, np.minimum(psi * reach, MAX_SD), MAX_SD) ** 2)
        scan = np.linspace(low, high, SCAN)
        for r in np.flatnonzero(~clear):
            value = self._scan(int(r), np.sqrt(np.maximum(0.0, np.exp(scan[:, r]) - variance[r])))
            best, peak = self.fitted.value, np.log(variance[r] + psi[r] ** 2)
            if value.max() > best:
                best, peak = value.max(), scan[value.argmax(), r]
            # Linear between the scanned points, which lies above a criterion that is concave there.
            finer = np.linspace(scan[0, r], scan[-1, r], 10 * SCAN)
            gone = np.interp(finer, scan[:, r], np.maximum(value, best - 1e4)) < best - DROP
            low[r] = finer[gone & (finer < peak)].max(initial=low[r])
            high[r] = finer[gone & (finer > peak)].min(initial=high[r])
        return low, high

    def _scan(self, r: int, sd: np.ndarray) -> np.ndarray:
        """Criterion at some values of one standard deviation, from the estimate up and down to where it has fallen."""
        psi = np.abs(self.fitted.psi)
        at = np.tile(psi, (sd.size, 1))
        at[:, r] = sd
        above = int(np.searchsorted(sd, psi[r], side="right"))
        value = np.full(sd.size, -np.inf)
        for rows in (np.arange(above, sd.size), np.arange(above - 1, -1, -1)):
            if rows.size:
                found = self.evaluate(at[rows], ROUGH_PROMISE, self.fitted.value - DROP)[0]
                value[rows] = np.where(np.isfinite(found), found, -np.inf)
        return value

    def evaluate(
        self, psi: np.ndarray, promise: float = PROMISE, least: float = -np.inf
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Criterion, fixed effects and their covariance in the engine's units at (K, R) standard deviations.

        Not after one where the criterion is below `least`.
        """
        n, p = len(psi), self.frame.X.shape[1]
        value, beta, vcov = np.empty(n), np.empty((n, p)), np.empty((n, p, p))
        fitted = self.fitted
        moved = np.clip((psi - np.abs(fitted.psi)) @ self.follows, -1.0, 1.0)
        log_theta = fitted.log_theta + moved * (not fitted.theta_at_limit)
        profile(
            self.data,
            self.frame.structure,
            self.frame.Q,
            np.ascontiguousarray(psi),
            fitted.psi.copy(),
            self.variance,
            np.maximum(LOG_THETA_MIN, log_theta),
            self.curvature,
            np.bool_(not fitted.theta_at_limit),
            promise,
            least,
            fitted.beta.copy(),
            fitted.v.copy(),
            self.work,
            value,
            beta,
            vcov,
        )
        return value, beta, vcov
