"""Effects that vary within donors, and names that several donors share."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .layout import Layout, Variable
from .wording import NOTE, WARNING, Advice, count, listed, simple_groups, some, things, tick

STUDIES = re.compile(
    r"stud(y|ies)|cohort|data_?set|project|consorti|(^|_)(site|lab|cent(er|re)|series|source)($|_|id)", re.I
)
PERSONAL = re.compile(r"^(sex|gender|ethnicity|race|ancestry)($|_)", re.I)
NUISANCE = re.compile(
    r"batch|lane|plate|sequenc|chemistry|library|pool|phase|cycle|(^|_)(run|chip|flowcell|sequencer|plex)($|_|id|\d)",
    re.I,
)


def no_random_effect(layout: Layout) -> Iterator[Advice]:
    """Find a formula without random effects."""
    if not layout.groups:
        yield Advice(
            "no_random_effect",
            WARNING,
            "The formula has no random effect, so cells count as independent replicates and p-values are far too small "
            "when cells share donors",
            "add a term such as (1|donor)",
        )


def shared_names(layout: Layout) -> Iterator[Advice]:
    """Find names that seem to stand for different donors in different studies."""
    for group in simple_groups(layout):
        reasons = {n: r for n, v in layout.variables.items() if n != group and (r := _is_shared(layout, v, group))}
        if not reasons:
            continue
        mixed = max((layout.mixed(layout.variables[name].codes, group) for name in reasons), key=len)
        studies = [name for name, reason in reasons.items() if reason == "study"] or list(_studies(layout, group))
        study = tick(studies[0] if studies else "study")
        said = f"{count(mixed.size, layout.groups[group].n_levels)} of {group!r}"
        within = " + ".join(f"(1|{group}:{tick(name)})" for name in reasons)
        yield Advice(
            "shared_names",
            WARNING,
            f"{said[0].upper()}{said[1:]} {'occur in' if mixed.size > 1 else 'occurs in'} more than one level of "
            f"{listed(list(reasons))} ({some(layout, group, mixed)})",
            f"if one name stands for different {things(group)} there, write (1|{study}:{group}) in place of "
            f"(1|{group}), and else (1|{group}) + {within}",
        )


def varies_within(layout: Layout) -> Iterator[Advice]:
    """Find effects that have only cells as replicates."""
    if not layout.groups:
        return
    serious, slopes = [], []
    for name, variable in layout.variables.items():
        if layout.carrier(variable) is not None:
            continue
        if not variable.is_discrete:
            slopes.append(name)
            continue
        group = next(iter(simple_groups(layout)), next(iter(layout.groups)))
        if _is_shared(layout, variable, group):
            continue  # said already
        if NUISANCE.search(name):
            slopes.append(name)
            continue
        serious.append((variable, group))
    if serious:
        group = serious[0][1]
        names = [variable.name for variable, _ in serious]
        n_levels = layout.groups[group].n_levels
        mixed = max(layout.mixed(variable.codes, group).size for variable, _ in serious)
        text = layout.design.formula.text.strip()
        added = "".join(f" + (1|{group}:{tick(name)})" for name in names)
        slope = f", or ({' + '.join(map(tick, names))}|{group}) in place of (1|{group})"
        several = len(names) > 1
        yield Advice(
            "varies_within",
            WARNING,
            f"{listed(names)} {'vary' if several else 'varies'} within {count(mixed, n_levels)} of {group!r}, and no "
            f"random effect lets {'their effects' if several else 'its effect'} differ between them, so that tests "
            "reject too often where it does (15% at a nominal 5% with 8 donors)",
            f"write `{text}{added}`{slope}",
        )
    for name in slopes:
        group = next(iter(layout.groups))
        yield Advice(
            "varies_within",
            NOTE,
            f"{name!r} varies within the levels of {group!r} with the same effect in all of them, so that its test "
            "counts cells as replicates",
            "nothing if it is only adjusted for, but if it is to be tested, add "
            + (f"(1|{group}:{tick(name)})" if layout.variables[name].is_factor else f"(0 + {tick(name)}|{group})"),
        )


def _is_shared(layout: Layout, variable: Variable, group: str) -> str:
    """Why names of levels seem to be shared by different donors: "study", "person", or nothing."""
    if not variable.is_factor:
        return ""
    mixed = layout.mixed(variable.codes, group).size
    if layout.carrier(variable) == (group, True):
        return ""
    if not mixed or any({group, variable.name} <= set(other.split(":")) for other in layout.groups):
        return ""
    if PERSONAL.search(variable.name):
        # a batch is not a person
        return "" if NUISANCE.search(group) else "person"
    if NUISANCE.search(variable.name):
        return ""
    # A treatment within donors is given to most of them.
    few = 2 * mixed < layout.groups[group].n_levels
    return "study" if few or STUDIES.search(variable.name) else ""


def _studies(layout: Layout, group: str) -> Iterator[str]:
    for name, variable in layout.variables.items():
        if STUDIES.search(name) and layout.mixed(variable.codes, group).size:
            yield name
