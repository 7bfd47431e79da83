"""The search for the maximum of one gene: its state, its climb, and its moves to and from the limits of theta.

Moves of the variances to and from 0 are in `scglmm.engine.zero_variances`; `scglmm.engine.fit` decides between all.
"""

from __future__ import annotations

import math

import numpy as np

from .boundary import variance_derivative
from .covariance import TermParameters, null_space, standard_deviations, term_parameters
from .curvature import hessian, n_evaluations, negative_definite, positive_inverse
from .families import NB2, POISSON
from .laplace import laplace
from .layout import ZETA, Data, Work
from .optimise import LOG_THETA_MAX, LOG_THETA_MIN, NOT_CONVERGED, maximise
from .start import starting_point
from .structure import Structure

NO_ZEROS = -12.0  # a zero-inflation probability whose logit is below this everywhere may be 0
FLAT_ZEROS = -40.0  # and is then put there
RUNAWAY = 100.0  # such a logit, of either sign, has no end
RISES = 1e-6  # a derivative in sigma^2 (or 1/theta) above this is a rise
THETA_STOP = math.log(1e4)  # above this the Poisson limit is tried
MAX_POLISH, NEAR = 3, 1e-3  # Newton steps at the end, and twice the largest rise that one may promise
SMALL_ASCENT = 1e-6  # a rise that may be left at the end
STEEP = 1e-9  # a gradient above this (times a hundredth of the log-likelihood) is more than rounding error
ROUGH = 1e5  # rounding error of a log-likelihood of this size is what the search is to tell apart
LEFT = 1e-12  # twice a rise above which a Hessian of its own costs less than the steps that it saves
FLAT = 1e-6  # a curvature in a standard deviation below this is none: its standard error would be 1,000
FINISHED = 1e-16  # twice the rise of a step of 1e-8 standard errors, which changes no curvature in its eighth digit


class Search:
    """State of the fit of one gene, and its moves."""

    def __init__(self, data: Data, structure: Structure, X: np.ndarray, joint: bool, work: Work) -> None:
        self.model = (data, structure, X, joint)
        self.structure, self.work = structure, work
        p, n_psi = X.shape[1], structure.psi_at.shape[1]
        self.first_zi = 0 if joint else p
        self.first = self.first_zi + (0 if data.extra is None else data.extra.zi.shape[1])
        n = self.first + n_psi + 1
        self.terms = term_parameters(structure, self.first)
        self.intercepts = all(term.c == 1 for term in self.terms)  # no term has several columns
        self.par, self.gradient = np.zeros(n), np.zeros(n)
        self.beta, self.v = np.zeros(p), np.zeros(structure.starts.shape[1] - 1)
        self.free = np.ones(n, np.bool_)
        self.has_theta = data.family == NB2
        self.free[-1] = data.family != POISSON
        self.metric = np.zeros((n, n))
        self.hessian = np.zeros((n, n))
        self.d_covariance, self.d_beta = np.zeros((n, p, p)), np.zeros((n, p))
        self.d_v = np.zeros((n, self.v.size))
        self.value, self.status, self.n_eval = math.nan, NOT_CONVERGED, 0
        self.evaluated = False  # whether the scratch arrays hold the current point
        self.at_limit, self.log_theta_before, self.limits = False, 0.0, 0
        self.theta_stop = THETA_STOP if self.has_theta else math.inf
        self.refused = [0] * len(self.terms)  # how often the criterion was found to rise from 0
        self.released: set[int] = set()  # terms that were set free again
        self.tried: set[int] = set()  # terms that were tried at 0
        self.last: dict | None = None  # where the last climb ended
        self.sds = standard_deviations(structure, self.first)

    def start(self, beta: np.ndarray, psi: np.ndarray | None, log_theta: float) -> bool:
        """Find starting values; False when the mode cannot be found."""
        data, structure, X, joint = self.model
        self.beta[:] = beta
        if psi is None or not (joint or data.extra is None):
            # Other families need the joint mode in any case for maximum likelihood: for the metric.
            found_psi = np.zeros(structure.psi_at.shape[1])
            found = starting_point(data, structure, X, self.beta, self.v, found_psi, self.work)
            if not math.isfinite(found):
                return False
            if psi is None:
                psi, log_theta = found_psi, found
        self.par[: self.first_zi] = self.beta[: self.first_zi]
        self.par[self.first : -1] = psi
        self.par[-1] = log_theta
        return True

    def start_inflation(self, zi: np.ndarray | None) -> None:
        """Put the start of the zero inflation where the search for starting values finds it."""
        extra = self.model[0].extra
        if extra is not None and extra.zi.shape[1]:
            self.par[self.first_zi : self.first] = zi
            extra.rows[ZETA] = extra.zi @ zi

    def evaluate(self) -> float:
        """Criterion and gradient at the current point."""
        self.n_eval += 1
        self.evaluated = True
        return laplace(*self.model[:4], True, self.par, self.beta, self.v, self.gradient, self.work)

    def climb(self) -> None:
        """Search from the current point, with a metric made there."""
        self.value = self.evaluate()
        rough = self._hessian(central=False)
        self.metric = positive_inverse(rough, self.free)
        self._maximise(self.theta_stop)

    def _maximise(self, theta_stop: float) -> None:
        self.value, spent, self.status = maximise(
            *self.model, self.par, self.value, self.metric, theta_stop, self.beta, self.v, self.gradient, self.work,
            self.d_v, self.d_beta,
        )  # fmt: skip
        self.n_eval += spent
        self.evaluated = False

    def _hessian(self, *, central: bool) -> np.ndarray:
        if not self.evaluated:
            self.value = self.evaluate()
        self.n_eval += n_evaluations(self.model[0], self.free, self.first, central)
        self.evaluated = False
        return hessian(
            *self.model, self.par, self.free, central, self.beta, self.v, self.gradient, self.work,
            self.d_covariance, self.d_beta, self.d_v,
        )  # fmt: skip

    def steepest_rise(self, term: TermParameters) -> float:
        """Largest derivative of the criterion over directions within the null space of Sigma of a term."""
        _, structure, X, joint = self.model
        derivative = variance_derivative(structure, X, joint, term.slot, term.c, self.work)
        null = null_space(self.par[term.entries], term.c)
        if null.shape[1] == 0:
            return -math.inf
        return float(np.linalg.eigvalsh(null.T @ derivative @ null)[-1])

    def go_to_poisson_limit(self) -> bool:
        """After theta has passed its stop: go on at the limit."""
        if not self.par[-1] > self.theta_stop:
            return False
        self.log_theta_before = self.par[-1]
        self.par[-1] = LOG_THETA_MAX
        self.free[-1] = False
        self.at_limit, self.theta_stop = True, math.inf
        self.limits += 1
        return True

    def leave_poisson_limit(self) -> bool:
        """Go back to the interior when the criterion rises with 1/theta."""
        if not self.at_limit or not self._rises_with_dispersion():
            return False
        self.par[-1] = self.log_theta_before
        self.free[-1] = True
        self.at_limit = False
        return True

    def _rises_with_dispersion(self) -> bool:
        """Whether the criterion rises with 1/theta, at the limit."""
        slope = -math.exp(LOG_THETA_MAX) * self.gradient[-1]
        return bool(slope > RISES * max(1.0, -self.value))

    def settle_inflation(self) -> bool:
        """Hold a zero inflation that runs to infinity: it has vanished, or is certain on some strata and 0 on others.

        What is left of it is flat, so the other parameters find their optimum without it.
        """
        extra, zi = self.model[0].extra, slice(self.first_zi, self.first)
        if self.first == self.first_zi or not self.free[zi].any():
            return False
        logits = extra.zi @ self.par[zi]
        if np.abs(logits).max() > RUNAWAY:
            self.free[zi] = False
            return True
        if logits.max() > NO_ZEROS:
            return False
        before = self.save()
        self.par[zi] *= FLAT_ZEROS / logits.max()
        value = self.evaluate()
        if not value >= before["value"] - 1e-4:
            self.restore(before)
            return False
        self.free[zi] = False
        return True

    def remember(self) -> None:
        """Keep what the last climb has found."""
        self.last = self.save() | {"free": self.free.copy(), "at_limit": self.at_limit}

    def step_back(self) -> None:
        """Return to where the last climb ended; that is no maximum where the criterion rises from a boundary."""
        if self.last is None:
            return
        self.restore(self.last)
        if not math.isfinite(self.evaluate()):
            self.status = NOT_CONVERGED
            return
        rises = [self.steepest_rise(term) > RISES for term in self.terms if not self.free[term.entries].all()]
        if any(rises) or (self.at_limit and self._rises_with_dispersion()):
            self.status = NOT_CONVERGED

    def finish(self) -> None:
        """Take the steps that the end of the search has left; `polish` does the same, and more."""
        inverse = self.metric
        for _ in range(MAX_POLISH):
            if self._left(inverse) > LEFT:
                inverse = positive_inverse(self._hessian(central=False), self.free)
            if not self._step(inverse) > FINISHED:
                return
            self.value = self.evaluate()
            if not math.isfinite(self.value):
                return

    def polish(self) -> bool:
        """Exact Hessian and one Newton step; whether the point is a maximum."""
        # What is left goes with the metric of the search first: curvatures are wanted where the estimate is.
        for _ in range(MAX_POLISH):
            self._step(self.metric)
            self.value = self.evaluate()
            if not self._left(self.metric) > FINISHED:
                break
        self.hessian = self._hessian(central=True)
        if self.first > self.first_zi and not negative_definite(self.hessian, self.free):
            # A zero inflation that the data do not determine is no reason to doubt the rest.
            self.free[self.first_zi : self.first] = False
            self.hessian[self.first_zi : self.first] = 0.0
            self.hessian[:, self.first_zi : self.first] = 0.0
        inverse = positive_inverse(self.hessian, self.free)
        moved = 0.0
        for _ in range(MAX_POLISH):
            moved = max(moved, self._step(inverse))
            self.value = self.evaluate()
            if not np.abs(self.gradient[self.free]).max(initial=0.0) > STEEP * max(1.0, 0.01 * abs(self.value)):
                break
        if moved > FINISHED and (abs(self.value) > ROUGH or self.model[0].extra is None):
            # The search stopped where rounding error or chance would have it, and so did the curvature.
            self.d_covariance[:], self.d_beta[:] = 0.0, 0.0
            self.hessian = self._hessian(central=True)
            self.value = self.evaluate()
        if not (math.isfinite(self.value) and negative_definite(self.hessian, self.free)):
            return False
        # A variance of which the fixed effects leave nothing, a residual that the random effects leave nothing of: the
        # sign of a curvature of 0 is that of rounding error.
        determined = np.diag(self.hessian) < -FLAT
        determined[: self.first] = True
        determined[-1] |= self.has_theta
        return bool(determined[self.free].all())

    def _left(self, inverse: np.ndarray) -> float:
        """Give twice the rise that a step by an inverse of minus the Hessian promises."""
        return float(self.gradient @ inverse @ self.gradient)

    def _step(self, inverse: np.ndarray) -> float:
        """Step by an inverse of minus the Hessian, if it is small; returned is twice the rise that it promises."""
        # The gradient of parameters that are not free takes no part: their rows of the inverse are 0.
        step = inverse @ self.gradient
        step[-1] = min(1.0, max(-1.0, step[-1]))  # near the Poisson limit theta hardly matters
        rise = float(step @ self.gradient)
        if 0 <= rise < NEAR:
            self.evaluated = False
            self.par += step
            self.par[-1] = min(LOG_THETA_MAX, max(LOG_THETA_MIN, self.par[-1]))
            self.v += step @ self.d_v  # where the mode will be
            self.beta += step @ self.d_beta
        return rise

    def largest_sd(self) -> float:
        """Give the largest standard deviation of a random effect, for covariates of mean square 1."""
        squares = np.bincount(self.structure.psi_at[0], self.par[self.first : -1] ** 2)
        return math.sqrt(squares.max(initial=0.0))

    def promise(self) -> float:
        """Rise of the criterion that the exact Hessian still promises."""
        at = np.ix_(self.free, self.free)
        gradient = self.gradient[self.free]
        return float(0.5 * gradient @ np.linalg.solve(-self.hessian[at], gradient))

    def save(self) -> dict:
        """Copy what a move may change."""
        names = ("par", "beta", "v", "gradient", "metric")
        return {name: getattr(self, name).copy() for name in names} | {"value": self.value, "status": self.status}

    def restore(self, before: dict) -> None:
        """Undo a move."""
        for name, value in before.items():
            setattr(self, name, value)
        self.evaluated = False
