"""The table of shrunken effects, ``varm["{key}_shrunken"]``: a column for each coefficient (and group) and number."""

from __future__ import annotations

from scglmm.results.names import SEPARATOR, compose

SHRUNKEN = ("log_fc", "sd", "lfsr", "svalue", "lfdr")
"""Numbers of a shrunken effect."""


def shrunken_column(group: str | None, coef: str, number: str) -> str:
    """Column of one number of a shrunken effect."""
    return f"{compose(group, coef)}{SEPARATOR}{number}"
