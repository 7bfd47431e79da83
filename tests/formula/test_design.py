"""Designs: the numbers against hand-coded ones, and what bad input gets."""

from __future__ import annotations

import pickle

import formulaic
import numpy as np
import pandas as pd
import pytest

from scglmm.formula import (
    Design,
    DesignError,
    FixedTerm,
    build_design,
    design_matrix,
    factor_levels,
    parse_formula,
)

N = 240


def make_obs() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    donor = rng.permutation(np.arange(N) % 24)
    return pd.DataFrame(
        {
            "donor": pd.Categorical([f"D{d:02d}" for d in donor], categories=[f"D{d:02d}" for d in range(30)]),
            "Dx": pd.Categorical(
                np.array(["Control", "AD", "MCI"])[donor % 3], categories=["Control", "AD", "MCI", "Other"]
            ),
            "Sex": np.array(["M", "F"])[donor // 3 % 2],
            "Age": 60.0 + donor,
            "libSize": rng.integers(500, 40_000, N).astype(np.int32),
            "stim": np.array(["ctrl", "stim"])[rng.integers(0, 2, N)],
            "batch": rng.integers(1, 5, N),
            "flag": rng.random(N) < 0.4,
            "x": rng.normal(size=N),
            "z": rng.normal(size=N),
            "my col": rng.normal(size=N),
        },
        index=[f"c{i}" for i in range(N)],
    )


OBS = make_obs()
one = np.ones(N)


def is_(column: str, level: object) -> np.ndarray:
    return (OBS[column] == level).to_numpy(dtype=float)


def col(column: str) -> np.ndarray:
    return OBS[column].to_numpy(dtype=float)


def design(text: str, obs: pd.DataFrame = OBS, **options: str) -> Design:
    return build_design(parse_formula(text), obs, **options)


def fails(text: str, obs: pd.DataFrame = OBS, error: type[Exception] = ValueError, **options: str) -> str:
    with pytest.raises(error) as caught:
        design(text, obs, **options)
    assert type(caught.value) is error or error is ValueError
    return str(caught.value)


# -------------------------------------------------------------------------------------- fixed effects, by hand

AD, MCI, M, STIM = is_("Dx", "AD"), is_("Dx", "MCI"), is_("Sex", "M"), is_("stim", "stim")
X, Z = col("x"), col("z")

BY_HAND = {
    "~ 1": {"(Intercept)": one},
    "~ Dx": {"(Intercept)": one, "Dx[T.AD]": AD, "Dx[T.MCI]": MCI},
    "~ 0 + Dx": {"Dx[Control]": is_("Dx", "Control"), "Dx[AD]": AD, "Dx[MCI]": MCI},
    "~ Dx - 1 + x": {"Dx[Control]": is_("Dx", "Control"), "Dx[AD]": AD, "Dx[MCI]": MCI, "x": X},
    "~ 0 + Dx + Sex": {"Dx[Control]": is_("Dx", "Control"), "Dx[AD]": AD, "Dx[MCI]": MCI, "Sex[T.M]": M},
    "~ x:z + x": {"(Intercept)": one, "x": X, "x:z": X * Z},
    "~ stim*x": {"(Intercept)": one, "stim[T.stim]": STIM, "x": X, "stim[T.stim]:x": STIM * X},
    "~ stim:x": {"(Intercept)": one, "stim[ctrl]:x": (1 - STIM) * X, "stim[stim]:x": STIM * X},
    "~ stim/x": {
        "(Intercept)": one,
        "stim[T.stim]": STIM,
        "stim[ctrl]:x": (1 - STIM) * X,
        "stim[stim]:x": STIM * X,
    },
    "~ Dx*stim": {
        "(Intercept)": one,
        "Dx[T.AD]": AD,
        "Dx[T.MCI]": MCI,
        "stim[T.stim]": STIM,
        "Dx[T.AD]:stim[T.stim]": AD * STIM,
        "Dx[T.MCI]:stim[T.stim]": MCI * STIM,
    },
    "~ (x + z + stim)**2 - z:stim": {
        "(Intercept)": one,
        "x": X,
        "z": Z,
        "stim[T.stim]": STIM,
        "x:z": X * Z,
        "x:stim[T.stim]": X * STIM,
    },
    "~ flag + batch": {"(Intercept)": one, "flag[T.True]": col("flag"), "batch": col("batch")},
    "~ C(batch)": {"(Intercept)": one} | {f"C(batch)[T.{b}]": is_("batch", b) for b in (2, 3, 4)},
    '~ C(Dx, Treatment("AD"))': {
        "(Intercept)": one,
        "C(Dx, Treatment('AD'))[T.Control]": is_("Dx", "Control"),
        "C(Dx, Treatment('AD'))[T.MCI]": MCI,
    },
    "~ C(stim, Sum)": {"(Intercept)": one, "C(stim, Sum)[S.ctrl]": 1 - 2 * STIM},
    "~ C(batch, contr.helmert)": {
        "(Intercept)": one,
        "C(batch, contr.helmert)[H.2]": is_("batch", 2) - is_("batch", 1),
        "C(batch, contr.helmert)[H.3]": 2 * is_("batch", 3) - is_("batch", 1) - is_("batch", 2),
        "C(batch, contr.helmert)[H.4]": 4 * is_("batch", 4) - one,
    },
    "~ scale(x) + I(x**2)": {
        "(Intercept)": one,
        "scale(x)": (X - X.mean()) / X.std(ddof=1),
        "I(x ** 2)": X**2,
    },
    "~ `my col` + I(stim == 'stim')": {"(Intercept)": one, "my col": col("my col"), "I(stim == 'stim')": STIM},
    "~ log(libSize)": {"(Intercept)": one, "log(libSize)": np.log(col("libSize"))},
}


@pytest.mark.parametrize("text", BY_HAND)
def test_fixed_effects_by_hand(text: str):
    found = design(text)
    expected = BY_HAND[text]
    assert found.columns == list(expected)
    np.testing.assert_allclose(found.X, np.column_stack(list(expected.values())), rtol=1e-14, atol=1e-14)
    assert found.X.dtype == np.float64
    assert found.X.flags.c_contiguous
    assert type(found.X) is np.ndarray
    np.testing.assert_array_equal(design_matrix(found, OBS), found.X)
    np.testing.assert_array_equal(design_matrix(found, OBS.iloc[[5, 3]]), found.X[[5, 3]])


@pytest.mark.parametrize(
    "text",
    [
        "Dx*Sex*stim",
        "Dx:Sex + Sex",
        "0 + Dx:stim",
        "bs(x, df=5) + Dx",
        "bs(x, knots=[-0.5, 0.5], degree=2)*stim",
        "cr(x, df=4, constraints='center') + stim",
        "cc(x, df=4) - 1",
        "poly(x, 3) + poly(z, 2, raw=True)",
        "C(Dx, Poly) + C(batch, Diff) + C(stim, contr.SAS)",
        "center(x)*standardize(z)",
        "np.log1p(libSize) + exp(x)",
    ],
)
def test_fixed_effects_are_those_of_formulaic(text: str):
    clean = OBS.assign(Dx=OBS["Dx"].cat.remove_unused_categories())
    expected = formulaic.model_matrix(text, clean, context={"log1p": np.log1p})
    found = design(f"~ {text}")
    assert found.columns == [{"Intercept": "(Intercept)"}.get(name, name) for name in expected.columns]
    np.testing.assert_allclose(found.X, expected.to_numpy(dtype=float), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(design_matrix(found, OBS.iloc[10:50]), found.X[10:50], rtol=1e-12, atol=1e-12)


def test_terms_references_and_factors():
    found = design("~ offset(log(libSize)) + x + Dx*Sex + C(batch, Treatment(2)) + flag + (1|donor)")
    assert found.terms == [
        FixedTerm("x", (1,)),
        FixedTerm("Dx", (2, 3)),
        FixedTerm("Sex", (4,)),
        FixedTerm("C(batch, Treatment(2))", (5, 6, 7)),
        FixedTerm("flag", (8,)),
        FixedTerm("Dx:Sex", (9, 10)),
    ]
    assert found.references == {"Dx": "Control", "Sex": "F", "batch": "2", "flag": "False"}
    assert found.factors == {
        "Dx": ["Control", "AD", "MCI"],
        "Sex": ["F", "M"],
        "batch": ["1", "2", "3", "4"],
        "flag": ["False", "True"],
    }
    assert found.first_factor == "Dx"
    assert found.kept.all()
    assert found.notes == ()
    assert design("~ x + C(batch)").first_factor is None
    assert design("~ 0 + Dx").references == {}
    assert design("~ C(Dx, Sum)").references == {}
    assert design("~ C(Dx, contr.SAS)").references == {"Dx": "MCI"}
    assert design("~ C(Sex)").first_factor == "Sex"


def test_offsets_add_up():
    found = design("~ offset(log(libSize)) + x + offset(z)")
    np.testing.assert_allclose(found.offset, np.log(col("libSize")) + Z, rtol=1e-15)
    assert design("~ x").offset is None


def test_ordered_categories_are_treatment_coded_and_said_so():
    obs = OBS.assign(stage=pd.Categorical(OBS["Dx"].astype(str), ["MCI", "Control", "AD"], ordered=True))
    found = design("~ stage", obs)
    assert found.columns == ["(Intercept)", "stage[T.Control]", "stage[T.AD]"]
    assert "ordered" in found.notes[0]


@pytest.mark.parametrize("dtype", ["object", "string", "category", "str"])
def test_text_of_any_type_is_a_factor(dtype: str):
    found = design("~ Sex + (1|donor)", OBS.assign(Sex=OBS["Sex"].astype(dtype), donor=OBS["donor"].astype(dtype)))
    assert found.columns == ["(Intercept)", "Sex[T.M]"]
    np.testing.assert_array_equal(found.X[:, 1], M)
    assert found.random[0].levels == [f"D{d:02d}" for d in range(24)]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "Int64", "float32", "Float64", "object", "Sparse[int64]"])
def test_numbers_of_any_type_are_numbers(dtype: str):
    found = design("~ batch + (1|batch)", OBS.assign(batch=OBS["batch"].astype(dtype)))
    np.testing.assert_array_equal(found.X[:, 1], col("batch"))
    assert found.random[0].levels == ["1", "2", "3", "4"]


def test_nullable_booleans_are_factors():
    found = design("~ flag", OBS.assign(flag=OBS["flag"].astype("boolean")))
    assert found.columns == ["(Intercept)", "flag[T.True]"]


def test_obs_is_left_alone_and_only_used_columns_are_read():
    obs = OBS.assign(junk=[object()] * N, nan=np.nan)
    before = obs.copy(deep=True)
    design("~ Dx + (1|donor)", obs)
    pd.testing.assert_frame_equal(obs, before)


def test_a_design_can_be_pickled():
    found = design("~ bs(x, df=4) + C(batch, Treatment(2)) + (stim|donor)")
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(design_matrix(again, OBS), found.X)


# -------------------------------------------------------------------------------------------------- random effects


def test_random_intercept_drops_unused_levels():
    term = design("~ Dx + (1|donor)").random[0]
    assert term.group == "donor"
    assert term.levels == [f"D{d:02d}" for d in range(24)]
    assert term.columns == ["(Intercept)"]
    assert term.codes.dtype == np.int32
    np.testing.assert_array_equal(np.array(term.levels)[term.codes], OBS["donor"])
    np.testing.assert_array_equal(term.covariates, np.ones((N, 1)))


def test_interactions_keep_what_occurs():
    obs = OBS[~((OBS["donor"] == "D03") & (OBS["stim"] == "ctrl"))]
    term = design("~ (1|donor:stim)", obs).random[0]
    pairs = obs["donor"].astype(str) + ":" + obs["stim"]
    assert term.levels == sorted(set(pairs))
    assert "D03:ctrl" not in term.levels
    np.testing.assert_array_equal(np.array(term.levels)[term.codes], pairs)


def test_nested_terms():
    terms = design("~ (1|donor/batch)").random
    assert [term.group for term in terms] == ["donor", "donor:batch"]
    expected = OBS.groupby(["donor", "batch"], observed=True).ngroup()
    np.testing.assert_array_equal(terms[1].codes, expected)


def test_levels_of_numbers_and_categories():
    obs = OBS.assign(
        half=OBS["batch"] / 2, order=pd.Categorical(OBS["Sex"], ["M", "F"]), id=np.arange(N)[::-1] // 2 + 10**12
    )
    found = design("~ (1|half) + (1|order) + (1|id)", obs)
    assert [found.random[i].levels[:2] for i in range(3)] == [
        ["0.5", "1"],
        ["M", "F"],
        ["1000000000000", "1000000000001"],
    ]


def test_many_combinations():
    rng = np.random.default_rng(0)
    n = 20_000
    obs = pd.DataFrame({c: rng.integers(0, 6000, n) for c in "abc"})
    term = design("~ (1|a:b:c)", pd.concat([obs, obs.iloc[:500]])).random[0]
    frame = pd.concat([obs, obs.iloc[:500]])
    np.testing.assert_array_equal(term.codes, frame.groupby(["a", "b", "c"]).ngroup())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(stim|donor)", {"(Intercept)": one, "stim[T.stim]": STIM}),
        ("(0 + stim|donor)", {"stim[ctrl]": 1 - STIM, "stim[stim]": STIM}),
        ("(x|donor)", {"(Intercept)": one, "x": X}),
        ("(0 + x|donor)", {"x": X}),
        ("(x + stim|donor)", {"(Intercept)": one, "x": X, "stim[T.stim]": STIM}),
        ("(x*z|donor)", {"(Intercept)": one, "x": X, "z": Z, "x:z": X * Z}),
        ("(scale(x)|donor)", {"(Intercept)": one, "scale(x)": (X - X.mean()) / X.std(ddof=1)}),
        ("(log(libSize)|donor)", {"(Intercept)": one, "log(libSize)": np.log(col("libSize"))}),
    ],
)
def test_covariates(text: str, expected: dict[str, np.ndarray]):
    term = design(f"~ {text}").random[0]
    assert term.columns == list(expected)
    np.testing.assert_allclose(term.covariates, np.column_stack(list(expected.values())), rtol=1e-14)
    assert term.covariates.dtype == np.float64
    assert term.covariates.flags.c_contiguous


def test_uncorrelated_effects():
    terms = design("~ (x||donor)").random
    assert [term.columns for term in terms] == [["(Intercept)"], ["x"]]


def test_factors_of_effects_are_known():
    found = design("~ x + (stim|donor)")
    assert found.factors == {"stim": ["ctrl", "stim"]}
    assert found.references == {}
    assert found.first_factor is None


def test_notes():
    assert "overlap" in design("~ (stim||donor)").notes[0]
    assert design("~ (stim|donor)").notes == ()
    assert design("~ (0 + stim|donor)").notes == ()


# ----------------------------------------------------------------------------------------------------- missing values


def test_missing_values_are_counted():
    obs = OBS.assign(
        x=OBS["x"].where(np.arange(N) >= 3),
        Sex=OBS["Sex"].where(np.arange(N) < N - 2),
        donor=OBS["donor"].where(np.arange(N) != 100),
        batch=OBS["batch"].astype("Int64").where(np.arange(N) != 0),
        text=OBS["Sex"].astype("string").where(np.arange(N) != 7),
    )
    message = fails("~ x + Sex + (1|donor)", obs)
    assert "'x' in 3, 'Sex' in 2, 'donor' in 1 of 240 cells" in message
    assert "leave these 6 cells out with na_action='drop'" in message
    assert "'batch' in 1" in fails("~ offset(batch)", obs)
    assert "'text' in 1" in fails("~ (text|donor)", obs)
    assert design("~ z + (1|stim)", obs).kept.all()

    found = design("~ x + Sex + offset(z) + (1|donor)", obs, na_action="drop")
    kept = (np.arange(N) >= 3) & (np.arange(N) < N - 2) & (np.arange(N) != 100)
    np.testing.assert_array_equal(found.kept, kept)
    full = design("~ x + Sex + offset(z) + (1|donor)")
    np.testing.assert_array_equal(found.X, full.X[kept])
    np.testing.assert_array_equal(found.offset, full.offset[kept])
    np.testing.assert_array_equal(found.random[0].codes, full.random[0].codes[kept])

    assert "na_action" in fails("~ x", obs, na_action="omit")
    assert "No cell is left" in fails("~ x", obs.assign(x=np.nan), DesignError, na_action="drop")


def test_levels_that_only_dropped_cells_have_vanish():
    obs = OBS.assign(x=OBS["x"].where(OBS["Dx"] != "MCI"))
    assert design("~ x + Dx", obs, na_action="drop").columns == ["(Intercept)", "x", "Dx[T.AD]"]
    obs = OBS.assign(x=OBS["x"].where(OBS["Sex"] != "M"))
    assert "'Sex' is constant" in fails("~ x + Sex", obs, DesignError, na_action="drop")


@pytest.mark.parametrize(
    "formula",
    [
        "~ Dx * Sex + Age + (1|donor)",
        "~ C(Dx, Treatment('MCI')) + C(batch) + (stim|donor)",
        "~ C(Dx, Sum) + flag + bs(Age, df=4) + (0 + Sex|donor)",
        "~ offset(log(libSize)) + x + (1|donor)",
    ],
)
def test_levels_without_a_design(formula):
    parsed = parse_formula(formula)
    design = build_design(parsed, OBS)
    assert factor_levels(parsed, OBS) == (design.factors, design.references)


def test_levels_where_there_is_no_design():
    """Columns are aliased, a donor has one cell: the levels are known all the same."""
    obs = OBS.assign(Dx2=OBS["Dx"], cell=[f"c{i}" for i in range(N)])
    parsed = parse_formula("~ Dx + Dx2 + (1|cell)")
    with pytest.raises(DesignError):
        build_design(parsed, obs)
    factors, references = factor_levels(parsed, obs)
    assert factors == {"Dx": ["Control", "AD", "MCI"], "Dx2": ["Control", "AD", "MCI"]}
    assert references == {"Dx": "Control", "Dx2": "Control"}
    with pytest.raises(DesignError, match="'Sex' is constant"):
        factor_levels(parse_formula("~ Sex"), OBS[OBS["Sex"] == "M"])
