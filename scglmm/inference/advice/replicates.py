"""Whether an effect has enough replicates, cells, and variation of its own to be estimated."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .collinearity import collinear_terms
from .layout import Layout, Variable
from .wording import NOTE, OVERLAP, WARNING, Advice, count, has, listed, simple_groups, some, things

MIN_REPLICATES = 3  # of every group of a factor
MIN_DF = 3
RARE = 20  # cells
MAX_INFLATION = 10.0


def few_replicates(layout: Layout) -> Iterator[Advice]:
    """Find levels of factors with hardly any replicates."""
    for variable in layout.variables.values():
        if (said := _few(layout, variable)) is not None:
            yield said


def _few(layout: Layout, variable: Variable) -> Advice | None:
    """Judge the number of replicates that the levels of a factor have."""
    name = variable.name
    carried = layout.carrier(variable)
    if not variable.is_factor or carried is None:
        return None
    group, _ = carried
    n_levels = layout.groups[group].n_levels
    have = dict(zip(variable.levels, layout.groups_per_level(variable, group), strict=True))
    few = {level: found for level, found in have.items() if found.size < MIN_REPLICATES}
    if len(have) == n_levels:
        return Advice(
            "confounded",
            WARNING,
            f"{name!r} has a level for each of the {n_levels:,} levels of {group!r}, so that neither can be told from "
            "the other",
            f"take {name!r} or the random effect of {group!r} out of the formula",
        )
    if few:
        parts = [f"{found.size} {name} = {level!r} ({some(layout, group, found)})" for level, found in few.items()]
        alone = min(found.size for found in few.values()) == 1
        return Advice(
            "few_replicates",
            WARNING,
            f"Of the {n_levels:,} levels of {group!r} only {' and '.join(has(part) for part in parts)}",
            "the effect of a single replicate cannot be told from that of its level, so add replicates, merge the "
            "level with another one or leave it out"
            if alone
            else f"fewer than {MIN_REPLICATES} show next to nothing, so add replicates, merge the level with another "
            "one or leave it out",
        )
    for simple in simple_groups(layout):
        mixed = layout.mixed(variable.codes, simple)
        if 0 < mixed.size < MIN_REPLICATES and (simple == group or {simple, name} <= set(group.split(":"))):
            return Advice(
                "few_replicates",
                WARNING,
                f"Only {count(mixed.size, layout.groups[simple].n_levels)} of {simple!r} "
                f"{'has' if mixed.size == 1 else 'have'} more than one level of {name!r} "
                f"({some(layout, simple, mixed)})",
                f"add {things(simple)} with all of them, or compare different {things(simple)} by (1|{simple}) alone",
            )
    return None


def few_df(layout: Layout) -> Iterator[Advice]:
    """Find effects for which hardly any replicates are left once the other coefficients have theirs."""
    said = {name for name, variable in layout.variables.items() if _few(layout, variable) is not None}
    left: dict[tuple[float, str], list[str]] = {}
    for name, (df, group) in layout.term_df.items():
        overlap = df <= 0 and any(OVERLAP in note for note in layout.design.notes)
        if df < MIN_DF and not overlap and not said & set(layout.products.get(name, [])):
            left.setdefault((df, group), []).append(name)
    for (df, group), names in left.items():
        freedom = "No degree" if df <= 0 else f"Only {df:g} degree{'s' if df > 1 else ''}"
        yield Advice(
            "few_df",
            WARNING,
            f"{freedom} of freedom {'are' if df > 1 else 'is'} left to test {listed(names)}, with the "
            f"{layout.groups[group].n_levels:,} levels of {group!r} as replicates",
            "take covariates that vary between them out of the formula, or add replicates",
        )


def rare_levels(layout: Layout) -> Iterator[Advice]:
    """Find levels, and combinations of levels, with hardly any cells."""
    said: set[str] = set()
    for parts in layout.products.values():
        variables = [layout.variables[name] for name in parts]
        if not variables or not all(v.is_factor for v in variables):
            continue
        shape = [len(v.levels) for v in variables]
        cells = np.bincount(
            np.ravel_multi_index([v.codes for v in variables], shape), layout.n_cells, int(np.prod(shape))
        )
        for i in np.flatnonzero((cells > 0) & (cells < RARE)):
            at = np.unravel_index(i, shape)
            where = [f"{v.name} = {v.levels[j]!r}" for v, j in zip(variables, at, strict=True)]
            if said & set(where):
                continue  # a rare level is rare in every combination
            if len(where) == 1:
                said.add(where[0])
            yield Advice(
                "rare_level",
                WARNING,
                f"Only {int(cells[i])} of {layout.n_total:,} cells have {' and '.join(where)}, where most genes have "
                "no counts and so no estimate (status `separated`)",
                "merge the level with another one, or leave these cells out"
                if len(where) == 1
                else "leave the interaction out, or merge levels",
            )


def collinear(layout: Layout) -> Iterator[Advice]:
    """Find terms that nearly say the same."""
    for found in collinear_terms(layout):
        if found.inflation < MAX_INFLATION / 2:
            continue
        between = f" between the levels of {found.group!r}" if found.group else ""
        one, other = listed(found.terms), listed(found.others)
        yield Advice(
            "collinear",
            WARNING if found.inflation > MAX_INFLATION else NOTE,
            f"{one} and {other} are nearly collinear, since {found.explained:.1%} of the variance of {one}{between} "
            f"follows from {other}, which multiplies the variance of its estimate by {found.inflation:.0f}",
            "take one of them out of the formula, or add replicates in which they differ",
        )
