"""Random effects that are not identified, or hang on few levels or few cells."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .layout import Layout
from .wording import NOTE, WARNING, Advice, count, short, simple_groups, some

SMALL_GROUP = 10  # cells
FEW_LEVELS = 5  # of a grouping factor


def constant_slopes(layout: Layout) -> Iterator[Advice]:
    """Find random slopes of covariates that do not vary within the levels."""
    for term, written in zip(layout.frame.terms, layout.design.formula.random, strict=True):
        still = [
            column
            for j, column in enumerate(term.columns)
            if column != "(Intercept)" and not layout.mixed(term.covariates[:, j], term.group).size
        ]
        if still:
            yield Advice(
                "constant_slope",
                WARNING,
                f"In {short(written)}, {' and '.join(still)} {'is' if len(still) == 1 else 'are'} constant within "
                f"every level of {term.group!r}, so that no level shows a slope and its variance is not identified",
                f"write (1|{written.group}) in its place",
            )


def few_levels(layout: Layout) -> Iterator[Advice]:
    """Find variances that too few levels have to tell."""
    carriers = [layout.carrier(variable) for variable in layout.variables.values()]
    for group, term in layout.groups.items():
        if term.n_levels < FEW_LEVELS:
            needed = group in [carried[0] for carried in carriers if carried is not None]
            yield Advice(
                "few_levels",
                WARNING if term.n_levels == 2 else NOTE,
                f"The grouping factor {group!r} has only {term.n_levels} levels, which tell "
                f"{'next to nothing' if term.n_levels == 2 else 'little'} about the variance between them",
                "add replicates, since tests between so few show little" if needed else "consider it as a fixed effect",
            )
    for term, written in zip(layout.frame.terms, layout.design.formula.random, strict=True):
        c = len(term.columns)
        if c > 1 and term.n_levels <= c * (c + 1) // 2:
            effects = written.effects.removeprefix("1 + ")
            simpler = f"(1|{written.group}) + (1|{written.group}:{effects})"
            yield Advice(
                "few_levels",
                WARNING,
                f"{short(written)} asks for {c * (c + 1) // 2} variances and covariances of {term.n_levels} levels of "
                f"{term.group!r}",
                f"write {simpler if effects in layout.design.factors else f'(1|{written.group})'}",
            )


def dominant_level(layout: Layout) -> Iterator[Advice]:
    """Find a level that has most of the cells."""
    carriers = [layout.carrier(variable) for variable in layout.variables.values()]
    replicates = {carried[0] for carried in carriers if carried is not None} or set(list(layout.groups)[:1])
    for group in simple_groups(layout):
        if group not in replicates:
            continue
        cells = layout.cells_per_level(group)
        share = cells.max() / layout.n_total
        if share > max(0.5, 2 / cells.size):
            name = layout.level_names(group)[int(cells.argmax())]
            yield Advice(
                "dominant_level",
                WARNING,
                f"The level {name!r} of {group!r} has {int(cells.max()):,} of {layout.n_total:,} cells ({share:.0%}), "
                "so that genes without variance between levels are tested on it almost alone",
                "see whether the results stand without it, or use a random part of its cells",
            )


def small_groups(layout: Layout) -> Iterator[Advice]:
    """Find levels with hardly any cells."""
    for group in simple_groups(layout):
        cells = layout.cells_per_level(group)
        small = np.flatnonzero(cells < SMALL_GROUP)
        if small.size:
            yield Advice(
                "small_groups",
                NOTE,
                f"{count(small.size, cells.size)} of {group!r} {'has' if small.size == 1 else 'have'} fewer than "
                f"{SMALL_GROUP} cells ({some(layout, group, small)})",
                "no harm, since they count for as little as they tell, but they are no full replicates",
            )
