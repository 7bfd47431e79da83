"""Reading of contrasts: names that look like anything, arithmetic, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scglmm.formula.combination import parse_combination

NAMES = [
    "(Intercept)",
    "Dx[T.AD]",
    "Dx[T.MCI]",
    "Age",
    "Age2",
    "Dx[T.AD]:Age",
    "cell[T.CD4+ T]",
    "cell[T.a - b]",
    "I(Age ** 2 - 1)",
    "C(x, Treatment('b'))[T.ü ∕ Ω]",
    "bs(Age, df=3)[1]",
    "2nd",
    "x",
]


def parse(text: str) -> dict[str, float]:
    def find(name: str) -> str:
        raise KeyError(name)

    return parse_combination(text, {name: name for name in NAMES} | {"x/y": "x∕y", "x∕y": "x∕y"}, find)


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    assert parse(name) == {name: 1}
    assert parse(f"  - {name}") == {name: -1}
    assert parse(f"({name})/2") == {name: 0.5}
    assert parse(f"Age - 2 * `{name}`") == ({"Age": -1} if name == "Age" else {"Age": 1, name: -2})


def test_arithmetic():
    assert parse("Dx[T.AD] - Dx[T.MCI]") == {"Dx[T.AD]": 1, "Dx[T.MCI]": -1}
    assert parse("Dx[T.AD]-Dx[T.MCI]") == {"Dx[T.AD]": 1, "Dx[T.MCI]": -1}
    assert parse("Dx[T.AD] − Dx[T.MCI]") == {"Dx[T.AD]": 1, "Dx[T.MCI]": -1}
    assert parse("0.5*Dx[T.AD] + Dx[T.AD]:Age * 10") == {"Dx[T.AD]": 0.5, "Dx[T.AD]:Age": 10}
    assert parse("(Age + x) / 2 - -x * (1 + 2) / 1.5e1") == {"Age": 0.5, "x": 0.5 + 0.2}
    assert parse("2 * (3 * (Age - x) - Age)") == {"Age": 4, "x": -6}
    assert parse("cell[T.a - b] - cell[T.CD4+ T]") == {"cell[T.a - b]": 1, "cell[T.CD4+ T]": -1}
    assert parse("x/y") == {"x∕y": 1}
    assert parse("x / 4") == {"x": 0.25}
    assert parse(".5 * Age + 1. * x") == {"Age": 0.5, "x": 1}
    assert parse("Age + x - x") == {"Age": 1}
    assert parse("Age - Age") == {}
    assert parse("0.1 * Age + 0.2 * Age - 0.3 * Age + x") == {"x": 1}
    assert parse("Age + 1 - 1") == {"Age": 1}


combinations = st.lists(st.tuples(st.integers(-9, 9), st.sampled_from(NAMES)), min_size=1, max_size=6)


@given(combinations, st.sampled_from([" ", ""]), st.integers(1, 9))
def test_combinations(parts, space, divisor):
    text = f"{space}+{space}".join(f"({w}){space}*{space}{name}" for w, name in parts)
    expected = dict.fromkeys((name for _, name in parts), 0.0)
    for weight, name in parts:
        expected[name] += weight / divisor
    assert parse(f"({text}) / {divisor}") == pytest.approx({name: w for name, w in expected.items() if abs(w) > 1e-12})


@given(st.text(alphabet="Agex[]()+-*/.0123 :`,=", max_size=30))
def test_anything_is_read_or_refused(text):
    try:
        form = parse(text)
    except (ValueError, KeyError):
        return
    assert set(form) <= {*NAMES, "x∕y"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Age * x", "a contrast is linear"),
        ("2 / Age", "A coefficient cannot be a divisor: a contrast is linear"),
        ("Age / 0", "divides by 0"),
        ("Age ** 2", "no powers"),
        ("Age - 1", "has no constant"),
        ("3", "has no constant"),
        ("Age = 0", "'=' cannot stand here: every contrast is compared with 0"),
        ("Age, x", "are a list of texts"),
        ("Age x", "'x' cannot stand here"),
        ("(Age", "not closed"),
        ("`Age", "not closed"),
        ("Age)", r"'\)' cannot stand here"),
        ("Age +", "Something is missing here"),
        ("", "Something is missing here"),
        ("* Age", r"'\*' cannot stand here: a coefficient or a number is expected"),
        ("1e300 * 1e300 * Age", "too large"),
        ("(" * 60 + "Age" + ")" * 60, "nested too deeply"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Agee", "Agee"),
        ("Dx - Age", "Dx"),
        ("Age - Dx[T.AX] * 2", "Dx[T.AX]"),
        ("2Age", "2Age"),
        ("Age - `no such`", "no such"),
        ("I(Age - 7) + x", "I(Age - 7)"),
        ("__import__('os')", "__import__('os')"),
        ("Dx[T.AD]:x", "Dx[T.AD]:x"),
    ],
)
def test_names_that_are_none(text, name):
    with pytest.raises(KeyError) as error:
        parse(text)
    assert error.value.args == (name,)
