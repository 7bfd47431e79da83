"""Fits of some genes as plain arrays, and back, to the last bit: the form in which they are kept on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from .gene import GeneFit
from .sd_profile import Profile

NESTED = {"profile": Profile}  # fields of a fit that are dataclasses themselves
ABSENT, COUNT = " is there", " count"  # ends of names of arrays; no field ends so


@dataclass(frozen=True)
class Piece:
    """Fits of some genes of one set of cells.

    Attributes
    ----------
    part
        Number of the set of cells.
    at
        (n,) positions among the genes of this set.
    fits
        One for each gene.
    donors
        (n,) levels of the first grouping factor with counts of the gene.
    totals
        (n,) counts.
    """

    part: int
    at: np.ndarray
    fits: list[GeneFit]
    donors: np.ndarray
    totals: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays of numbers or text, none of them of objects."""
        found = {
            "part": np.array(self.part, np.int64),
            "at": np.asarray(self.at, np.int64),
            "donors": np.asarray(self.donors, np.int64),
            "totals": np.asarray(self.totals, np.float64),
        }
        _pack_fields("fit", self.fits, found)
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Piece:
        """Undo `arrays`.

        Raises
        ------
        KeyError, ValueError, IndexError
            These are not such arrays.
        """
        at = arrays["at"]
        fits = _unpack_fields("fit", GeneFit, at.size, arrays)
        if not at.shape == arrays["donors"].shape == arrays["totals"].shape:
            msg = "Arrays of different lengths."
            raise ValueError(msg)
        return cls(int(arrays["part"]), at, fits, arrays["donors"], arrays["totals"])


def join_pieces(pieces: list[Piece]) -> Piece:
    """Put pieces of one set of cells together."""
    return Piece(
        pieces[0].part,
        np.concatenate([piece.at for piece in pieces]),
        [fit for piece in pieces for fit in piece.fits],
        np.concatenate([piece.donors for piece in pieces]),
        np.concatenate([piece.totals for piece in pieces]),
    )


def _pack_fields(name: str, values: list[Any], found: dict[str, np.ndarray]) -> None:
    for field in fields(values[0]):
        _pack(f"{name}.{field.name}", [getattr(value, field.name) for value in values], found)


def _pack(name: str, values: list[Any], found: dict[str, np.ndarray]) -> None:
    """Add the arrays of one field of all genes."""
    there = [value is not None for value in values]
    if not all(there):
        found[name + ABSENT] = np.array(there)
        values = [value for value in values if value is not None]
        if not values:
            return
    if is_dataclass(values[0]):
        _pack_fields(name, values, found)
    elif isinstance(values[0], list):
        found[name + COUNT] = np.array(len(values[0]))
        for i in range(len(values[0])):
            _pack(f"{name}.{i}", [value[i] for value in values], found)
    else:
        array = np.array(values)
        if array.dtype.kind not in "biufU":
            msg = f"{name} has values of type {type(values[0]).__name__}, which cannot be kept."
            raise TypeError(msg)
        found[name] = array


def _unpack_fields(name: str, cls: type, n: int, arrays: Mapping[str, np.ndarray]) -> list[Any]:
    columns = {field.name: _unpack(f"{name}.{field.name}", n, arrays) for field in fields(cls)}
    return [cls(**{key: column[g] for key, column in columns.items()}) for g in range(n)]


def _unpack(name: str, n: int, arrays: Mapping[str, np.ndarray]) -> list[Any]:
    """Values of one field for all genes."""
    if name + ABSENT in arrays:
        there = arrays[name + ABSENT]
        if there.shape != (n,):
            msg = f"{name} is for {there.shape} and not {n} genes."
            raise ValueError(msg)
        values = iter(_unpack_present(name, int(there.sum()), arrays) if there.any() else ())
        return [next(values) if known else None for known in there]
    return _unpack_present(name, n, arrays)


def _unpack_present(name: str, n: int, arrays: Mapping[str, np.ndarray]) -> list[Any]:
    nested = NESTED.get(name.rpartition(".")[2])
    if nested is not None:
        return _unpack_fields(name, nested, n, arrays)
    if name + COUNT in arrays:
        columns = [_unpack(f"{name}.{i}", n, arrays) for i in range(int(arrays[name + COUNT]))]
        return [[column[g] for column in columns] for g in range(n)]
    array = arrays[name]
    if len(array) != n:
        msg = f"{name} is for {len(array)} and not {n} genes."
        raise ValueError(msg)
    return array.tolist() if array.ndim == 1 else [row.copy() for row in array]
