"""Random effects of every level: their modes given the data, and their conditional covariance."""

from __future__ import annotations

import numpy as np

from scglmm.engine.layout import Work

from .frame import Frame, roots


def effects(frame: Frame, psi: np.ndarray, v: np.ndarray) -> list[np.ndarray]:
    """Random effects (levels, columns) of every term, in the user's units of the covariates."""
    result = []
    for place, root in zip(_places(frame), _roots(frame, psi), strict=True):
        result.append(v[place.effect] @ root.T)
    return result


def on_strata(frame: Frame, values: list[np.ndarray]) -> np.ndarray:
    """Sum over the terms of z'u on every stratum."""
    total = np.zeros(frame.X.shape[0])
    for term, u in zip(frame.terms, values, strict=True):
        total += np.einsum("sc,sc->s", term.covariates, u[term.codes])
    return total


def covariances(frame: Frame, psi: np.ndarray, work: Work) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Covariance (levels, columns, columns) of the effects of every term given the data.

    Parameters
    ----------
    frame, psi
        The model and its variances.
    work
        As `scglmm.engine.posterior.posterior` leaves it.

    Returns
    -------
    At fixed beta, and with the estimation of beta counted in.
    """
    given_beta, counted = [], []
    U, C = work.fixed[1], work.schur[1]
    for place, root in zip(_places(frame), _roots(frame, psi), strict=True):
        inverse = work.inverse[place.pair]
        u = U[place.effect]
        given_beta.append(root @ inverse @ root.T)
        counted.append(root @ (inverse + u @ C @ u.transpose(0, 2, 1)) @ root.T)
    return given_beta, counted


class _Place:
    """Where the engine keeps the effects of the levels of a term, and the products of two of them."""

    def __init__(self, frame: Frame, stratum: np.ndarray, first: int, c: int) -> None:
        slots = np.arange(first, first + c)
        self.effect = frame.structure.z_column[stratum][:, slots]  # (levels, columns)
        a, b = np.maximum.outer(slots, slots), np.minimum.outer(slots, slots)
        self.pair = frame.structure.place[stratum][:, a * (a + 1) // 2 + b]  # (levels, columns, columns)


def _places(frame: Frame) -> list[_Place]:
    places, first = [], 0
    for term in frame.terms:
        stratum = np.empty(term.n_levels, np.int64)
        stratum[term.codes] = np.arange(term.codes.size)  # any stratum of the level will do
        places.append(_Place(frame, stratum, first, len(term.columns)))
        first += len(term.columns)
    return places


def _roots(frame: Frame, psi: np.ndarray) -> list[np.ndarray]:
    """Lambda of every term in the user's units: u = Lambda v."""
    return [root / term.scale[:, None] for term, root in zip(frame.terms, roots(frame, psi), strict=True)]
