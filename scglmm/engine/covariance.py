"""Covariance matrices of the random terms: Sigma = Lambda Lambda' and its parameters psi."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from .structure import Structure


@dataclass(frozen=True)
class TermParameters:
    """Where the parameters of a random term are.

    Attributes
    ----------
    slot, c
        First slot and number of columns.
    entries
        (c(c+1)/2,) positions in the parameter vector.
    column
        (c(c+1)/2,) column of Lambda of each entry.
    diagonal
        (c(c+1)/2,) bool: which entries are on its diagonal.
    """

    slot: int
    c: int
    entries: np.ndarray
    column: np.ndarray
    diagonal: np.ndarray


def term_parameters(structure: Structure, first: int) -> list[TermParameters]:
    """List the parameters of every term; those of the first begin at position `first`."""
    return list(_term_parameters(structure.psi_at.tobytes(), first))  # the same for every gene


@lru_cache(maxsize=64)
def _term_parameters(psi_at: bytes, first: int) -> tuple[TermParameters, ...]:
    row, column, term = np.frombuffer(psi_at, np.int32).reshape(3, -1)
    terms = []
    for t in np.unique(term):
        at = np.flatnonzero(term == t)
        slot = int(row[at].min())
        diagonal = row[at] == column[at]
        terms.append(TermParameters(slot, int(diagonal.sum()), first + at, column[at] - slot, diagonal))
    return tuple(terms)


def standard_deviations(structure: Structure, first: int) -> np.ndarray:
    """Positions of the diagonal of Lambda in the parameter vector."""
    return _standard_deviations(structure.psi_at.tobytes(), first)


@lru_cache(maxsize=64)
def _standard_deviations(psi_at: bytes, first: int) -> np.ndarray:
    row, column, _ = np.frombuffer(psi_at, np.int32).reshape(3, -1)
    return first + np.flatnonzero(row == column)


def root_of(psi: np.ndarray, c: int) -> np.ndarray:
    """Lambda (c, c) from its entries, column by column."""
    root = np.zeros((c, c))
    root[_upper(c)] = psi
    return root.T


@cache
def _upper(c: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(c)


def reduced_root(psi: np.ndarray, c: int, small: float) -> tuple[np.ndarray, np.ndarray]:
    """Rewrite Lambda without the directions of Sigma that have little variance.

    A singular Sigma of rank r has many roots. The one used here has its first r columns free and the others 0, which
    leaves exactly as many parameters as matrices of rank r have (a zero pivot in the middle would not: it would fix
    the directions that have variance, too).

    Parameters
    ----------
    psi
        Entries of Lambda, column by column.
    c
        Number of columns.
    small
        A direction has little variance when its standard deviation is at most this.

    Returns
    -------
    Entries of the new root, and (c,) bool which columns are 0. The old entries where none is.
    """
    if c == 1:  # by far the most common: no linear algebra
        zero = np.abs(psi) <= small
        return (np.zeros(1) if zero[0] else psi), zero
    root = root_of(psi, c)
    values, vectors = np.linalg.eigh(root @ root.T)
    kept = values > small * small
    zero = np.arange(c) >= kept.sum()
    if not zero.any():
        return psi, zero
    new = np.zeros((c, c))
    r = np.asarray(np.linalg.qr((vectors[:, kept] * np.sqrt(values[kept])).T, mode="r"))
    new[:, : kept.sum()] = r.T
    new *= np.where(np.diag(new) < 0, -1.0, 1.0)
    return new.T[_upper(c)], zero


def null_space(psi: np.ndarray, c: int) -> np.ndarray:
    """Orthonormal basis (c, m) of the directions in which Sigma is 0."""
    if c == 1:
        return np.ones((1, int(abs(psi[0]) <= 1e-6)))
    root = root_of(psi, c)
    values, vectors = np.linalg.eigh(root @ root.T)
    return vectors[:, values <= 1e-12 * max(1.0, values[-1])]
