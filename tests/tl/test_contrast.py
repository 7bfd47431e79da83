"""`tl.contrast`: the same numbers as a fit with another reference level, what is written, and what is refused."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import stats

import scglmm
from scglmm.results import read_result, write_results

LEVELS = ["ctrl", "CD4+ T", "a/b"]
FORMULA = "~ offset(log(libSize)) + level + Age + stim + (1|SubID)"
FIRST, SECOND = "level[T.CD4+ T]", "level[T.a/b]"


@pytest.fixture(scope="module")
def with_levels(_simulated) -> AnnData:
    """A factor of three levels between donors, with names that are hard to read."""
    adata = _simulated.copy()
    codes = adata.obs["SubID"].cat.codes.to_numpy() % 3
    adata.obs["level"] = pd.Categorical(np.array(LEVELS)[codes], categories=LEVELS)
    adata.obs["other"] = adata.obs["level"].cat.reorder_categories([LEVELS[1], LEVELS[0], LEVELS[2]])
    return adata


@pytest.fixture(scope="module", params=["reml", "ml"])
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def both(with_levels, method) -> AnnData:
    """Fitted twice: key "nbmm", and key "other" with another reference level."""
    verbosity, sc.settings.verbosity = sc.settings.verbosity, 0
    adata = with_levels.copy()
    scglmm.tl.nbmm(adata, FORMULA, method=method)
    scglmm.tl.nbmm(adata, FORMULA.replace("level", "other"), method=method, key_added="other")
    sc.settings.verbosity = verbosity
    return adata


@pytest.fixture
def levels(both) -> AnnData:
    return both.copy()


def columns(adata, name, key):
    return {s: adata.varm[f"{key}_{s}"][name].to_numpy() for s in ("coef", "se", "stat", "dof", "pval", "padj")}


def test_another_reference_level(levels, method):
    """The difference of two levels is the coefficient that one has where the other is the reference."""
    scglmm.tl.contrast(levels, {"difference": f"{SECOND} - {FIRST}", "back": f"-{FIRST}"})
    contained = (levels.varm["nbmm_fit"]["var[SubID]"] == 0).to_numpy()
    assert contained.any()
    assert not contained.all()
    for ours, theirs in (("difference", "other[T.a∕b]"), ("back", "other[T.ctrl]")):
        found, expected = (columns(levels, *x) for x in ((ours, "nbmm_contrast"), (theirs, "other")))
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-7, err_msg=name)
    tested = levels.varm["nbmm_contrast_pval"]["difference"].notna()
    assert tested.sum() > 20
    if method == "ml":
        assert np.isinf(levels.varm["nbmm_contrast_dof"].loc[tested, "difference"]).all()
    else:
        assert (levels.varm["nbmm_contrast_dof"].loc[contained & tested, "difference"] == 12 - 4).all()


def test_single_coefficients_are_those_of_the_table(levels):
    names = [FIRST.replace("/", "∕"), SECOND.replace("/", "∕"), "Age", "stim[T.stim]"]
    scglmm.tl.contrast(levels, {f"c{j}": name for j, name in enumerate(names)})
    for j, name in enumerate(names):
        found, expected = columns(levels, f"c{j}", "nbmm_contrast"), columns(levels, name, "nbmm")
        for number, values in found.items():
            np.testing.assert_array_equal(values, expected[number], err_msg=number)


def test_every_way_to_write_it(levels):
    p = list(levels.uns["nbmm"]["coefficients"])
    vector = [0.0] * len(p)
    vector[p.index("level[T.CD4+ T]")], vector[p.index("level[T.a∕b]")] = -0.5, 0.5
    ways = {
        "text": f"({SECOND} - {FIRST}) / 2",
        "stored": "0.5 * level[T.a∕b] - 0.5 * level[T.CD4+ T]",
        "mapping": {SECOND: 0.5, FIRST: -0.5},
        "list": vector,
        "array": np.array(vector),
        "tuple": tuple(vector),
        "series": pd.Series({FIRST: -0.5, SECOND: 0.5}),
        "integers": {SECOND: np.int64(1), FIRST: -1},
    }
    scglmm.tl.contrast(levels, ways)
    coef, dof = levels.varm["nbmm_contrast_coef"], levels.varm["nbmm_contrast_dof"]
    assert list(coef.columns) == list(ways)
    for name in ways:
        np.testing.assert_allclose(coef[name] / (2 if name == "integers" else 1), coef["text"], rtol=1e-12)
        np.testing.assert_allclose(dof[name], dof["text"], rtol=1e-12)
    entry = levels.uns["nbmm_contrast"]
    np.testing.assert_array_equal(entry["weights"]["mapping"], [vector])
    assert list(entry["source_coefficients"]) == p


def test_joint_tests(levels, method):
    tests = {
        "level": "level",
        "listed": [FIRST, SECOND],
        "matrix": np.eye(5)[[1, 2]],
        "mixed": [{FIRST: 1}, [0, 1, 1, 0, 0], f"{SECOND} - {FIRST}"],
        "two terms": ["level", "stim"],
        "one": ["Age"],
    }
    scglmm.tl.contrast(levels, tests)
    assert levels.varm["nbmm_contrast_coef"].shape == (30, 0)
    tables = {name: scglmm.get.joint_df(levels, name).set_index("gene") for name in tests}
    order = tables["level"].index
    table = {name: t.loc[order] for name, t in tables.items()}
    pd.testing.assert_frame_equal(table["level"], table["listed"])
    pd.testing.assert_frame_equal(table["level"], table["matrix"])
    np.testing.assert_allclose(table["mixed"]["statistic"], table["level"]["statistic"], rtol=1e-8)
    assert table["mixed"]["df1"].dropna().eq(2).all()
    assert table["two terms"]["df1"].dropna().eq(3).all()

    scglmm.tl.contrast(levels, {"level": "other"}, key="other", key_added="again")
    again = scglmm.get.joint_df(levels, key="again").set_index("gene").loc[order]
    np.testing.assert_allclose(again["statistic"], table["level"]["statistic"], rtol=1e-4)
    # these depend on the eigenvectors of the covariance of the two contrasts, as in lmerTest
    np.testing.assert_allclose(again["df2"], table["level"]["df2"], rtol=0.05)

    one = table["one"]
    t, dof, p = (levels.varm[f"nbmm_{s}"].loc[order, "Age"] for s in ("stat", "dof", "pval"))
    np.testing.assert_allclose(one["statistic"], t**2, rtol=1e-10)
    np.testing.assert_allclose(one["df2"], dof, rtol=1e-12)
    np.testing.assert_allclose(one["pval"], p, rtol=1e-8)

    tested = table["level"]["pval"].notna()
    assert tested.sum() > 20
    assert tables["level"]["pval"].dropna().is_monotonic_increasing
    found = table["level"][tested]
    np.testing.assert_allclose(found["padj"], stats.false_discovery_control(found["pval"]), rtol=1e-12)
    if method == "ml":
        assert np.isinf(found["df2"]).all()
        np.testing.assert_allclose(found["pval"], stats.chi2.sf(found["statistic"], 2), rtol=1e-12)
        assert levels.uns["nbmm_contrast"]["joint_test"] == "chi-square"
    else:
        np.testing.assert_allclose(found["pval"], stats.f.sf(found["statistic"], 2, found["df2"]), rtol=1e-12)


def test_results_are_read_as_any_other(levels):
    scglmm.tl.contrast(
        levels, {"a/b - CD4": f"{SECOND} - {FIRST}", "Age": "10 * Age", "level": "level"}, key_added="mine"
    )
    table = scglmm.get.nbmm_df(levels, "a/b - CD4", key="mine")
    assert list(table.columns) == list(scglmm.get.nbmm_df(levels, "Age").columns)
    assert table["status"].tolist() == levels.varm["nbmm_fit"]["status"].astype(str).loc[table["gene"]].tolist()
    np.testing.assert_allclose(levels.varm["mine_coef"]["Age"], 10 * levels.varm["nbmm_coef"]["Age"], rtol=1e-14)

    ranked = sc.get.rank_genes_groups_df(levels, "a∕b - CD4", key="mine").set_index("names")
    tested = table.dropna(subset="pval").set_index("gene")
    np.testing.assert_allclose(ranked.loc[tested.index, "pvals"], tested["pval"])
    np.testing.assert_allclose(ranked.loc[tested.index, "logfoldchanges"], tested["log2_fc"], rtol=1e-5)
    axes = scglmm.pl.volcano(levels, "a/b - CD4", key="mine", show=False)
    assert len(axes.collections) > 0
    few = levels[:, levels.var_names[20:]].copy()
    scglmm.tl.refresh(few, "mine")
    assert scglmm.get.nbmm_df(few, "Age", key="mine").shape[0] == 10
    assert scglmm.get.joint_df(few, key="mine").shape[0] == 10


def test_contrasts_of_contrasts(levels):
    """The covariance of contrasts is stored like that of coefficients."""
    scglmm.tl.contrast(levels, {"b": SECOND, "c": FIRST})
    scglmm.tl.contrast(levels, "b - c", key="nbmm_contrast")
    scglmm.tl.contrast(levels, {"d": f"{SECOND} - {FIRST}"}, key_added="direct")
    for suffix in ("coef", "se", "stat", "dof", "pval", "padj"):
        twice = levels.varm[f"nbmm_contrast_contrast_{suffix}"]["b - c"]
        np.testing.assert_allclose(twice, levels.varm[f"direct_{suffix}"]["d"], rtol=1e-9)


def test_genes_without_an_estimate(levels):
    """A gene that is absent in one level has no estimate of it, but one of the rest."""
    first = levels.var_names[0]
    for suffix in ("coef", "se", "stat", "dof", "pval", "padj"):
        levels.varm[f"nbmm_{suffix}"].loc[first, "level[T.a∕b]"] = np.nan
    lower = np.tril_indices(5)
    levels.varm["nbmm_vcov"][0, (lower[0] == 2) | (lower[1] == 2)] = np.nan
    if "nbmm_dvcov" in levels.varm:
        levels.varm["nbmm_dvcov"][0][:, (lower[0] == 2) | (lower[1] == 2)] = np.nan
    scglmm.tl.contrast(levels, {"lost": f"{SECOND} - {FIRST}", "kept": f"{FIRST} - Age", "level": "level"})
    pval = levels.varm["nbmm_contrast_pval"].loc[first]
    assert np.isnan(pval["lost"])
    assert not np.isnan(pval["kept"])
    assert np.isnan(scglmm.get.joint_df(levels).set_index("gene").loc[first, "df1"])


def test_round_trip(levels, tmp_path):
    scglmm.tl.contrast(levels, {"difference": f"{SECOND} - {FIRST}", "level": "level"})
    scglmm.tl.contrast(levels, "level", key_added="joint only")
    levels.write_h5ad(tmp_path / "a.h5ad")
    again = sc.read_h5ad(tmp_path / "a.h5ad")
    for key in ("nbmm_contrast", "joint only"):
        pd.testing.assert_frame_equal(scglmm.get.joint_df(again, key=key), scglmm.get.joint_df(levels, key=key))
    scglmm.tl.contrast(again, "level", key_added="new")
    pd.testing.assert_frame_equal(scglmm.get.joint_df(again, key="new"), scglmm.get.joint_df(levels))


def test_copy(levels, assert_untouched):
    before = levels.copy()
    copied = scglmm.tl.contrast(levels, f"{SECOND} - {FIRST}", copy=True)
    assert_untouched(levels, before)
    assert "nbmm_contrast_coef" in copied.varm
    assert scglmm.tl.contrast(levels, "Age") is None


def test_a_new_run_replaces_the_old_one(levels):
    scglmm.tl.contrast(levels, {"a": "Age", "level": "level"})
    scglmm.tl.contrast(levels, {"b": "Age"})
    assert list(levels.varm["nbmm_contrast_coef"].columns) == ["b"]
    assert "nbmm_contrast_joint" not in levels.varm


# -------------------------------------------------------------------------------------------------------------- groups


@pytest.fixture
def groups(toy) -> AnnData:
    """Two groups of which one lacks a level, and one that was skipped."""
    adata = toy.make_adata(n_genes=20)
    fewer = [c for c in toy.COEFFICIENTS if c != "Dx[T.MCI]"]
    tables = {}
    for seed, (group, names) in enumerate({"T/NK": toy.COEFFICIENTS, "B|naive": fewer}.items()):
        table = toy.make_table(adata.var_names, seed=seed, coefficients=names)
        # one variance parameter for each coefficient that gives it the degrees of freedom of the table
        p, m = len(names), len(names) + (group == "T/NK")
        scaled = np.zeros((20, m, p, p))
        scaled[:, range(p), range(p), range(p)] = np.sqrt(2 / table.dof) * table.se**2
        lower = np.tril_indices(p)
        dvcov = scaled[..., lower[0], lower[1]]
        dvcov[np.isnan(table.coef).any(axis=1)] = np.nan
        terms = [name.split("[")[0] for name in names]
        tables[group] = replace(table, dvcov=dvcov, terms=terms)
    statuses = {"T/NK": "ok", "Mono": "skipped: Sex is constant", "B|naive": "ok"}
    write_results(adata, "nbmm", tables, toy.make_info(groups=statuses))
    return adata


def test_groups(groups, tmp_path):
    scglmm.tl.contrast(
        groups,
        {"AD - MCI": "Dx[T.AD] - Dx[T.MCI]", "AD - Age": "Dx[T.AD] - Age", "Dx": "Dx", "both": ["Age", "Sex[T.M]"]},
    )
    coef = groups.varm["nbmm_contrast_coef"]
    assert list(coef.columns) == ["T∕NK|AD - MCI", "T∕NK|AD - Age", "B|naive|AD - Age"]
    assert groups.varm["nbmm_dvcov"].shape == (20, 3, 6, 15)
    for group in ("T/NK", "B|naive"):
        table = {c: scglmm.get.nbmm_df(groups, c, group=group, sort_by=None) for c in ("Dx[T.AD]", "Age")}
        found = scglmm.get.nbmm_df(groups, "AD - Age", group=group, key="nbmm_contrast", sort_by=None)
        one, two = table["Dx[T.AD]"], table["Age"]
        np.testing.assert_allclose(found["log_fc"], one["log_fc"] - two["log_fc"])
        variance = one["se"] ** 2 + two["se"] ** 2 - 2 * 0.1 * one["se"] * two["se"]
        np.testing.assert_allclose(found["se"], np.sqrt(variance))
        np.testing.assert_allclose(
            found["df"], variance**2 / (one["se"] ** 4 / one["df"] + two["se"] ** 4 / two["df"]), rtol=1e-10
        )
        factor = scglmm.get.joint_df(groups, "Dx", group=group)
        assert factor["df1"].dropna().eq(2 if group == "T/NK" else 1).all()
        assert factor["df1"].notna().any()
        assert scglmm.get.joint_df(groups, "both", group=group)["df1"].dropna().eq(2).all()
    assert read_result(groups, "nbmm_contrast").groups == read_result(groups).groups
    np.testing.assert_array_equal(np.isnan(groups.varm["nbmm_contrast_vcov"][:, 1]), True)
    groups.write_h5ad(tmp_path / "a.h5ad")
    again = sc.read_h5ad(tmp_path / "a.h5ad")
    for name in ("nbmm_dvcov", "nbmm_contrast_dvcov"):
        np.testing.assert_array_equal(again.varm[name], groups.varm[name])
    table = (scglmm.get.joint_df(x, "Dx", group="B|naive") for x in (groups, again))
    pd.testing.assert_frame_equal(*table)


def test_groups_are_named_where_there_are_several(groups):
    scglmm.tl.contrast(groups, {"Dx": "Dx", "MCI": ["Dx[T.MCI]"]})
    with pytest.raises(ValueError, match=r"more than one group: choose one with `group`, 'T∕NK', 'B|naive'"):
        scglmm.get.joint_df(groups, "Dx")
    with pytest.raises(KeyError, match="was not tested in a group 'Mono'"):
        scglmm.get.joint_df(groups, "Dx", group="Mono")
    assert scglmm.get.joint_df(groups, "MCI")["pval"].notna().any()  # only one group has it


def test_a_contrast_that_no_group_has(groups):
    for column in ("T∕NK|Dx[T.MCI]", "T∕NK|Age"):
        for suffix in ("coef", "se", "stat", "dof", "pval", "padj"):
            frame = groups.varm[f"nbmm_{suffix}"]
            groups.varm[f"nbmm_{suffix}"] = frame.drop(columns=column)
    with pytest.raises(ValueError, match="No group has all coefficients of the contrast 'x'"):
        scglmm.tl.contrast(groups, {"x": "Dx[T.MCI] - Age"})


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("contrasts", "error", "message"),
    [
        (["Age"], TypeError, "Contrasts are a mapping of names to contrasts.*not list"),
        ({}, ValueError, "no contrasts"),
        ({1: "Age"}, TypeError, "name of a contrast must be a text, not 1"),
        ({"": "Age"}, ValueError, "cannot be named ''"),
        ({"Intercept": "Age"}, ValueError, "cannot be named 'Intercept'"),
        ({"a/b": "Age", "a∕b": "Age"}, ValueError, "would both be stored"),
        ({"x": "Agee"}, KeyError, "No coefficient 'Agee' in the result 'nbmm'. Coefficients: 'Age'"),
        ({"x": "level - Age"}, KeyError, "'level' is a factor, not a coefficient: ask for its coefficients"),
        ({"x": "Age - Age"}, ValueError, "All weights of the contrast 'x' are 0"),
        ({"x": [0, 0, 0, 0, 0]}, ValueError, "All weights of the contrast 'x' are 0"),
        ({"x": {}}, ValueError, "All weights of the contrast 'x' are 0"),
        ({"x": [1, 0]}, ValueError, "2 weights for 5 coefficients: '\\(Intercept\\)'"),
        ({"x": np.eye(3)}, ValueError, "3 weights for 5 coefficients"),
        ({"x": {"Age": np.nan}}, ValueError, "A weight of the contrast 'x' is nan: weights are finite"),
        ({"x": {"Age": "1"}}, TypeError, "A weight of the contrast 'x' is '1' \\(str\\)"),
        ({"x": {"no": 1}}, KeyError, "No coefficient 'no'"),
        ({"x": []}, ValueError, "'x' is an empty list"),
        ({"x": ["Age", ["Age", "level"]]}, TypeError, "has a list within its list"),
        ({"x": 3.0}, TypeError, "'x' is a float: it must be a text such as"),
        ({"x": None}, TypeError, "'x' is a NoneType"),
        ({"x": "Age > 0"}, ValueError, "every contrast is compared with 0"),
    ],
)
def test_bad_contrasts(fitted_levels, assert_untouched, contrasts, error, message):
    before = fitted_levels.copy()
    with pytest.raises(error, match=message):
        scglmm.tl.contrast(fitted_levels, contrasts)
    assert_untouched(fitted_levels, before)


@pytest.fixture
def fitted_levels(both) -> AnnData:
    return both.copy()


def test_other_bad_input(levels, method):
    with pytest.raises(KeyError, match=r"No result 'nbm' in `adata.varm`. Results in it: 'nbmm'"):
        scglmm.tl.contrast(levels, "Age", key="nbm")
    with pytest.raises(ValueError, match="would replace the result that the contrasts are taken of"):
        scglmm.tl.contrast(levels, "Age", key_added="nbmm")
    scglmm.tl.contrast(levels, {"one": "Age", "level": "level", "two": ["Age"]})
    with pytest.raises(KeyError, match="'level' is a joint test, not a coefficient"):
        scglmm.get.nbmm_df(levels, "level", key="nbmm_contrast")
    with pytest.raises(ValueError, match="several joint tests: choose one with `name`, 'level', 'two'"):
        scglmm.get.joint_df(levels)
    with pytest.raises(KeyError, match=r"No joint test 'lvel' in the result 'nbmm_contrast'. Joint tests: 'level'"):
        scglmm.get.joint_df(levels, "lvel")
    with pytest.raises(ValueError, match="was not fitted with `groupby`"):
        scglmm.get.joint_df(levels, "level", group="B")
    with pytest.raises(KeyError, match="'nbmm' has no joint tests"):
        scglmm.get.joint_df(levels, key="nbmm")
    for function in (scglmm.tl.varpart, scglmm.pl.varpart):
        with pytest.raises(KeyError, match="The result 'nbmm_contrast' has no variance fractions"):
            function(levels, key="nbmm_contrast")
    scglmm.tl.contrast(levels, "level")
    with pytest.raises(ValueError, match="has joint tests only"):
        scglmm.get.nbmm_df(levels, key="nbmm_contrast")
    if method == "reml":
        del levels.varm["nbmm_dvcov"]
        with pytest.raises(KeyError, match=r"has no 'nbmm_dvcov'.*run `scglmm.tl.nbmm` again"):
            scglmm.tl.contrast(levels, "Age")


def test_it_says_what_it_did(levels, log: io.StringIO):
    sc.settings.verbosity = 3
    scglmm.tl.contrast(levels, "Age")
    assert ".varm['nbmm_contrast_*'] and .uns['nbmm_contrast']" in log.getvalue()
