"""New data with offsets, groups and covariates of random effects, and the left side of a formula."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scglmm.formula import build_design, evaluate_response, new_rows, parse_formula


@pytest.fixture
def obs():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "x": rng.normal(size=60),
            "n": rng.integers(1, 9, 60),
            "a": np.repeat(["a1", "a2", "a3"], 20),
            "b": np.tile([1, 2, 3, 4], 15),
            "f": pd.Categorical(np.tile(["u", "v"], 30), ["never", "v", "u"]),
        }
    )


FORMULA = "~ bs(x, df=4) + offset(log(n)) + offset(scale(x)) + (1 + scale(x) + f|a/b) + (0 + f|b)"


def test_rows_of_the_fit_are_coded_as_they_were(obs):
    design = build_design(parse_formula(FORMULA), obs)
    pick = np.array([5, 59, 5, 17])
    rows = new_rows(design, obs.iloc[pick])
    np.testing.assert_allclose(rows.X, design.X[pick])
    np.testing.assert_allclose(rows.offset, design.offset[pick])
    assert len(rows.random) == len(design.random) == 3
    for new, old in zip(rows.random, design.random, strict=True):
        np.testing.assert_array_equal(new.codes, old.codes[pick])
        np.testing.assert_allclose(new.covariates, old.covariates[pick])
        assert new.unseen == []


def test_new_levels_have_no_code(obs):
    design = build_design(parse_formula("~ x + (1|a/b)"), obs)
    new = pd.DataFrame({"x": [0.0, 1.0, 2.0], "a": ["a1", "a9", "a1"], "b": [4, 1, 9]})
    rows = new_rows(design, new)
    np.testing.assert_array_equal(rows.random[0].codes, [0, -1, 0])
    np.testing.assert_array_equal(rows.random[1].codes, [3, -1, -1])
    assert rows.random[0].unseen == ["a9"]
    assert rows.random[1].unseen == ["a1:9", "a9:1"]
    np.testing.assert_array_equal(rows.offset, 0)


def test_terms_that_are_not_wanted_need_no_columns(obs):
    design = build_design(parse_formula("~ x + (n|a) + (1|b)"), obs)
    rows = new_rows(design, obs[["x", "b"]], [1])
    assert rows.random[0] is None
    assert rows.random[1] is not None
    with pytest.raises(KeyError, match="'n'"):
        new_rows(design, obs[["x", "a"]], [0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f": "w"}, "'f' has the level 'w', unknown to the model"),
        ({"a": None}, "Values of 'a' are missing"),
        ({"n": 0}, r"offset 'log\(n\)' is infinite"),
        ({"n": np.nan}, "Values of 'n' are missing"),
        ({"x": "much"}, "'x' is a number in the model"),
    ],
)
def test_refused(obs, change, message):
    design = build_design(parse_formula("~ x + offset(log(n)) + (f|a)"), obs)
    with pytest.raises(ValueError, match=message):
        new_rows(design, obs.iloc[:3].assign(**change))


def test_response(obs):
    np.testing.assert_allclose(evaluate_response("log(n)", obs), np.log(obs["n"]))
    np.testing.assert_allclose(evaluate_response("n", obs), obs["n"])
    with pytest.raises(ValueError, match="is a factor, and a number is needed"):
        evaluate_response("a", obs)
    with pytest.raises(ValueError, match="not one number per row"):
        evaluate_response("bs(x, df=4)", obs)
    with pytest.raises(KeyError, match="no column 'm'"):
        evaluate_response("m + 1", obs)
