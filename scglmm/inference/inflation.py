"""Zero inflation: its design on the strata, the search from several starts, and whether it can be tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logit

from scglmm.engine.fit import FAILED, Fit, fit
from scglmm.engine.layout import Data, Work

from .frame import Frame, orthogonal

if TYPE_CHECKING:
    from scglmm.formula import Design

MIN_INFLATION, MAX_LOGIT_SE = 1e-4, 5.0  # beyond these a zero inflation cannot be told from none
ZERO_STARTS = (0.5, 0.2, 0.02)  # zero-inflation probabilities to start from, and more of them with
MORE_STARTS = [(p, sd) for p in (0.5, 0.1, 1e-3) for sd in (0.5, 1.5)]  # standard deviations of random effects
CLEARLY = 1e-4  # difference of log-likelihoods that rounding errors near a pole do not make


@dataclass(frozen=True)
class Inflation:
    """Design of the logit of the zero-inflation probability.

    Attributes
    ----------
    columns
        Names of its k coefficients.
    zi
        (S, k) what the engine sees, orthogonal over the cells.
    back
        (k, k) coefficients are ``back @ zi``.
    """

    columns: list[str]
    zi: np.ndarray
    back: np.ndarray


def make_inflation(design: Design, first: np.ndarray, n_cells: np.ndarray) -> Inflation:
    """Take the design of a zero inflation to strata that share its rows.

    Parameters
    ----------
    design
        On the cells.
    first
        (S,) one cell of every stratum.
    n_cells
        (S,) cells of every stratum.
    """
    zi, back, _ = orthogonal(design.X[first], n_cells / n_cells.sum())
    return Inflation(list(design.columns), zi, back)


def fit_from_starts(data: Data, frame: Frame, reml: bool, beta: np.ndarray, work: Work | None = None) -> Fit:
    """Fit once, or from several zero-inflation probabilities.

    The criterion of zero-inflated counts has several maxima, and poles where the curvature of the mode of a level
    without counts vanishes: there Laplace's approximation means nothing, and a search that ends at one has failed. A
    maximum that is as good as at infinity (`RUNAWAY`) is one: where it is the highest, nothing is known. Nor is a
    variance said to be 0 where a search, failed or not, has come higher.
    """
    model = (data, frame.structure, frame.Q, reml, beta)
    if data.extra is None or data.extra.zi.shape[1] == 0:
        return fit(*model, work=work)
    zi = data.extra.zi
    constant = np.linalg.lstsq(zi, np.ones(zi.shape[0]), rcond=None)[0]
    fits = [fit(*model, work=work, zi_guess=logit(p) * constant) for p in ZERO_STARTS]
    if all(found.failed for found in fits):
        row, column, _ = frame.structure.psi_at
        fits += [
            fit(*model, work=work, zi_guess=logit(p) * constant, psi_guess=sd * (row == column))
            for p, sd in MORE_STARTS
        ]
    best = max(fits, key=lambda found: (found.status != FAILED, _height(found)))
    highest = max(fits, key=_height)
    at_zero = not best.free[-1 - best.psi.size : -1].all()
    return highest if at_zero and highest.value > best.value + CLEARLY else best


def _height(found: Fit) -> float:
    return float(np.nan_to_num(found.value, nan=-np.inf))


def is_determined(zi: np.ndarray, coefficients: np.ndarray, covariance: np.ndarray, free: np.ndarray) -> bool:
    """Whether the zero inflation can be tested: a probability that is not 0, and a logit that the data determine."""
    se = np.sqrt(np.einsum("si,ij,sj->s", zi, covariance, zi))
    return bool(free.all() and (zi @ coefficients).max() >= logit(MIN_INFLATION) and se.max() <= MAX_LOGIT_SE)
