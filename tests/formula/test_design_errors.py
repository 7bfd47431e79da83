"""What bad input gets, aliased columns, and new data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scglmm.formula import Design, DesignError, FormulaError, build_design, design_matrix, parse_formula
from scglmm.formula.rank import aliased_columns

N = 240
rng = np.random.default_rng(1)
donor = rng.permutation(np.arange(N) % 24)
AD = donor % 3 == 1
X, Z = rng.normal(size=(2, N))
OBS = pd.DataFrame(
    {
        "donor": pd.Categorical([f"D{d:02d}" for d in donor], categories=[f"D{d:02d}" for d in range(30)]),
        "Dx": pd.Categorical(
            np.array(["Control", "AD", "MCI"])[donor % 3], categories=["Control", "AD", "MCI", "Other"]
        ),
        "Sex": np.array(["M", "F"])[donor // 3 % 2],
        "Age": 60.0 + donor,
        "libSize": rng.integers(500, 40_000, N),
        "batch": rng.integers(1, 5, N),
        "flag": rng.random(N) < 0.4,
        "x": X,
        "z": Z,
    },
    index=[f"c{i}" for i in range(N)],
)


def design(text: str, obs: pd.DataFrame = OBS) -> Design:
    return build_design(parse_formula(text), obs)


def fails(text: str, obs: pd.DataFrame = OBS, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as caught:
        design(text, obs)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("text", "near"),
    [("~ age", "'Age'"), ("~ (1|Donor)", "'donor'"), ("~ offset(log(libsize))", "'libSize'"), ("~ qqq", "'flag'")],
)
def test_a_column_that_does_not_exist(text: str, near: str):
    assert near in fails(text, error=KeyError)


def test_the_index_is_no_column():
    assert "index" in fails("~ cell_id", OBS.rename_axis("cell_id"), KeyError)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        # constant, in any guise
        ("~ one", ["'one' is constant", "the level 'b1'", "240 cells"]),
        ("~ Dx + zero", ["'zero' is constant", "the value 0"]),
        ("~ scale(zero)", ["'scale(zero)' is constant"]),
        ("~ I(zero + 2)", ["constant", "the value 2"]),
        ("~ x:one", ["'one' is constant"]),
        ("~ C(zero)", ["constant"]),
        ("~ bs(zero, df=4)", ["'bs(zero, df=4)'"]),
        ("~ (zero|donor)", ["'zero' is constant"]),
        ("~ (one|donor)", ["'one' is constant"]),
        # undefined
        ("~ log(Age - 70)", ["'log(Age - 70)' is infinite or undefined in", "'Age' runs from 60 to 83"]),
        ("~ I(1 / half)", ["infinite", "120 of 240"]),
        ("~ (log(half)|donor)", ["infinite", "120 of 240"]),
        ("~ offset(log(half))", ["120 of 240 cells", "because 'half' is 0 there", "adata.obs['half'] > 0"]),
        ("~ offset(sqrt(x))", ["The offset", "undefined", "'x' runs from"]),
        ("~ infinite", ["'infinite' is infinite in 1 of 240 cells"]),
        ("~ (1|infinite)", ["'infinite' is infinite"]),
        # grouping factors
        ("~ (1|one)", ["'one' has one level ('b1')"]),
        ("~ (1|cell)", ["as many levels as there are cells (240)", "donor"]),
        ("~ (1|x)", ["as many levels as there are cells"]),
        ("~ (1|donor/Dx)", ["(1|donor) and (1|donor:Dx)", "same way"]),
        ("~ (1|donor) + (1|copy)", ["(1|donor) and (1|copy)", "same way"]),
        # levels
        ("~ C(Dx, Treatment('Ctrl'))", ["no level 'Ctrl'", "did you mean 'Control'", "'AD', 'MCI'"]),
        ("~ C(Dx, levels=['Control', 'AD'])", ["leaves out 'MCI'"]),
        ("~ I(Sex == 'Male')", ["no level 'Male'", "'F', 'M'"]),
        ("~ hidden", ["two underscores", "'__a'"]),
        ("~ cell", ["240 coefficients", "240 cells"]),
        ("~ C(x)", ["coefficients"]),
        # functions
        ("~ log(Dx)", ["'Dx' is a factor", "'Control'"]),
        ("~ offset(Dx)", ["The offset 'Dx' is not one number per cell"]),
        ("~ offset(bs(x, df=4))", ["not one number per cell"]),
        ("~ bs(x, df=2)", ["'bs(x, df=2)' cannot be computed"]),
        ("~ bs(x, degrees=2)", ["cannot be computed"]),
        ("~ 0 + (1|donor)", ["no columns", "'~ 1'"]),
        # types
        ("~ date", ["datetime64", "Convert it"]),
        ("~ mixed", ["mixes types (int, str)"]),
        ("~ complex", ["complex128"]),
        ("~ (1|long)", ["too large", "astype(str)"]),
    ],
)
def test_bad_input(text: str, parts: list[str]):
    obs = OBS.assign(
        one="b1",
        zero=0,
        half=np.arange(N) % 2,
        infinite=np.where(np.arange(N) == 5, np.inf, 1.0 * np.arange(N)),
        cell=OBS.index,
        copy=OBS["donor"].astype(str).str.lower(),
        hidden=np.where(OBS["flag"], "__a", "b"),
        date=pd.Timestamp("2024-01-01"),
        mixed=pd.Series([1, "a"] * (N // 2), index=OBS.index, dtype=object),
        complex=1j * OBS["x"],
        long=2**60 + donor,
    )
    message = fails(text, obs)
    for part in parts:
        assert part in message


def test_too_many_levels():
    obs = pd.DataFrame({"g": np.arange(3000) % 1500, "a": np.arange(3000) % 60, "b": np.arange(3000) % 50})
    assert "random effect, (1|g)" in fails("~ g", obs.assign(g=obs["g"].astype(str)), DesignError)
    assert "3,000 combinations" in fails("~ a:b", obs.astype(str), DesignError)


def test_no_rows_and_doubled_columns():
    assert "no rows" in fails("~ 1", OBS.iloc[:0])
    doubled = pd.concat([OBS, OBS[["x"]]], axis=1)
    assert "2 columns named 'x'" in fails("~ x", doubled)
    assert design("~ z", doubled).columns == ["(Intercept)", "z"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log", "~ log(x + 9)"),
        ("log", "~ offset(log(libSize))"),
        ("exp", "~ (exp(x)|donor)"),
        ("C", "~ C(batch)"),
        ("np", "~ np.exp(x)"),
        ("I", "~ I(x**2)"),
        ("scale", "~ log(libSize) + bs(scale(x))"),
    ],
)
def test_a_column_named_like_a_function(name: str, text: str):
    obs = OBS.assign(**{name: np.arange(N)})
    message = fails(text, obs, FormulaError)
    assert repr(name) in message
    assert "rename" in message
    # where it is not called it is a column like any other
    assert design(f"~ {name} + z", obs).columns == ["(Intercept)", name, "z"]


# -------------------------------------------------------------------------------------------------------- rank of X


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("~ x + twice", ["twice = 3 (Intercept) + 2 x", "Take one of x, twice"]),
        ("~ twice + x", ["x = -1.5 (Intercept) + 0.5 twice"]),
        ("~ 0 + x + z + sum", ["sum = x + z", "Take one of x, z, sum"]),
        ("~ Dx + AD", ["AD = Dx[T.AD]"]),
        ("~ donor + Dx", ["Dx[T.AD] = ", "Dx[T.MCI] = ", "2 of 26"]),
        ("~ x + tiny", ["tiny = 1e-09 x"]),
        ("~ huge + x", ["x = 1e-12 huge"]),
        ("~ cr(x, df=4)", ["cr(x, df=4)[4] = (Intercept) - ", "constraints='center'", "bs()"]),
        ("~ cr(x, df=4) + Dx - 1", ["factor do without an intercept", "cr(x, df=4, constraints='center')"]),
        ("~ cc(x, df=4)", ["constraints='center'"]),
        ("~ x + bs(x, df=4)", ["Take one of x, bs(x, df=4)"]),
        ("~ Dx*only", ["Dx[T.AD]:only[T.yes] = 0 in every cell", "No cell has this combination"]),
        ("~ (x + twice|donor)", ["The effects of (1 + x + twice|donor)", "twice = 3 (Intercept) + 2 x"]),
    ],
)
def test_aliased_columns(text: str, parts: list[str]):
    obs = OBS.assign(
        twice=2 * X + 3,
        sum=X + Z,
        AD=AD.astype(int),
        tiny=1e-9 * X,
        huge=1e12 * X,
        only=np.where((OBS["Dx"] != "AD") & OBS["flag"], "yes", "no"),
    )
    message = fails(text, obs, DesignError)
    for part in parts:
        assert part in message


def test_neither_unit_nor_zero_of_a_covariate_matters():
    rng = np.random.default_rng(0)
    obs = OBS.assign(
        a=1e-8 * rng.random(N), b=1e6 * OBS["Age"], c=1e12 * rng.random(N), epoch=1.7e9 + rng.random(N), d=1e-30 * X
    )
    assert design("~ a + b + c + epoch + d + Dx", obs).X.shape == (N, 8)
    assert "c2 = c" in fails("~ a + c + c2", obs.assign(c2=obs["c"]), DesignError)
    assert "epoch2" in fails("~ epoch + epoch2", obs.assign(epoch2=obs["epoch"] + 100), DesignError)


def test_the_rank_is_found_by_blocks(monkeypatch):
    rng = np.random.default_rng(3)
    x = np.column_stack([np.ones(1000), rng.normal(size=(1000, 4))])
    x = np.column_stack([x, x[:, 1] - 2 * x[:, 3] + 5])
    monkeypatch.setattr("scglmm.formula.rank.ROWS", 7)
    assert aliased_columns(x, intercept=True)[5] == pytest.approx({0: 5, 1: 1, 3: -2})
    assert aliased_columns(x[:, :5], intercept=True) == {}


@pytest.mark.parametrize("factor", [1e300, 1e-300, 1e101, 1e-120])
@pytest.mark.parametrize("formula", ["~ x", "~ Dx + z:x", "~ Dx + (x|donor)"])
def test_values_that_cannot_be_squared(formula: str, factor: float):
    with pytest.raises(DesignError, match=r"x' has values up to .*: give it in other units"):
        build_design(parse_formula(formula), OBS.assign(x=(1 + np.abs(X)) * factor))


@pytest.mark.filterwarnings("error")
def test_infinite_times_zero():
    """An interaction with an infinite column says so, without a warning of numpy's."""
    with pytest.raises(DesignError, match="infinite or undefined"):
        build_design(parse_formula("~ Dx:I(x // 0)"), OBS)


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_rank_of_random_designs(seed: int, intercept: bool):
    rng = np.random.default_rng(seed)
    n, p = 60, int(rng.integers(2, 8))
    x = rng.normal(size=(n, p)) * 10.0 ** rng.integers(-12, 13, p)
    if intercept:
        x[:, 0] = 1.0
        x[:, 1:] += 100 * np.abs(x[:, 1:]).max(axis=0)
    assert aliased_columns(x, intercept) == {}
    # a column made of some of the others, put at the end
    made_of = np.flatnonzero(rng.random(p) < 0.5)
    made_of = made_of if len(made_of) else np.array([p - 1])
    weights = rng.uniform(1, 2, len(made_of)) / np.abs(x[:, made_of]).max(axis=0)
    made = x[:, made_of] @ weights
    found = aliased_columns(np.column_stack([x, made]), intercept)
    if intercept and set(made_of) == {0}:
        assert found == {p: pytest.approx({0: weights[0]})}
        return
    assert list(found) == [p]
    rebuilt = sum(c * x[:, i] for i, c in found[p].items())
    np.testing.assert_allclose(rebuilt, made, rtol=1e-6, atol=1e-6 * np.abs(made).max())


# ----------------------------------------------------------------------------------------------------------- new data


def test_new_data_keep_what_was_learned():
    found = design("~ scale(x) + poly(z, 2) + Dx + C(batch, Treatment(2)) + flag")
    new = OBS.iloc[:4].assign(x=[10.0, 0, 0, 0], Dx=["AD", "AD", "Control", "AD"], batch=[1.0, 2, 1, 2], flag=True)
    coded = design_matrix(found, new)
    assert coded[0, 1] == pytest.approx((10 - X.mean()) / X.std(ddof=1))
    columns = dict(zip(found.columns, coded.T, strict=True))
    np.testing.assert_array_equal(columns["Dx[T.AD]"], [1, 1, 0, 1])
    np.testing.assert_array_equal(columns["Dx[T.MCI]"], 0)
    np.testing.assert_array_equal(columns["C(batch, Treatment(2))[T.1]"], [1, 0, 1, 0])
    np.testing.assert_array_equal(columns["flag[T.True]"], 1)
    assert design_matrix(found, OBS.iloc[:0]).shape == (0, len(found.columns))


@pytest.mark.parametrize(
    ("change", "error", "parts"),
    [
        ({"Dx": "Other"}, DesignError, ["'Dx' has the level 'Other'", "'Control', 'AD', 'MCI'"]),
        ({"Dx": pd.Categorical(["AD", "??", "AD"])}, DesignError, ["'??'"]),
        ({"batch": 9}, DesignError, ["'batch' has the level '9'", "'1', '2', '3', '4'"]),
        ({"batch": 1.5}, DesignError, ["'1.5'"]),
        ({"x": "a"}, ValueError, ["'x' is a number in the model"]),
        ({"x": [np.nan, 1, 2]}, ValueError, ["'x' are missing (NaN) in 1 of 3 rows"]),
        ({"Dx": None}, ValueError, ["'Dx' are missing"]),
        ({"x": np.inf}, ValueError, ["infinite"]),
        ({"libSize": 0}, DesignError, ["'log(libSize)' is infinite or undefined in 3 of 3"]),
    ],
)
def test_new_data_that_do_not_fit(change: dict, error: type[Exception], parts: list[str]):
    found = design("~ x + Dx + C(batch) + log(libSize)")
    with pytest.raises(error) as caught:
        design_matrix(found, OBS.iloc[:3].assign(**change))
    for part in parts:
        assert part in str(caught.value)
    with pytest.raises(KeyError, match="'Dx'"):
        design_matrix(found, OBS.drop(columns="Dx"))
