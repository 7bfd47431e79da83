"""What one piece of advice is, and the words they share."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from scglmm.formula import RandomTerm

from .layout import Layout

WARNING, NOTE = "warning", "note"
OVERLAP = "these variances overlap"  # of the notes of `scglmm.formula`


@dataclass(frozen=True)
class Advice:
    """One thing to say about a design.

    Attributes
    ----------
    check
        Name of the check.
    severity
        `"warning"` or `"note"`.
    what
        What is wrong, with the names and numbers of this data set: a sentence without its full stop.
    what_to_do
        What to do about it, the same.
    """

    check: str
    severity: str
    what: str
    what_to_do: str

    def __str__(self) -> str:
        return f"{self.what}: {self.what_to_do}."


def simple_groups(layout: Layout) -> list[str]:
    """Give the grouping factors that are one column of obs."""
    return [group for group in layout.groups if ":" not in group]


def listed(names: list[str]) -> str:
    """Write names as 'a', 'b' and 'c'."""
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def count(some: int, total: int) -> str:
    """Write how many levels of all."""
    return f"all {total:,} levels" if some == total else f"{some:,} of {total:,} levels"


def some(layout: Layout, group: str, levels: np.ndarray) -> str:
    """Name the first few levels."""
    names = layout.level_names(group)
    shown = ", ".join(repr(names[i]) for i in levels[:3])
    return shown if levels.size <= 3 else f"{shown}, ..."


def things(group: str) -> str:
    """Name in the plural what a grouping factor groups by, where its own name is a word for that."""
    found = re.fullmatch(r"(donor|patient|subject|individual|sample|animal|person)s?(_?id)?", group, re.I)
    return f"{found[1].lower()}s" if found else "donors"


def short(term: RandomTerm) -> str:
    """Spell a random term without the intercept that goes without saying."""
    return str(term).replace("(1 + ", "(", 1)


def tick(name: str) -> str:
    """Spell a variable as in a formula."""
    return name if re.fullmatch(r"[A-Za-z_.][\w.]*|\w+\(.*\)", name) else f"`{name}`"


def has(part: str) -> str:
    """Put the verb behind a number."""
    number, rest = part.split(" ", 1)
    return f"{number} {'has' if number == '1' else 'have'} {rest}"
