"""The design on strata, scaled for the engine, and the way back to the user's units.

The engine sees fixed effects through an orthogonal basis (X = Q R over the cells, columns of mean square 1) and slope
covariates of mean square 1, so that age in years or a library size in millions need no other step lengths than a 0/1
factor. Likelihoods do not change; REML gains log|R|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import solve_triangular

from scglmm.compression.strata import find_strata
from scglmm.engine.structure import Structure, analyse

if TYPE_CHECKING:
    from scglmm.compression.tensor import Limits
    from scglmm.formula import Design


@dataclass(frozen=True)
class RandomTerm:
    """One random-effect term on the strata.

    Attributes
    ----------
    group
        Name of the grouping factor, `"ind"` or `"ind:stim"`.
    columns
        Names of its columns, `"(Intercept)"` first if there is one.
    codes
        (S,) level of every stratum, numbered over the levels that occur.
    n_levels
        Number of levels.
    covariates
        (S, columns) in the user's units.
    scale
        (columns,) root mean square over the cells: the engine sees ``covariates / scale``.
    moment
        (columns, columns) mean over cells of z z'.
    """

    group: str
    columns: list[str]
    codes: np.ndarray
    n_levels: int
    covariates: np.ndarray
    scale: np.ndarray
    moment: np.ndarray


@dataclass(frozen=True)
class Frame:
    """Everything about the model that all genes share.

    Attributes
    ----------
    X
        (S, p) fixed effects on the strata, in the user's units.
    Q
        (S, p) what the engine sees: ``X = Q R``.
    back
        (p, p) inverse of R: coefficients are ``back @ gamma``.
    log_det
        log|R|: what the engine's REML criterion is too large by.
    intercept
        (p,) engine coefficients of the constant 1 (least squares when it is not in the span of X).
    terms
        Random terms.
    structure
        For the engine.
    n_cells
        (S,) cells of each stratum.
    covariance
        (p, p) of the columns of X over the cells.
    limits
        How far linear predictors may move over nodes in covariates of the cells; None without such nodes. With them
        the rows are nodes and not strata, and their `n_cells` and counts are no whole numbers.
    """

    X: np.ndarray
    Q: np.ndarray
    back: np.ndarray
    log_det: float
    intercept: np.ndarray
    terms: tuple[RandomTerm, ...]
    structure: Structure
    n_cells: np.ndarray
    covariance: np.ndarray
    limits: Limits | None = None

    @property
    def has_constant(self) -> bool:
        """Whether the constant is in the span of X, so that a shift of the offset moves the intercept only."""
        return bool(np.abs(self.Q @ self.intercept - 1).max() < 1e-8)

    @property
    def n_total(self) -> int:
        """Number of cells."""
        return round(float(self.n_cells.sum()))


def strata_of(design: Design, more: Sequence[np.ndarray] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Stratum of every row of a design, and one row of each stratum; `more` are columns that strata share as well."""
    columns: list[np.ndarray] = [*design.X.T, *more]
    for term in design.random:
        columns += [term.codes, *term.covariates.T]
    return find_strata(columns, design.X.shape[0])


def make_frame(design: Design, first: np.ndarray, n_cells: np.ndarray) -> Frame:
    """Take a design to its strata.

    Parameters
    ----------
    design
        On the cells.
    first
        (S,) one cell of every stratum.
    n_cells
        (S,) cells of every stratum.
    """
    terms = []
    for term in design.random:
        levels, codes = np.unique(term.codes[first], return_inverse=True)
        terms.append(_random_term(term.group, term.columns, codes, levels.size, term.covariates[first], n_cells))
    return frame_from_strata(design.X[first], tuple(terms), n_cells)


def frame_from_strata(X: np.ndarray, terms: Sequence[RandomTerm], n_cells: np.ndarray) -> Frame:
    """Scale fixed effects and covariates, and analyse the random effects."""
    weight = n_cells / n_cells.sum()
    Q, back, log_det = orthogonal(X, weight)
    intercept = np.linalg.lstsq(np.sqrt(weight)[:, None] * Q, np.sqrt(weight), rcond=None)[0]
    structure, _ = analyse(
        [t.codes for t in terms], [t.n_levels for t in terms], [t.covariates / t.scale for t in terms], X.shape[0]
    )
    centred = X - weight @ X
    n = n_cells.sum()
    covariance = (centred * n_cells[:, None]).T @ centred / max(1, n - 1)
    return Frame(X, Q, back, log_det, intercept, tuple(terms), structure, n_cells, covariance)


def restrict(frame: Frame, strata: np.ndarray, columns: np.ndarray) -> Frame:
    """Build the same model on some strata and some columns of the fixed effects.

    Parameters
    ----------
    strata, columns
        (S,), (p,) bool.
    """
    terms = []
    n_cells = frame.n_cells[strata]
    for term in frame.terms:
        levels, codes = np.unique(term.codes[strata], return_inverse=True)
        terms.append(_random_term(term.group, term.columns, codes, levels.size, term.covariates[strata], n_cells))
    return frame_from_strata(frame.X[np.ix_(strata, columns)], tuple(terms), n_cells)


def null_frame(frame: Frame) -> Frame:
    """Build the model with an intercept and the same random effects."""
    ones = np.ones((frame.X.shape[0], 1))
    return Frame(
        ones,
        ones,
        np.ones((1, 1)),
        0.0,
        np.ones(1),
        frame.terms,
        frame.structure,
        frame.n_cells,
        np.zeros((1, 1)),
        frame.limits,
    )


def _random_term(
    group: str, columns: list[str], codes: np.ndarray, n_levels: int, covariates: np.ndarray, n_cells: np.ndarray
) -> RandomTerm:
    weight = n_cells / n_cells.sum()
    moment = (covariates * weight[:, None]).T @ covariates
    scale = np.sqrt(np.diag(moment))
    scale = np.where(scale > 0, scale, 1.0)
    return RandomTerm(group, list(columns), codes, n_levels, covariates, scale, moment)


def orthogonal(X: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Orthogonal basis over the cells, its way back, and log|R|."""
    # Columns of very different size first get size 1: QR is then as accurate as the design allows.
    size = np.sqrt(weight @ X**2)
    scaled = X / size
    _, R = np.linalg.qr(np.sqrt(weight)[:, None] * scaled)
    back = solve_triangular(R, np.eye(R.shape[0])) / size[:, None]
    return np.ascontiguousarray(X @ back), back, float(np.log(np.abs(np.diag(R))).sum() + np.log(size).sum())


def roots(frame: Frame, psi: np.ndarray) -> list[np.ndarray]:
    """Lower triangle Lambda of every random term from the engine's parameters, in the engine's units."""
    found, at = [], 0
    for term in frame.terms:
        c = len(term.columns)
        root = np.zeros((c, c))
        for j in range(c):
            root[j:, j] = psi[at : at + c - j]
            at += c - j
        found.append(root)
    return found
