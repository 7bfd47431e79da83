"""Fit one gene: start, search, boundaries, curvature, and a record of how it went.

Boundaries are decided, never assumed (`scglmm.engine.boundary`): a variance is put to exactly 0 when the criterion
falls in every direction away from 0, and theta to its upper limit when the criterion does not rise with 1/theta there.

This file is Python: it calls a handful of kernels for each gene and decides between them. What costs time is in them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .boundary import variance_derivative
from .covariance import TermParameters, canonical_root, null_space, term_parameters
from .curvature import hessian, negative_definite, positive_inverse
from .laplace import laplace
from .layout import ETA, Data, Work, make_work
from .optimise import LOG_THETA_MAX, NOT_CONVERGED, STOPPED_AT_THETA, maximise
from .start import starting_point
from .structure import Structure

OK, FAILED = 0, 1

SMALL_PSI = 0.03  # a standard deviation below this is tested against 0
RESTART_PSI = 0.1  # where the search starts again when 0 turns out to be a saddle
WEAK = 4.0  # a standard deviation within this many standard errors of 0 may have a better optimum at 0
NEAR = 20.0  # but not where the log-likelihood at 0 is lower by more than this, the other parameters unchanged
RISES = 1e-6  # a derivative in sigma^2 (or 1/theta) above this is a rise
THETA_STOP = math.log(1e4)  # above this the Poisson limit is tried
MAX_ROUNDS = 10


@dataclass(frozen=True)
class Fit:
    """What is known about one gene after its fit (symbols as in `scglmm.engine.structure`).

    Parameters are ordered (beta, psi, log theta) for maximum likelihood and (psi, log theta) for REML.
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
    eta: np.ndarray  # (S,) linear predictors without the offset


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
    """
    work = make_work(structure, X) if work is None else work
    search = _Search(data, structure, X, joint, work)
    if not search.start(beta_guess, psi_guess, log_theta_guess):
        return search.result(FAILED)
    for _ in range(MAX_ROUNDS):
        search.climb()
        if not math.isfinite(search.value):
            break
        if (
            search.go_to_poisson_limit()
            or search.settle_variances()
            or search.leave_poisson_limit()
            or search.try_zero_variances()
        ):
            continue
        break
    done = search.status != NOT_CONVERGED and math.isfinite(search.value)
    if curvature and math.isfinite(search.value):
        done = search.polish() and done
    return search.result(OK if done else FAILED)


class _Search:
    """State of the fit of one gene, and the moves that `fit` makes."""

    def __init__(self, data: Data, structure: Structure, X: np.ndarray, joint: bool, work: Work) -> None:
        self.model = (data, structure, X, joint)
        self.structure, self.work = structure, work
        p, n_psi = X.shape[1], structure.psi_at.shape[1]
        self.first = 0 if joint else p
        n = self.first + n_psi + 1
        self.terms = term_parameters(structure, self.first)
        self.par, self.gradient = np.zeros(n), np.zeros(n)
        self.beta, self.v = np.zeros(p), np.zeros(structure.starts.shape[1] - 1)
        self.free = np.ones(n, np.bool_)
        self.metric = np.zeros((n, n))
        self.hessian = np.zeros((n, n))
        self.d_covariance, self.d_beta = np.zeros((n, p, p)), np.zeros((n, p))
        self.value, self.status, self.n_eval = math.nan, NOT_CONVERGED, 0
        self.at_limit, self.theta_stop, self.log_theta_before = False, THETA_STOP, 0.0
        self.refused: set[int] = set()  # terms whose criterion rises from 0: not to be put to 0 again
        self.tried: set[int] = set()  # terms that were tried at 0
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
        self.par[: self.first] = self.beta[: self.first]
        self.par[self.first : -1] = psi
        self.par[-1] = log_theta
        return True

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
        if self.status != STOPPED_AT_THETA:
            return False
        self.log_theta_before = self.par[-1]
        self.par[-1] = LOG_THETA_MAX
        self.free[-1] = False
        self.at_limit, self.theta_stop = True, math.inf
        return True

    def leave_poisson_limit(self) -> bool:
        """Go back to the interior when the criterion rises with 1/theta."""
        if not self.at_limit:
            return False
        slope = -math.exp(LOG_THETA_MAX) * self.gradient[-1]
        if not slope > RISES * max(1.0, -self.value):
            return False
        self.par[-1] = self.log_theta_before
        self.free[-1] = True
        self.at_limit = False
        return True

    def settle_variances(self) -> bool:
        """Put small standard deviations to 0 where the criterion does not rise from there.

        Returns
        -------
        Whether anything changed, so that the search has to go on.
        """
        # The diagonal of a lower triangular root holds the pivots, so without a small entry there nothing is singular.
        if not (np.abs(self.par[self.sds]) <= SMALL_PSI).any():
            return False
        candidates = [
            (index, term, *canonical_root(self.par[term.entries], term.c, SMALL_PSI))
            for index, term in enumerate(self.terms)
            if index not in self.refused
        ]
        candidates = [
            (index, term, root, small)
            for index, term, root, small in candidates
            if (self.free[term.entries] & small[term.column]).any()
        ]
        if not candidates:
            return False
        before = self._save()
        for _, term, root, _ in candidates:
            self.par[term.entries] = root
        self.v[:] = 0.0  # the effects mean something else after a change of Lambda: start their mode afresh
        finite = math.isfinite(self.evaluate())
        rises = [self._steepest_rise(term) if finite else math.inf for _, term, _, _ in candidates]
        changed = False
        for (index, term, _, small), rise in zip(candidates, rises, strict=True):
            if rise <= RISES:
                self.free[term.entries[small[term.column]]] = False
                changed = True
                continue
            self.refused.add(index)
            self.par[term.entries] = before["par"][term.entries]
            # At an optimum the derivative in sigma^2, gradient / (2 sigma), has fallen to 0. Where it is still what it
            # is at 0, the search has stopped on the flat top of the saddle at sigma = 0.
            for entry in term.entries[term.diagonal & small[term.column]]:
                if not abs(before["gradient"][entry]) < 0.2 * rise * abs(before["par"][entry]):
                    self.par[entry] = RESTART_PSI
                    changed = True
        if changed:
            self.v[:] = 0.0
        else:
            self._restore(before)
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
        self.tried.update(range(len(self.terms)))
        moved = False
        for indices in [[index] for index in weak] + ([weak] if len(weak) > 1 else []):
            entries = np.concatenate([self.terms[index].entries for index in indices])
            entries = entries[self.free[entries]]
            if entries.size == 0:
                continue
            before = self._save()
            self.par[entries] = 0.0
            self.v[:] = 0.0
            self.metric[entries] = 0.0
            self.metric[:, entries] = 0.0
            if self.evaluate() > before["value"] - NEAR:
                self._maximise(math.inf)
                if self.value > before["value"] + 1e-7:
                    self.free[entries] = False
                    moved = True
                    continue
            self._restore(before)
        return moved

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
        step = positive_inverse(self.hessian, self.free) @ self.gradient
        # The gradient of parameters that are not free takes no part: their rows of the inverse are 0.
        if np.abs(step).max() < 0.01 and step @ self.gradient >= 0:
            self.par += step
        self.value = self.evaluate()
        return math.isfinite(self.value) and negative_definite(self.hessian, self.free)

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
            eta=self.work.strata[ETA].copy(),
        )
