from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scglmm.results.names import (
    check_distinct,
    coefficients_of,
    compose,
    field,
    near_first,
    readable,
    split_columns,
    storable,
)

NAMES = st.lists(st.text("ab|/∕:[]. ", min_size=1, max_size=6), min_size=1, max_size=5, unique=True)


def test_slash_is_replaced_and_given_back():
    assert storable("I(a / b)") == "I(a ∕ b)"
    assert readable("I(a ∕ b)") == "I(a / b)"
    assert field("Dx[T.AD]:I(a / b)") == "Dx[T.AD]∶I(a ∕ b)"
    assert readable(field("Dx[T.AD]:I(a / b)")) == "Dx[T.AD]:I(a / b)"


def test_groups_and_names_may_contain_the_separator():
    groups, names = ["B", "B|naive"], ["Dx[T.AD]", "I(a | b)"]
    columns = [compose(g, n) for g in groups for n in names]
    assert columns[-1] == "B|naive|I(a | b)"
    assert list(split_columns(columns, groups, names).values()) == [(g, n) for g in groups for n in names]


def test_other_columns_are_left_out():
    assert split_columns(["T|x", "T|other", "x"], ["T"], ["x"]) == {"T|x": ("T", "x")}
    assert split_columns(["T|x", "x"], None, ["x"]) == {"x": (None, "x")}


@settings(deadline=None)
@given(groups=NAMES, names=NAMES)
def test_split_inverts_compose_or_the_collision_is_refused(groups, names):
    try:
        check_distinct(names, groups)
    except ValueError:
        columns = [compose(g, n) for g in groups for n in names]
        assert len(set(columns)) < len(columns)
        return
    for group in groups:
        for name in names:
            found = split_columns([compose(group, name)], groups, names)
            assert list(found.values()) == [(storable(group), storable(name))]


def test_collisions_name_both_sides():
    with pytest.raises(ValueError, match=r"'naive\|x' of group 'B' and 'x' of group 'B\|naive'.*'B\|naive\|x'"):
        check_distinct(["naive|x", "x"], ["B", "B|naive"])
    with pytest.raises(ValueError, match="both be stored as 'a∕b'"):
        check_distinct(["a/b", "a∕b"])


def test_near_names_come_first():
    names = [f"gene{i}" for i in range(30)] + ["Dx[T.AD]"]
    assert near_first("dx[t.ad]", names).startswith("'Dx[T.AD]'")
    assert near_first("dx[t.ad]", names).endswith("and 11 more")


def test_coefficients_of_a_factor_leave_out_interactions():
    coefficients = ["Dx[T.AD]", "Dx[T.a:b]", "Dx[T.AD]:Sex[T.M]", "DxOther[T.x]", "Sex[T.M]"]
    assert coefficients_of("Dx", coefficients) == ["Dx[T.AD]", "Dx[T.a:b]"]
