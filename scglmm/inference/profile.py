"""Profile likelihood of standard deviations and of theta, by maximum likelihood.

One parameter is held, all others are searched again from the optimum of the model. A standard deviation of a term with
several columns is the length of a row of Lambda: the row is written as that length times a direction, and the direction
is searched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize

from scglmm.engine.laplace import laplace
from scglmm.engine.layout import make_work
from scglmm.engine.optimise import LOG_THETA_MAX, LOG_THETA_MIN

from .compressed import compress

if TYPE_CHECKING:
    from scglmm.formula import Design

    from .response_fit import ResponseFit

FLAT = 0.05  # where searches begin that ended at a variance of 0, in the engine's units
FAILS = 1e10  # stands for the criterion where it cannot be computed


@dataclass(frozen=True)
class Held:
    """The parameter that is held: the standard deviation of a column of a random term, or theta (or sigma)."""

    term: int | None = None
    column: int = 0


class Profile:
    """Profile log-likelihood of a model of one response.

    Parameters
    ----------
    design, y, zi_design
        What was fitted, without separation.
    best
        Its fit by maximum likelihood and Laplace's approximation.
    """

    def __init__(self, design: Design, y: np.ndarray, zi_design: Design | None, best: ResponseFit) -> None:
        self.model = compress(design, y, best.family, zi_design)
        frame, fitted = self.model.frame, best._inner.fitted
        self.family = best.family
        self.work = make_work(frame.structure, frame.Q)
        self.optimum = np.concatenate([fitted.beta, fitted.zi, fitted.psi, [fitted.log_theta]])
        self.first_psi = fitted.beta.size + fitted.zi.size
        row, column, term = frame.structure.psi_at
        diagonal = self.first_psi + np.flatnonzero(row == column)
        self.optimum[diagonal[self.optimum[diagonal] == 0]] = FLAT
        self.constant = -y.size * np.log(self.model.scale)
        slots = np.cumsum([0, *(len(t.columns) for t in frame.terms)])
        self.rows = {
            (r, j): self.first_psi + np.flatnonzero((term == r) & (row == slots[r] + j))
            for r, t in enumerate(frame.terms)
            for j in range(len(t.columns))
        }

    def loglik(self, held: Held, value: float) -> float:
        """Largest log-likelihood with a parameter at a value in the user's units; NaN where it cannot be found."""
        par = self.optimum.copy()
        if held.term is None:
            gaussian = self.family == "gaussian"
            par[-1] = 2 * np.log(value / self.model.scale) if gaussian else np.log(value)
            return self._search(par, np.arange(par.size - 1), np.empty(0, int), 0.0)
        at = self.rows[held.term, held.column]
        length = value * self.model.frame.terms[held.term].scale[held.column] / self.model.scale
        free = np.arange(par.size - (self.family == "poisson"))
        if at.size == 1 or length == 0:
            par[at] = length if at.size == 1 else 0.0
            return self._search(par, np.setdiff1d(free, at), np.empty(0, int), 0.0)
        return self._search(par, free, at, length)

    def _search(self, start: np.ndarray, free: np.ndarray, row: np.ndarray, length: float) -> float:
        frame, data = self.model.frame, self.model.data
        beta, v = np.zeros(frame.Q.shape[1]), np.zeros(frame.structure.starts.shape[1] - 1)
        par, gradient = start.copy(), np.empty(start.size)
        scale = np.full(start.size, 1.0)
        if row.size:
            scale[row] = 1.0 / max(float(np.linalg.norm(start[row])), FLAT)

        def criterion(x: np.ndarray) -> tuple[float, np.ndarray]:
            par[free] = x
            if not LOG_THETA_MIN <= par[-1] <= LOG_THETA_MAX:
                return FAILS, np.zeros(free.size)
            direction = par[row]
            size = np.linalg.norm(direction)
            if row.size:
                par[row] = length * direction / size
            v[:] = 0.0
            value = laplace(data, frame.structure, frame.Q, False, True, par, beta, v, gradient, self.work)
            if not np.isfinite(value):
                return FAILS, np.zeros(free.size)
            if row.size:
                unit = direction / size
                gradient[row] = length / size * (gradient[row] - unit * (unit @ gradient[row]))
            return -value, -gradient[free]

        if free.size == 0:
            return self.constant - criterion(start[free])[0]
        begin = (start * scale)[free]
        found = minimize(criterion, begin, jac=True, method="BFGS", options={"gtol": 1e-5, "maxiter": 200})
        return self.constant - found.fun if found.fun < FAILS else np.nan
