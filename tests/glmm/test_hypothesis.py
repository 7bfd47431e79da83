"""Contrasts as text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scglmm.mixed._hypothesis import parse_hypothesis

NAMES = ["(Intercept)", "Dx[T.AD]", "Dx[T.MCI]", "Age", "Dx[T.AD]:Age", "bs(Age, df=4)[1]", "x - y", "I(Age / 2)"]


def parse(text):
    return parse_hypothesis(text, NAMES, lambda values: np.arange(8.0) + len(values))


def weights(**at):
    found = np.zeros(8)
    for name, weight in at.items():
        found[int(name[1:])] = weight
    return found


@pytest.mark.parametrize(
    ("text", "expected", "value"),
    [
        ("Dx[T.AD] - Dx[T.MCI]", weights(_1=1, _2=-1), 0),
        ("Dx[T.AD]-Dx[T.MCI]", weights(_1=1, _2=-1), 0),
        ("-Age", weights(_3=-1), 0),
        ("2*(Dx[T.AD] + Dx[T.AD]:Age)/4 - Age", weights(_1=0.5, _4=0.5, _3=-1), 0),
        ("Age = 10", weights(_3=1), 10),
        ("Age - 1.5e0 = Dx[T.AD] + 2", weights(_3=1, _1=-1), 3.5),
        ("(Intercept) + (Age)", weights(_0=1, _3=1), 0),
        ("bs(Age, df=4)[1]", weights(_5=1), 0),
        ("x - y", weights(_6=1), 0),
        ("I(Age / 2) / 2", weights(_7=0.5), 0),
        ('cond(Dx="A)D", `odd name`=-70, b=True)', np.arange(8.0) + 3, 0),
        ("cond()", np.arange(8.0), 0),
        ("--Age", weights(_3=1), 0),
    ],
)
def test_what_it_means(text, expected, value):
    found, constant = parse(text)
    np.testing.assert_allclose(found, expected)
    assert constant == value


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("Dx[T.ad]", KeyError, "the coefficients are 'Dx\\[T.AD\\]'"),
        ("Age * Age", ValueError, "Coefficients cannot be multiplied: a contrast is linear"),
        ("1 / Age", ValueError, "A coefficient cannot be a divisor"),
        ("Age / 0", ValueError, "divides by 0"),
        ("3", ValueError, "holds no coefficient"),
        ("Age - Age", ValueError, "nothing to test"),
        ("(Age", ValueError, "not closed"),
        ("Age)", ValueError, "cannot stand here"),
        ("Age Age", ValueError, "cannot stand here"),
        ("Age = 1 = 2", ValueError, "cannot stand here"),
        ("", ValueError, "Something is missing here"),
        ("Age -", ValueError, "Something is missing here"),
        ("cond(Age)", ValueError, "takes values of columns"),
        ("cond(Age=1, Age=2)", ValueError, "twice"),
        ("cond(Age=x)", ValueError, "a number or a level in quotes"),
        ("cond(Age=1", ValueError, "not closed"),
        ("__import__('os')", KeyError, "not a coefficient"),
        ("(" * 60 + "Age" + ")" * 60, ValueError, "nested too deeply"),
        ("Age + " * 3000 + "Age", ValueError, "the limit is"),
    ],
)
def test_what_it_refuses(text, error, message):
    with pytest.raises(error, match=message):
        parse(text)


@given(st.text(alphabet=" ()+-*/=.0123456789DxAge[]:T,\"'`cond#", max_size=40))
def test_any_text_gives_weights_or_a_message_of_ours(text):
    try:
        found, value = parse(text)
    except (ValueError, KeyError) as error:
        said = str(error)
        assert len(said) > 20
    else:
        assert found.shape == (8,)
        assert np.isfinite(value)


@given(
    st.lists(
        st.tuples(st.sampled_from(range(8)), st.floats(-100, 100).filter(lambda x: abs(x) > 1e-3)),
        min_size=1,
        max_size=6,
    )
)
def test_sums_written_out_are_read_back(parts):
    expected = np.zeros(8)
    for i, weight in parts:
        expected[i] += weight
    if np.abs(expected).max() < 1e-6:
        return
    found, _ = parse(" + ".join(f"{weight!r} * {NAMES[i]}" for i, weight in parts))
    np.testing.assert_allclose(found, expected, atol=1e-12)
