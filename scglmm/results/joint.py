"""The table of joint tests, ``varm["{key}_joint"]``: a column for each test (and group) and each of its numbers."""

from __future__ import annotations

from scglmm.results.names import SEPARATOR, compose

JOINT = ("statistic", "df1", "df2", "pval", "padj")
"""Numbers of a joint test."""


def joint_column(group: str | None, name: str, number: str) -> str:
    """Column of one number of a joint test."""
    return f"{compose(group, name)}{SEPARATOR}{number}"
