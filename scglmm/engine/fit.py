"""Fit one gene: start, search, boundaries, curvature, and a record of how it went.

Boundaries are decided, never assumed (`scglmm.engine.boundary`): a variance is put to exactly 0 when the criterion
falls in every direction away from 0, and theta to its upper limit when the criterion does not rise with 1/theta there.

This file is Python: it calls a handful of kernels for each gene and decides between them. What costs time is in them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .boundary import variance_derivative
from .covariance import TermParameters, null_space, reduced_root, root_of, term_parameters
from .curvature import hessian, negative_definite, positive_inverse
from .families import NB2, POISSON
from .laplace import laplace
from .layout import ETA, ZETA, Data, H, Work, make_work
from .optimise import LOG_THETA_MAX, LOG_THETA_MIN, NOT_CONVERGED, maximise
from .start import starting_point
from .structure import Structure

OK, FAILED = 0, 1

SMALL_PSI = 0.03  # a standard deviation below this is tested against 0
ZERO_PSI = 1e-3  # a standard deviation below this is 0, unless the criterion rises from there
RESTART_PSI = 0.1  # where the search starts again when 0 turns out to be a saddle
NO_ZEROS = -12.0  # a zero-inflation probability whose logit is below this everywhere may be 0
FLAT_ZEROS = -40.0  # and is then put there
RUNAWAY = 100.0  # such a logit, of either sign, has no end
WEAK = 4.0  # a standard deviation within this many standard errors of 0 may have a better optimum at 0
NEAR = 20.0  # but not where the log-likelihood at 0 is lower by more than this, the other parameters unchanged
RISES = 1e-6  # a derivative in sigma^2 (or 1/theta) above this is a rise
THETA_STOP = math.log(1e4)  # above this the Poisson limit is tried
MAX_ROUNDS = 12
MAX_POLISH, SMALL_ASCENT = 3, 1e-5  # Newton steps at the end, and the largest rise that one may promise
MAX_REFUSALS, MAX_LIMITS = 3, 3  # how often the same question is asked again


@dataclass(frozen=True)
class Fit:
    """What is known about one gene after its fit (symbols as in `scglmm.engine.structure`).

    Parameters are ordered (beta, zi, psi, log theta) for maximum likelihood and (zi, psi, log theta) for REML, zi being
    the coefficients of a zero inflation, if there is one.
    """

    status: int  # OK or FAILED
    value: float  # Laplace (restricted) log-likelihood, all constants
    n_eval: int  # evaluations of the criterion with its gradient
    grad: float  # largest absolute gradient over the free parameters at the end
    beta: np.ndarray  # (p,)
    psi: np.ndarray  # (n_psi,) columns with a zero diagonal are variances at 0
    log_theta: float
    theta_at_limit: bool
    free: np.ndarray  # (n,) bool: parameters in the interior
    hessian: np.ndarray  # (n, n) of the criterion, rows of parameters that are not free are 0
    covariance: np.ndarray  # (p, p) of beta at fixed variances (REML)
    d_covariance: np.ndarray  # (n, p, p) its derivatives (REML)
    d_beta: np.ndarray  # (n, p) derivatives of beta (REML)
    v: np.ndarray  # (q,) spherical random effects, reordered
    h: np.ndarray  # (S,) minus the second derivative of the log-likelihood of every stratum in eta
    eta: np.ndarray  # (S,) linear predictors without the offset
    zi: np.ndarray  # (k,) coefficients of the logit of the zero-inflation probability


def fit(
    data: Data,
    structure: Structure,
    X: np.ndarray,
    joint: bool,
    beta_guess: np.ndarray,
    psi_guess: np.ndarray | None = None,
    log_theta_guess: float = 0.0,
    curvature: bool = True,
    work: Work | None = None,
    zi_guess: np.ndarray | None = None,
) -> Fit:
    """Maximise the Laplace criterion of one gene.

    Parameters
    ----------
    data, structure, X
        The gene, the random effects, the fixed effects (S, p), columns of mean square near 1.
    joint
        REML (True) or maximum likelihood.
    beta_guess
        (p,) first guess of beta.
    psi_guess, log_theta_guess
        A start for the variances, for instance from a neighbouring model; by default one is found.
    curvature
        Whether the Hessian and the derivatives for inference are wanted.
    work
        Scratch arrays of this structure and X, from `scglmm.engine.layout.make_work`.
    zi_guess
        (k,) start of the zero inflation, needed where there is one.
    """
    work = make_work(structure, X) if work is None else work
    search = _Search(data, structure, X, joint, work)
    search.start_inflation(zi_guess)
    if not search.start(beta_guess, psi_guess, log_theta_guess):
        return search.result(FAILED)
    for _ in range(MAX_ROUNDS):
        search.climb()
        if not math.isfinite(search.value):
            # A move has led to where the criterion has no value: what was found before it stands, if it may.
            search.step_back()
            break
        search.remember()
        if (
            search.go_to_poisson_limit()
            or search.settle_variances()
            or search.leave_poisson_limit()
            or search.settle_inflation()
            or search.try_zero_variances()
            or search.release_variances()
        ):
            continue
        break
    done = search.status != NOT_CONVERGED and math.isfinite(search.value)
    if curvature and math.isfinite(search.value):
        is_maximum = search.polish()
        done = is_maximum and done
        if data.extra is not None:
            # Residuals near 0 make the search give up where it has arrived, and the criterion of zero-inflated counts
            # has poles, where the curvature of an inner mode vanishes, that look like maxima.
            done = is_maximum and search.promise() < SMALL_ASCENT
    return search.result(OK if done else FAILED)


class _Candidate(NamedTuple):
    """Directions of a term that may have no variance."""

    index: int
    term: TermParameters
    root: np.ndarray  # entries of Lambda without them
    entries: np.ndarray  # which parameters that puts to 0


class _Search:
    """State of the fit of one gene, and the moves that `fit` makes."""

    def __init__(self, data: Data, structure: Structure, X: np.ndarray, joint: bool, work: Work) -> None:
        self.model = (data, structure, X, joint)
        self.structure, self.work = structure, work
        p, n_psi = X.shape[1], structure.psi_at.shape[1]
        self.first_zi = 0 if joint else p
        self.first = self.first_zi + (0 if data.extra is None else data.extra.zi.shape[1])
        n = self.first + n_psi + 1
        self.terms = term_parameters(structure, self.first)
        self.par, self.gradient = np.zeros(n), np.zeros(n)
        self.beta, self.v = np.zeros(p), np.zeros(structure.starts.shape[1] - 1)
        self.free = np.ones(n, np.bool_)
        self.has_theta = data.family == NB2
        self.free[-1] = data.family != POISSON
        self.metric = np.zeros((n, n))
        self.hessian = np.zeros((n, n))
        self.d_covariance, self.d_beta = np.zeros((n, p, p)), np.zeros((n, p))
        self.value, self.status, self.n_eval = math.nan, NOT_CONVERGED, 0
        self.at_limit, self.log_theta_before, self.limits = False, 0.0, 0
        self.theta_stop = THETA_STOP if self.has_theta else math.inf
        self.refused = [0] * len(self.terms)  # how often the criterion was found to rise from 0
        self.released: set[int] = set()  # terms that were set free again
        self.tried: set[int] = set()  # terms that were tried at 0
        self.last: dict | None = None  # where the last climb ended
        row, column, _ = structure.psi_at
        self.sds = self.first + np.flatnonzero(row == column)  # where the diagonal of Lambda is

    def start(self, beta: np.ndarray, psi: np.ndarray | None, log_theta: float) -> bool:
        """Find starting values; False when the mode cannot be found."""
        data, structure, X, joint = self.model
        self.beta[:] = beta
        if psi is None or not joint:
            # Maximum likelihood needs the joint mode in any case: for beta, and for the metric.
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
        return laplace(*self.model[:4], True, self.par, self.beta, self.v, self.gradient, self.work)

    def climb(self) -> None:
        """Search from the current point, with a metric made there."""
        self.value = self.evaluate()
        rough = self._hessian(central=False)
        self.n_eval += int(self.free[self.first :].sum())
        self.metric = positive_inverse(rough, self.free)
        self._maximise(self.theta_stop)

    def _maximise(self, theta_stop: float) -> None:
        self.value, spent, self.status = maximise(
            *self.model, self.par, self.metric, theta_stop, self.beta, self.v, self.gradient, self.work
        )
        self.n_eval += spent

    def _hessian(self, *, central: bool) -> np.ndarray:
        return hessian(
            *self.model, self.par, self.free, central, self.beta, self.v, self.gradient, self.work,
            self.d_covariance, self.d_beta,
        )  # fmt: skip

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
        before = self._save()
        self.par[zi] *= FLAT_ZEROS / logits.max()
        value = self.evaluate()
        if not value >= before["value"] - 1e-4:
            self._restore(before)
            return False
        self.free[zi] = False
        return True

    def settle_variances(self) -> bool:
        """Put directions of little variance to 0 where the criterion does not rise from there.

        Returns
        -------
        Whether anything changed, so that the search has to go on.
        """
        if all(term.c == 1 for term in self.terms) and not (np.abs(self.par[self.sds]) <= SMALL_PSI).any():
            return False
        # What is 0 already can be settled together; what is merely small changes the others when it is taken away.
        zero = self._small_directions(ZERO_PSI)
        if zero and self._settle(zero):
            return True
        return any(self._settle([candidate]) for candidate in self._small_directions(SMALL_PSI))

    def _small_directions(self, small: float) -> list[_Candidate]:
        """Terms with directions of little variance that are still free, and their roots without them."""
        candidates = []
        for index, term in enumerate(self.terms):
            root, zero = reduced_root(self.par[term.entries], term.c, small)
            new = self.free[term.entries] & zero[term.column]
            if new.any() and self.refused[index] < MAX_REFUSALS:
                candidates.append(_Candidate(index, term, root, term.entries[new]))
        return candidates

    def _settle(self, candidates: list[_Candidate]) -> bool:
        """Put the directions of some terms to 0, look whether the criterion rises there, and keep what does not."""
        before = self._save()
        for candidate in candidates:
            self.par[candidate.term.entries] = candidate.root
        self.v[:] = 0.0  # the effects mean something else after a change of Lambda: start their mode afresh
        if not math.isfinite(self.evaluate()):
            for candidate in candidates:
                self.refused[candidate.index] += 1
            self._restore(before)
            return False
        rises = [self._steepest_rise(candidate.term) for candidate in candidates]
        changed = False
        for (index, term, _, entries), rise in zip(candidates, rises, strict=True):
            if rise <= RISES:
                self.free[entries] = False
                changed = True
                continue
            self.refused[index] += 1
            self.par[term.entries] = before["par"][term.entries]
            # At an optimum the derivative in sigma^2, gradient / (2 sigma), has fallen to 0. Where it is still what it
            # is at 0, the search has stopped on the flat top of the saddle at sigma = 0.
            sds = np.intersect1d(entries, self.sds)
            flat = np.abs(before["gradient"][sds]) >= 0.2 * rise * np.abs(before["par"][sds])
            if term.c > 1 or flat.any():
                self.par[sds] = np.where(np.abs(self.par[sds]) < RESTART_PSI, RESTART_PSI, self.par[sds])
                changed = True
        if not changed:
            self._restore(before)
            return False
        self.v[:] = 0.0
        if self.has_theta and not self.at_limit and self.limits < MAX_LIMITS:
            self.theta_stop = THETA_STOP  # with other variances the Poisson limit is another question
        return True

    def release_variances(self) -> bool:
        """Set free again what was put to 0 when the criterion rises from there now that the rest has moved."""
        fixed = [
            (index, term)
            for index, term in enumerate(self.terms)
            if not self.free[term.entries].all() and index not in self.released
        ]
        if not fixed or not math.isfinite(self.evaluate()):
            return False
        changed = False
        for index, term in fixed:
            if self._steepest_rise(term) > RISES:
                self.released.add(index)
                entries = term.entries[~self.free[term.entries]]
                self.free[entries] = True
                self.par[np.intersect1d(entries, self.sds)] = RESTART_PSI
                changed = True
        if changed:
            self.v[:] = 0.0
        return changed

    def _steepest_rise(self, term: TermParameters) -> float:
        """Largest derivative of the criterion over directions within the null space of Sigma of a term."""
        _, structure, X, joint = self.model
        derivative = variance_derivative(structure, X, joint, term.slot, term.c, self.work)
        null = null_space(self.par[term.entries], term.c)
        if null.shape[1] == 0:
            return -math.inf
        return float(np.linalg.eigvalsh(null.T @ derivative @ null)[-1])

    def try_zero_variances(self) -> bool:
        """Look for a second maximum where variances that are hardly different from 0 are 0.

        A grouping factor with two levels often has one. Each term is tried once, and all weak terms at once.

        Returns
        -------
        Whether a better point was found.
        """
        weak = [index for index, term in enumerate(self.terms) if index not in self.tried and self._is_weak(term)]
        tries = [[(index, math.inf)] for index in weak]
        if len(weak) > 1:
            tries.append([(index, math.inf) for index in weak])
        tries += [
            [(index, self._weakest_direction(term))]
            for index, term in enumerate(self.terms)
            if term.c > 1 and index not in self.tried
        ]
        self.tried.update(range(len(self.terms)))
        moved = [self._try_without(directions) for directions in tries]  # all of them, not up to the first
        return any(moved)

    def _try_without(self, directions: list[tuple[int, float]]) -> bool:
        """Search again with the directions of some terms at 0 whose standard deviation is at most a bound."""
        before, before_free = self._save(), self.free.copy()
        for index, bound in directions:
            term = self.terms[index]
            root, zero = reduced_root(self.par[term.entries], term.c, bound)
            self.par[term.entries] = root
            self.free[term.entries[zero[term.column]]] = False
        if (self.free == before_free).all():
            return False
        self.v[:] = 0.0
        if self.evaluate() > before["value"] - NEAR:
            self.climb()
            if self.value > before["value"] + 1e-7:
                return True
        self._restore(before)
        self.free = before_free
        return False

    def _weakest_direction(self, term: TermParameters) -> float:
        """Smallest standard deviation among the directions of a term that have any variance."""
        root = root_of(self.par[term.entries], term.c)
        values = np.linalg.eigvalsh(root @ root.T)
        values = values[values > 1e-12 * max(1.0, values[-1])]
        return 1.000001 * math.sqrt(values[0]) if values.size else 0.0

    def _is_weak(self, term: TermParameters) -> bool:
        """Whether every standard deviation of a term is within a few standard errors of 0."""
        free = self.free[term.entries]
        sds = term.entries[term.diagonal & free]
        error = np.sqrt(np.maximum(0.0, np.diag(self.metric)[sds]))
        return bool(free.any() and (np.abs(self.par[sds]) < WEAK * error).all())

    def polish(self) -> bool:
        """Exact Hessian and one Newton step; whether the point is a maximum."""
        self.hessian = self._hessian(central=True)
        self.n_eval += 2 * int(self.free.sum())
        if self.first > self.first_zi and not negative_definite(self.hessian, self.free):
            # A zero inflation that the data do not determine is no reason to doubt the rest.
            self.free[self.first_zi : self.first] = False
            self.hessian[self.first_zi : self.first] = 0.0
            self.hessian[:, self.first_zi : self.first] = 0.0
        inverse = positive_inverse(self.hessian, self.free)
        for _ in range(MAX_POLISH):
            # The gradient of parameters that are not free takes no part: their rows of the inverse are 0.
            step = inverse @ self.gradient
            step[-1] = np.clip(step[-1], -1.0, 1.0)  # near the Poisson limit theta hardly matters
            if 0 <= step @ self.gradient < SMALL_ASCENT:
                self.par += step
                self.par[-1] = min(LOG_THETA_MAX, max(LOG_THETA_MIN, self.par[-1]))
            self.value = self.evaluate()
            if not np.abs(self.gradient[self.free]).max(initial=0.0) > 1e-7 * max(1.0, 0.01 * abs(self.value)):
                break
        return math.isfinite(self.value) and negative_definite(self.hessian, self.free)

    def promise(self) -> float:
        """Rise of the criterion that the exact Hessian still promises."""
        at = np.ix_(self.free, self.free)
        gradient = self.gradient[self.free]
        return float(0.5 * gradient @ np.linalg.solve(-self.hessian[at], gradient))

    def remember(self) -> None:
        """Keep what the last climb has found."""
        self.last = self._save() | {"free": self.free.copy(), "at_limit": self.at_limit}

    def step_back(self) -> None:
        """Return to where the last climb ended; that is no maximum where the criterion rises from a boundary."""
        if self.last is None:
            return
        self._restore(self.last)
        if not math.isfinite(self.evaluate()):
            self.status = NOT_CONVERGED
            return
        rises = [self._steepest_rise(term) > RISES for term in self.terms if not self.free[term.entries].all()]
        if any(rises) or (self.at_limit and self._rises_with_dispersion()):
            self.status = NOT_CONVERGED

    def _rises_with_dispersion(self) -> bool:
        """Whether the criterion rises with 1/theta, at the limit."""
        slope = -math.exp(LOG_THETA_MAX) * self.gradient[-1]
        return bool(slope > RISES * max(1.0, -self.value))

    def _save(self) -> dict:
        names = ("par", "beta", "v", "gradient", "metric")
        return {name: getattr(self, name).copy() for name in names} | {"value": self.value, "status": self.status}

    def _restore(self, before: dict) -> None:
        for name, value in before.items():
            setattr(self, name, value)

    def result(self, status: int) -> Fit:
        """Package what is known."""
        gradient = np.abs(self.gradient[self.free])
        return Fit(
            status=status,
            value=self.value,
            n_eval=self.n_eval,
            grad=float(gradient.max()) if gradient.size else 0.0,
            beta=self.beta,
            psi=self.par[self.first : -1].copy(),
            log_theta=float(self.par[-1]),
            theta_at_limit=self.at_limit,
            free=self.free,
            hessian=self.hessian,
            covariance=self.work.schur[1].copy(),
            d_covariance=self.d_covariance,
            d_beta=self.d_beta,
            v=self.v,
            h=self.work.strata[H].copy(),
            eta=self.work.strata[ETA].copy(),
            zi=self.par[self.first_zi : self.first].copy(),
        )
