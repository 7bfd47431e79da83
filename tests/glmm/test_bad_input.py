"""What cannot be fitted is refused before any work, in words that fit a data frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scglmm
from scglmm.mixed._wording import of_data_frame


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    n = 60
    return pd.DataFrame(
        {
            "y": rng.normal(size=n),
            "count": rng.poisson(3, n),
            "x": rng.normal(size=n),
            "g": np.repeat(list("abcdef"), 10),
            "row": np.arange(n),
            "one": "same",
            "f": np.tile(["u", "v", "w"], 20),
        }
    )


def missing(d, column):
    return d.assign(**{column: d[column].where(d["row"] != 3)})


@pytest.mark.parametrize(
    ("formula", "change", "options", "error", "message"),
    [
        ("y ~ x + (1|g)", lambda d: missing(d, "y"), {}, ValueError, "'y' in 1 of 60 rows"),
        ("y ~ x + (1|g)", lambda d: missing(d, "x"), {}, ValueError, "leave these 1 rows out with na_action='drop'"),
        ("y ~ x + (1|g)", lambda d: missing(d, "g"), {}, ValueError, "'g' in 1 of 60 rows"),
        ("y ~ x", lambda d: missing(d, "f"), {"family": "poisson", "ziformula": "~ f"}, ValueError, "'f' in 1 of 60"),
        ("y ~ x", None, {"family": "poisson"}, ValueError, r"'y' is negative in \d+ of 60 rows \(smallest -"),
        ("half ~ x", lambda d: d.assign(half=d["count"] / 2), {"family": "nbinom2"}, ValueError, "fractional in"),
        ("none ~ x", lambda d: d.assign(none=0), {"family": "poisson"}, ValueError, "is 0 in all 60 rows"),
        ("one ~ x", lambda d: d.assign(one=1.5), {}, ValueError, "is 1.5 in all 60 rows"),
        ("y ~ x", lambda d: d.assign(y=np.inf), {}, ValueError, "'y' is infinite in 60 of 60 rows"),
        ("log(count) ~ x", lambda d: d.assign(count=d["row"]), {}, ValueError, "infinite or undefined in 1 of 60 rows"),
        ("f ~ x", None, {}, ValueError, "is a factor, and a number is needed"),
        ("~ x", None, {}, ValueError, "has no left side: name the response, as in 'y ~ x'"),
        ("y ~ x + y", None, {}, ValueError, "'y' stands on both sides"),
        ("y ~ z", None, {}, KeyError, "The data have no column 'z', which the formula uses"),
        ("z ~ x", None, {}, KeyError, "The data have no column 'z'"),
        ("y ~ x + (1|z)", None, {}, KeyError, "The data have no column 'z'"),
        ("y ~ x + twice", lambda d: d.assign(twice=2 * d["x"]), {}, ValueError, "twice = 2 x"),
        ("y ~ one + x", None, {}, ValueError, "'one' is constant: all 60 rows have the level 'same'"),
        ("y ~ x + (1|one)", None, {}, ValueError, "has one level \\('same'\\) in these 60 rows"),
        (
            "y ~ x + (1|row)",
            None,
            {},
            ValueError,
            "every row would be a group of its own. The column that names the group",
        ),
        (
            "y ~ x + (x + f|pair)",
            lambda d: d.assign(pair=d["row"] // 2),
            {},
            ValueError,
            "120 random effects \\(30 levels of 'pair', 4 effects each\\), and there are only 60 observations",
        ),
        ("y ~ x + (1|g", None, {}, ValueError, "never closed"),
        ("y ~ x", lambda d: d.iloc[:0], {}, ValueError, "no rows"),
        ("y ~ x", lambda d: d.assign(y=np.nan), {"na_action": "drop"}, ValueError, "No row is left"),
        ("y ~ x", None, {"na_action": "omit"}, ValueError, "na_action is 'raise' or 'drop'"),
        ("y ~ offset(log(row)) + x", None, {}, ValueError, r"data = data\[data\['row'\] > 0\]"),
        ("y ~ x", None, {"family": "nb"}, ValueError, "'nbinom2' is probably meant"),
        ("y ~ x", None, {"family": "gamma"}, ValueError, "is not one of 'gaussian', 'poisson', 'nbinom2'"),
        ("y ~ x", None, {"ziformula": "~ 1"}, ValueError, "Zero inflation is for counts"),
        ("count ~ x", None, {"ziformula": "~ (1|g)", "family": "poisson"}, ValueError, "takes fixed effects only"),
        ("count ~ x", None, {"ziformula": "y ~ 1", "family": "poisson"}, ValueError, "start it with '~'"),
        ("count ~ x", None, {"ziformula": "~ offset(x)", "family": "poisson"}, ValueError, "it takes none|takes none"),
        ("count ~ x", None, {"ziformula": 1, "family": "poisson"}, TypeError, "ziformula must be a string"),
        ("y ~ x + (1|g)", None, {"n_quad": 9}, ValueError, "fitted exactly"),
        ("count ~ x + (x|g)", None, {"n_quad": 9, "family": "poisson"}, ValueError, "one random term with one effect"),
        ("count ~ x", None, {"n_quad": 9, "family": "poisson"}, ValueError, "the formula has none"),
        ("count ~ (1|g)", None, {"n_quad": 9, "family": "poisson", "reml": True}, ValueError, "use reml=False"),
        ("y ~ x", None, {"n_quad": 0}, ValueError, "1 \\(Laplace\\) or more"),
        ("y ~ x", None, {"reml": "yes"}, TypeError, "reml must be True, False or None"),
        ("y ~ x", None, {"layer": "counts"}, ValueError, "the data are a data frame"),
        ("y ~ __import__('os').system('true')", None, {}, ValueError, "refused"),
    ],
)
def test_refused(data, formula, change, options, error, message):
    given_data = data if change is None else change(data)
    before = given_data.copy()
    with pytest.raises(error, match=message) as caught:
        scglmm.glmm(formula, given_data, **options)
    pd.testing.assert_frame_equal(given_data, before)
    text = caught.value.args[0]
    assert "obs" not in text.replace("observations", "")
    assert "cell" not in text
    assert "adata" not in text


def test_wrong_types(data):
    with pytest.raises(TypeError, match="The formula is the first argument, the data the second"):
        scglmm.glmm(data, "y ~ x")
    with pytest.raises(TypeError, match="data must be a pandas DataFrame or an AnnData, not list"):
        scglmm.glmm("y ~ x", [1, 2])


def test_the_users_own_words_are_left_alone():
    text = "obs has no column 'obs cells', in `adata.obs`.\n    cells ~ adata\n    ^ and 5 cells of 3 donors"
    assert of_data_frame(text) == (
        "The data have no column 'obs cells', in `adata.obs`.\n    cells ~ adata\n    ^ and 5 cells of 3 donors"
    )
    assert of_data_frame("5 cells of 3 donors") == "5 rows of 3 groups"


def test_a_slope_that_no_group_shows_is_warned_about(data):
    data["level"] = data.groupby("g")["x"].transform("mean")
    with pytest.warns(UserWarning, match=r"level is constant within every level of 'g'.*write \(1\|g\) in its place"):
        fit = scglmm.glmm("y ~ x + (level|g)", data)
    assert fit.status in {"ok", "singular"}


def test_levels_with_one_or_no_observation(data):
    data["f"] = pd.Categorical(data["f"], ["never", "u", "v", "w"])
    data.loc[0, "f"] = "v"
    data.loc[0, "g"] = "lonely"
    fit = scglmm.glmm("y ~ f + (1|g)", data)
    assert fit.model.design.columns == ["(Intercept)", "f[T.v]", "f[T.w]"]
    assert fit.n_groups == {"g": 7}
    assert np.isfinite(fit.coef_table["se"]).all()
    single = data.assign(f=np.where(data.index == 5, "rare", "common"))
    fit = scglmm.glmm("y ~ f + (1|g)", single)
    assert np.isfinite(fit.coef_table["se"]).all()
    fit = scglmm.glmm("y ~ f + (1|g)", data)
    with pytest.raises(ValueError, match="'f' has the level 'never', unknown to the model"):
        fit.predict(pd.DataFrame({"f": ["never"]}), re_form=False)


def test_missing_rows_are_dropped_everywhere_alike(data):
    holes = missing(data, "x").assign(count=lambda d: d["count"].where(d["row"] != 7))
    fit = scglmm.glmm("count ~ x + (1|g)", holes, family="poisson", ziformula="~ f", na_action="drop")
    assert fit.nobs == 58
    assert fit.model.dropped == 2
    assert "2 rows with missing values left out" in str(fit)
    assert list(fit.fitted().index) == [i for i in range(60) if i not in (3, 7)]
    same = scglmm.glmm("count ~ x + (1|g)", data.drop([3, 7]), family="poisson", ziformula="~ f")
    assert fit.loglik == pytest.approx(same.loglik, abs=1e-9)


def test_units_and_order_do_not_matter(data):
    fit = scglmm.glmm("y ~ x + f + (x|g)", data)
    order = np.random.default_rng(1).permutation(len(data))
    other = scglmm.glmm("y ~ x + f + (x|g)", data.iloc[order])
    np.testing.assert_allclose(other.coef_table["estimate"], fit.coef_table["estimate"], rtol=1e-5, atol=1e-8)
    scaled = scglmm.glmm("y ~ x + f + (x|g)", data.assign(x=1e5 * data["x"], y=1e3 * data["y"]))
    assert scaled.coef_table.loc["x", "estimate"] == pytest.approx(fit.coef_table.loc["x", "estimate"] / 100, rel=1e-4)
    # lme4's restricted likelihood depends on the units of X as well
    np.testing.assert_allclose(scaled.coef_table["df"], fit.coef_table["df"], rtol=0.02)
    assert scaled.sigma == pytest.approx(1e3 * fit.sigma, rel=1e-4)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["x", "f", "x:f", "I(x**2)", "bs(x, df=4)", "offset(x)", "(1|g)", "(x||g)", "(f|g)", "one"]),
        max_size=4,
    ),
    st.sampled_from(["gaussian", "poisson", "nbinom2"]),
    st.sampled_from(["y", "count", "half", "log(count)"]),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_formula_gives_a_fit_or_a_message_of_ours(data, terms, family, response):
    data = data.assign(half=data["count"] / 2)
    try:
        fit = scglmm.glmm(f"{response} ~ {' + '.join(terms) or '1'}", data, family=family)
    except (ValueError, KeyError) as error:
        said = error.args[0]
        assert len(said) > 20
        return
    assert fit.status in {"ok", "singular", "poisson_limit", "separated", "not_converged"}
    assert fit.summary()
    if fit.status in {"ok", "singular", "poisson_limit"}:
        assert np.isfinite(fit.coef_table[["estimate", "se", "p"]].to_numpy()).all()
        assert np.isfinite(fit.fitted()).all()
