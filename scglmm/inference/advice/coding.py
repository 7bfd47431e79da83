"""Covariates that are coded otherwise than one might think."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from .layout import Layout
from .wording import NOTE, OVERLAP, WARNING, Advice, tick

FAR = 1e4  # a covariate this far from 1 has coefficients that nobody can read
IDENTIFIERS = re.compile(
    r"batch|lane|plate|cluster|leiden|louvain|donor|patient|subject|sample|(^|_)(id|pool)($|_)", re.I
)


def numbers(layout: Layout) -> Iterator[Advice]:
    """Find numbers that look like names, and units that give unreadable coefficients."""
    for name, variable in layout.variables.items():
        if variable.is_factor:
            continue
        if variable.is_discrete and len(variable.levels) > 2 and IDENTIFIERS.search(name):
            yield Advice(
                "number_as_factor",
                NOTE,
                f"{name!r} is a number with {len(variable.levels)} values and has one coefficient, a slope",
                f"if its values are names of groups, write C({name})",
            )
        if len(columns := layout.columns_of.get(name, [])) != 1:
            continue
        x = layout.frame.X[:, columns[0]]
        mean = layout.n_cells @ x / layout.n_total
        sd = math.sqrt(layout.n_cells @ (x - mean) ** 2 / layout.n_total)
        if not 1 / FAR < sd < FAR:
            yield Advice(
                "scale",
                NOTE,
                f"{name!r} has a standard deviation of {sd:.1g}, so that its coefficient, per unit, is a number nobody "
                "can read (the fit does not mind)",
                f"write scale({tick(name)}), or choose another unit",
            )


def coding(layout: Layout) -> Iterator[Advice]:
    """Pass on what was noted when the formula was coded."""
    for note in layout.design.notes:
        what, _, rest = note.rstrip(".").partition(". ")
        # Where variances overlap none carries the effect alone, and genes with a variance of 0 have no p-value.
        severity = WARNING if OVERLAP in note else NOTE
        yield Advice("coding", severity, what, rest[:1].lower() + rest[1:] or "nothing if it is meant")
