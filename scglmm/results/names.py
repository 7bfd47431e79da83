"""How genes' tables, coefficients and groups are named where they are stored.

Three rules:

* "/" separates groups in HDF5 and Zarr, so it cannot be part of a key or a column: it is written as "∕"
  (U+2215). Readers accept either spelling.
* A result fitted per group has columns ``{group}|{name}``. A group or a coefficient may contain "|" itself,
  so a column is never split at the character: it is looked up among the compositions of the stored lists.
* The field names of a record array cannot contain ":" in the Zarr v2 format ("not an allowed character in
  buffer field names"), which anndata 0.12 writes by default. There, and only there, ":" is written as "∶"
  (U+2236).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

DIVISION_SLASH = "\u2215"
RATIO = "\u2236"
SEPARATOR = "|"

INTERCEPTS = frozenset({"Intercept", "(Intercept)"})
"""Names of the intercept in a fixed-effects design; it is never a contrast of interest."""


def storable(name: str) -> str:
    """Spelling of `name` in keys and columns: "/" becomes "∕" (U+2215)."""
    return str(name).replace("/", DIVISION_SLASH)


def readable(name: str) -> str:
    """Spelling of `name` for people, in figures: the inverse of `storable` and `field`."""
    return str(name).replace(DIVISION_SLASH, "/").replace(RATIO, ":")


def field(name: str) -> str:
    """Spelling of `name` as a field of a record array: `storable`, and ":" becomes "∶" (U+2236)."""
    return storable(name).replace(":", RATIO)


def compose(group: str | None, name: str) -> str:
    """Column of `name` in a table: ``{group}|{name}``, or the name alone where there are no groups."""
    return storable(name) if group is None else f"{storable(group)}{SEPARATOR}{storable(name)}"


def check_distinct(names: Iterable[str], groups: Iterable[str] | None = None) -> None:
    """Check that names (and groups) stay distinct once they are composed into columns.

    Raises
    ------
    ValueError
        Two of them would share a column, for instance the group "B|naive" with the coefficient "x" and the
        group "B" with the coefficient "naive|x", or "a/b" and "a∕b".
    """
    seen: dict[str, tuple[str | None, str]] = {}
    names = list(names)
    for group in [None] if groups is None else list(groups):
        for name in names:
            column = compose(group, name)
            if column in seen:
                first, second = (_describe(*pair) for pair in (seen[column], (group, name)))
                msg = f"{first} and {second} would both be stored as {column!r}: rename one of them."
                raise ValueError(msg)
            seen[column] = (group, name)


def split_columns(
    columns: Iterable[str], groups: Sequence[str] | None, names: Sequence[str]
) -> dict[str, tuple[str | None, str]]:
    """Group and name of every column that is a composition of the given lists.

    Parameters
    ----------
    columns
        Columns of a stored table.
    groups
        All groups of the result, or None where it has no groups.
    names
        All names that can follow the group.

    Returns
    -------
    Column -> (group, name), in the order of `columns`; columns that no pair composes are left out.
    """
    composed = {
        compose(group, name): (None if group is None else storable(group), storable(name))
        for group in ([None] if groups is None else groups)
        for name in names
    }
    return {str(column): composed[str(column)] for column in columns if str(column) in composed}


def near_first(name: str, valid: Iterable[str], limit: int = 20) -> str:
    """List of the valid names for an error message, those close to `name` first."""
    valid = [str(v) for v in valid]
    lower = {v.lower(): v for v in reversed(valid)}
    near = [lower[match] for match in difflib.get_close_matches(str(name).lower(), lower, n=5, cutoff=0.5)]
    ordered = list(dict.fromkeys(near + valid))
    shown = ", ".join(repr(v) for v in ordered[:limit])
    return f"{shown} and {len(ordered) - limit} more" if len(ordered) > limit else shown


def coefficients_of(factor: str, coefficients: Iterable[str]) -> list[str]:
    """Coefficients of a factor's main effect: for "Dx" those named "Dx[...]"."""
    prefix = f"{storable(factor)}["
    return [c for c in coefficients if c.startswith(prefix) and ":" not in _outside_brackets(c)]


def _outside_brackets(name: str) -> str:
    """Name without what is inside square brackets, where ":" belongs to a level."""
    depth, kept = 0, []
    for character in name:
        depth += (character == "[") - (character == "]")
        if depth == 0:
            kept.append(character)
    return "".join(kept)


def _describe(group: str | None, name: str) -> str:
    return repr(name) if group is None else f"{name!r} of group {group!r}"
