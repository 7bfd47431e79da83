"""Maximum likelihood by adaptive quadrature, from the optimum of Laplace's approximation.

The two optima are close, so a quasi-Newton search with Laplace's Hessian as its first metric is short. Variances at 0
are taken over from Laplace: at sigma = 0 both criteria and their derivatives in sigma^2 are the same. Theta at its
limit is looked at again.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .curvature import CENTRAL, negative_definite, positive_inverse
from .families import NB2
from .fit import FAILED, HIGHER, OK, Fit
from .layout import ETA, Data, Work
from .optimise import LOG_THETA_MAX, LOG_THETA_MIN
from .quadrature import quadrature, rule
from .search import RISES, THETA_STOP
from .structure import Structure
from .zero_variances import ZERO_PSI

MAX_ITERATIONS = 100
DECREMENT = 1e-11
FINER, FINEST = 4, 200  # times as many points tell what is missing to the integral; weights of more underflow
LONGEST = 2.0  # largest change of a parameter in one step


def refit(data: Data, structure: Structure, X: np.ndarray, fitted: Fit, n_quad: int, work: Work) -> Fit:
    """Fit by adaptive Gauss-Hermite quadrature.

    Parameters
    ----------
    data, structure, X, work
        As for `scglmm.engine.fit.fit`, with one random term of one column.
    fitted
        The optimum of Laplace's approximation, by maximum likelihood and with its Hessian.
    n_quad
        Number of points.
    """
    search = _Search(data, structure, X, fitted, n_quad, work)
    done = search.to_boundaries()
    if search.leave_poisson_limit():
        done = search.to_boundaries()
    return search.result(OK if done else FAILED)


class _Search:
    """State of the search; parameters are (beta, zi, psi, log theta)."""

    def __init__(self, data: Data, structure: Structure, X: np.ndarray, fitted: Fit, n_quad: int, work: Work) -> None:
        self.model = (data, structure, X, *rule(n_quad))
        self.work, self.fitted = work, fitted
        self.par = np.concatenate([fitted.beta, fitted.zi, fitted.psi, [fitted.log_theta]])
        self.beta, self.v = fitted.beta.copy(), fitted.v.copy()
        self.free = fitted.free.copy()
        self.at_limit = fitted.theta_at_limit
        # a theta beyond the stop that Laplace's criterion has kept from its limit needs no trial there
        self.theta_stop = THETA_STOP if self.at_limit or fitted.log_theta < THETA_STOP else math.inf
        self.has_theta = data.family == NB2
        self.small = False  # whether the standard deviation is known to be small and not 0
        self.metric = positive_inverse(fitted.hessian, self.free)
        self.n_eval = fitted.n_eval
        self.value, self.gradient = self.evaluate(self.par)

    def evaluate(self, par: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient; the mode is left in `v`."""
        self.n_eval += 1
        gradient = np.empty(par.size)
        value = quadrature(*self.model, par, self.beta, self.v, gradient, self.work)
        if not math.isfinite(value):
            self.v[:] = 0.0
            return math.nan, gradient
        return value, np.where(self.free, gradient, 0.0)

    def to_boundaries(self) -> bool:
        """Climb, and on from every boundary that is met; whether it converged."""
        done = self.climb()
        while leaving := self.leaving():
            before = self.value, self.par[-2]
            self.put_at_boundary(leaving)
            done = self.climb()
            if not self.free[-2] and self.value < before[0] - HIGHER:
                self.release_variance(before[1])
                done = self.climb()
        return done

    def release_variance(self, psi: float) -> None:
        """Go back from a standard deviation of 0, where the criterion is lower than it was before."""
        self.par[-2], self.free[-2], self.small = psi, True, True
        self.value, self.gradient = self.evaluate(self.par)
        self.metric = positive_inverse(self.hessian(), self.free)
        self.value, self.gradient = self.evaluate(self.par)

    def leave_poisson_limit(self) -> bool:
        """Go back to the interior when the criterion rises with 1/theta, as Laplace's did not."""
        if not (self.has_theta and self.at_limit) or not math.isfinite(self.value):
            return False
        gradient = np.empty(self.par.size)
        quadrature(*self.model, self.par, self.beta, self.v, gradient, self.work)
        if not -math.exp(LOG_THETA_MAX) * gradient[-1] > RISES * max(1.0, -self.value):
            return False
        self.par[-1] = THETA_STOP
        self.at_limit, self.free[-1], self.theta_stop = False, True, math.inf
        self.metric = positive_inverse(self.hessian(), self.free)
        self.value, self.gradient = self.evaluate(self.par)
        return True

    def climb(self) -> bool:
        """BFGS; whether it converged."""
        for _ in range(MAX_ITERATIONS):
            step = self.metric @ self.gradient
            rise = step @ self.gradient
            if not rise > DECREMENT:
                return math.isfinite(self.value)
            step /= max(1.0, np.abs(step).max() / LONGEST)
            length = 1.0
            while True:
                trial = self.par + length * step
                trial[-1] = min(LOG_THETA_MAX, max(LOG_THETA_MIN, trial[-1]))
                value, gradient = self.evaluate(trial)
                if value >= self.value + 1e-4 * length * rise:
                    break
                length *= 0.4
                if length < 1e-9:
                    self.evaluate(self.par)
                    return rise < 1e-6
            change, moved = self.gradient - gradient, trial - self.par
            self.par, self.value, self.gradient = trial, value, gradient
            if (product := change @ moved) > 1e-14:
                left = np.eye(moved.size) - np.outer(moved, change) / product
                self.metric = left @ self.metric @ left.T + np.outer(moved, moved) / product
            if self.leaving():
                return True
        return False

    def leaving(self) -> list[int]:
        """Parameters that run to their boundary: theta to infinity, the standard deviation to 0."""
        leaving = []
        if self.has_theta and self.free[-1] and self.par[-1] > self.theta_stop:
            leaving.append(self.par.size - 1)
        if self.free[-2] and not self.small and abs(self.par[-2]) < ZERO_PSI:
            leaving.append(self.par.size - 2)
        return leaving

    def put_at_boundary(self, leaving: list[int]) -> None:
        """Put parameters there and make a new metric for the others."""
        for i in leaving:
            is_theta = i == self.par.size - 1
            self.par[i] = LOG_THETA_MAX if is_theta else 0.0
            self.at_limit |= is_theta
            self.free[i] = False
        self.metric = positive_inverse(self.hessian(), self.free)
        self.value, self.gradient = self.evaluate(self.par)

    def hessian(self) -> np.ndarray:
        """Second derivatives over the free parameters by central differences of the gradient."""
        n = self.par.size
        result = np.zeros((n, n))
        for i in np.flatnonzero(self.free):
            e = CENTRAL * (np.arange(n) == i)
            result[i] = (self.evaluate(self.par + e)[1] - self.evaluate(self.par - e)[1]) / (2 * CENTRAL)
        return 0.5 * (result + result.T)

    def result(self, status: int) -> Fit:
        """Package the optimum with its Hessian."""
        hessian = self.hessian()
        newton = self.par + positive_inverse(hessian, self.free) @ self.gradient
        value, gradient = self.evaluate(newton)
        if value > self.value - 1e-9:
            self.par, self.value, self.gradient = newton, value, gradient
        else:
            self.evaluate(self.par)
        left = self.left_by_the_rule()
        p, k = self.fitted.beta.size, self.fitted.zi.size
        return replace(
            self.fitted,
            status=status if negative_definite(hessian, self.free) else FAILED,
            value=self.value,
            n_eval=self.n_eval,
            grad=float(np.abs(self.gradient).max()),
            beta=self.par[:p].copy(),
            zi=self.par[p : p + k].copy(),
            psi=self.par[p + k : -1].copy(),
            log_theta=float(self.par[-1]),
            theta_at_limit=self.at_limit,
            free=self.free,
            hessian=hessian,
            v=self.v.copy(),
            eta=self.work.strata[ETA].copy(),
            quadrature_error=left,
        )

    def left_by_the_rule(self) -> float:
        """Find what `FINER` times as many points would add to the value; work and mode stay as they are."""
        data, structure, X, points, _ = self.model
        finer = rule(min(FINER * points.size, FINEST))
        gradient = np.empty(self.par.size)
        value = quadrature(data, structure, X, *finer, self.par, self.beta, self.v, gradient, self.work)
        self.evaluate(self.par)
        return value - self.value
