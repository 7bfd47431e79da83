from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scglmm.get
from scglmm.results import write_results

COLUMNS = ["gene", "log_fc", "log2_fc", "se", "statistic", "df", "pval", "padj", "mean", "status"]


@pytest.fixture(scope="module")
def adata(toy):
    return toy.fitted()


@pytest.fixture(scope="module")
def grouped(toy):
    return toy.fitted_groups()


def test_values_are_those_of_varm(adata):
    table = scglmm.get.nbmm_df(adata, "Dx[T.AD]")
    assert list(table.columns) == COLUMNS
    table = table.set_index("gene").loc[adata.var_names]
    for column, name in {
        "log_fc": "coef",
        "se": "se",
        "statistic": "stat",
        "df": "dof",
        "pval": "pval",
        "padj": "padj",
    }.items():
        np.testing.assert_array_equal(table[column], adata.varm[f"nbmm_{name}"]["Dx[T.AD]"])
    np.testing.assert_allclose(2 ** table["log2_fc"], np.exp(table["log_fc"]), rtol=1e-12)
    np.testing.assert_array_equal(table["mean"], adata.varm["nbmm_fit"]["mean"])
    assert table["status"].tolist() == adata.varm["nbmm_fit"]["status"].tolist()


def test_best_first_untested_last(adata):
    table = scglmm.get.nbmm_df(adata, "Dx[T.AD]")
    tested = table["pval"].notna().to_numpy()
    assert tested[: tested.sum()].all()
    assert table["pval"].iloc[: tested.sum()].is_monotonic_increasing
    assert not tested.all()
    assert table.index.tolist() == list(range(60))


def test_p_values_of_zero_keep_their_order(toy):
    adata = toy.fitted()
    best = scglmm.get.nbmm_df(adata, "Age")["gene"][:5].tolist()
    adata.varm["nbmm_pval"].loc[best, "Age"] = 0.0
    strength = adata.varm["nbmm_stat"].loc[best, "Age"].abs()
    assert scglmm.get.nbmm_df(adata, "Age")["gene"][:5].tolist() == list(strength.sort_values().index[::-1])


@pytest.mark.parametrize("sort_by", [*COLUMNS, None])
def test_sorting(adata, sort_by):
    table = scglmm.get.nbmm_df(adata, "Dx[T.AD]", sort_by=sort_by)
    tested = table[table["pval"].notna()]
    assert table["pval"].iloc[len(tested) :].isna().all()
    if sort_by in {"log_fc", "log2_fc", "statistic"}:
        assert tested[sort_by].abs().is_monotonic_decreasing
    elif sort_by in {"mean", "df"}:
        assert tested[sort_by].is_monotonic_decreasing
    elif sort_by is None:
        assert tested["gene"].tolist() == [g for g in adata.var_names if g in set(tested["gene"])]
    else:
        assert tested[sort_by].is_monotonic_increasing


def test_default_is_the_only_coefficient_or_all(toy, adata):
    one = toy.fitted(coefficients=["Intercept", "Age"])
    assert list(scglmm.get.nbmm_df(one).columns) == COLUMNS
    several = scglmm.get.nbmm_df(adata)
    assert list(several.columns) == ["coef", *COLUMNS]
    assert several["coef"].cat.categories.tolist() == toy.COEFFICIENTS[1:]
    assert len(several) == 4 * 60
    only = toy.fitted(coefficients=["(Intercept)"])
    assert list(scglmm.get.nbmm_df(only).columns) == COLUMNS


def test_several_coefficients_in_the_order_asked_for(adata):
    table = scglmm.get.nbmm_df(adata, ["Sex[T.M]", "Age", "Sex[T.M]"])
    assert table["coef"].drop_duplicates().tolist() == ["Sex[T.M]", "Age"]
    alone = scglmm.get.nbmm_df(adata, "Age")
    pd.testing.assert_frame_equal(table[table["coef"] == "Age"].drop(columns="coef").reset_index(drop=True), alone)


def test_the_intercept_can_be_asked_for(adata):
    assert scglmm.get.nbmm_df(adata, "Intercept")["log_fc"].notna().any()


def test_groups(grouped):
    table = scglmm.get.nbmm_df(grouped, "Age")
    assert list(table.columns) == ["group", *COLUMNS]
    assert table["group"].drop_duplicates().tolist() == ["T∕NK", "B|naive"]
    both = scglmm.get.nbmm_df(grouped, ["Age", "Dx[T.MCI]"])
    assert list(both.columns) == ["group", "coef", *COLUMNS]
    assert both.groupby(["group", "coef"], observed=True).size().to_dict() == {
        ("T∕NK", "Age"): 60,
        ("T∕NK", "Dx[T.MCI]"): 60,
        ("B|naive", "Age"): 60,
    }
    for spelling in ("T/NK", "T∕NK", ["T/NK"]):
        assert list(scglmm.get.nbmm_df(grouped, "Age", group=spelling).columns) == COLUMNS


def test_cut_offs(adata):
    table = scglmm.get.nbmm_df(adata, "Dx[T.AD]")
    kept = scglmm.get.nbmm_df(adata, "Dx[T.AD]", pval_cutoff=0.05, log2fc_min=0.1)
    wanted = table[(table["padj"] < 0.05) & (table["log2_fc"] > 0.1)].reset_index(drop=True)
    assert len(wanted)
    pd.testing.assert_frame_equal(kept, wanted)
    below = scglmm.get.nbmm_df(adata, "Dx[T.AD]", log2fc_max=0.0)
    assert (below["log2_fc"] < 0).all()
    assert len(scglmm.get.nbmm_df(adata, "Dx[T.AD]", pval_cutoff=0.0)) == 0


def test_gene_symbols(adata):
    table = scglmm.get.nbmm_df(adata, "Age", gene_symbols="symbol")
    assert list(table.columns[:2]) == ["gene", "symbol"]
    assert (table["symbol"].str.removeprefix("SYM") == table["gene"].str.removeprefix("GENE")).all()
    clash = adata.copy()
    clash.var["mean"] = clash.var["symbol"]
    assert scglmm.get.nbmm_df(clash, "Age", gene_symbols="mean").columns[1] == "var_mean"


def test_after_subsetting_genes(adata):
    whole = scglmm.get.nbmm_df(adata, "Age").set_index("gene")
    chosen = [30, 2, 11]
    for part in (adata[:, chosen], adata[:, chosen].copy()):
        table = scglmm.get.nbmm_df(part, "Age").set_index("gene")
        assert set(table.index) == set(adata.var_names[chosen])
        pd.testing.assert_frame_equal(table, whole.loc[table.index])


def test_genes_that_were_not_selected(toy):
    adata = toy.make_adata()
    write_results(adata, "nbmm", {None: toy.make_table(adata.var_names[:10])}, toy.make_info())
    table = scglmm.get.nbmm_df(adata, "Age")
    assert (table["status"].iloc[10:] == "not_selected").all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"coef": "Dx"}, KeyError, r"'Dx' is a factor.*'Dx\[T.AD\]', 'Dx\[T.MCI\]'"),
        ({"coef": "Dx[T.Ad]"}, KeyError, r"No coefficient 'Dx\[T.Ad\]'.*Coefficients: 'Dx\[T.AD\]'"),
        ({"coef": []}, ValueError, "`coef` is empty"),
        ({"key": "nbm"}, KeyError, "No result 'nbm'.*'nbmm'"),
        ({"group": "T"}, ValueError, "not fitted with `groupby`"),
        ({"sort_by": "p"}, KeyError, "Cannot sort by 'p'"),
        ({"gene_symbols": "symbols"}, KeyError, r"No column 'symbols' in `adata.var`. Columns: 'symbol'"),
    ],
)
def test_errors(adata, arguments, error, message):
    with pytest.raises(error, match=message):
        scglmm.get.nbmm_df(adata, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"group": "NK"}, KeyError, "No group 'NK'"),
        ({"group": "Mono"}, ValueError, "was not fitted: skipped: Sex is constant"),
        ({"group": []}, ValueError, "`group` is empty"),
        ({"group": "B|naive", "coef": "Dx[T.MCI]"}, KeyError, r"in group 'B\|naive'"),
        ({"group": "B|naive", "coef": "Dx"}, KeyError, r"is a factor.*'Dx\[T.AD\]'\."),
    ],
)
def test_errors_with_groups(grouped, arguments, error, message):
    with pytest.raises(error, match=message):
        scglmm.get.nbmm_df(grouped, **arguments)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 50), cut=st.floats(-1, 1), share=st.floats(0, 1))
def test_cut_offs_never_keep_what_they_exclude(toy, seed, cut, share):
    adata = toy.fitted(n_genes=12, seed=seed, share_untested=share)
    table = scglmm.get.nbmm_df(adata, log2fc_min=cut, pval_cutoff=0.5)
    assert (table["log2_fc"] > cut).all()
    assert (table["padj"] < 0.5).all()


def test_wide(adata):
    coefs = ["Dx[T.AD]", "Age"]
    wide = scglmm.get.nbmm_df(adata, coefs, wide=True, gene_symbols="symbol")
    own = ["log_fc", "log2_fc", "se", "statistic", "df", "pval", "padj"]
    assert list(wide.columns) == [
        "gene",
        "symbol",
        *(f"Dx[T.AD]|{name}" for name in own),
        "mean",
        "status",
        *(f"Age|{name}" for name in own),
    ]
    long = scglmm.get.nbmm_df(adata, coefs)
    assert sorted(wide["gene"]) == sorted(adata.var_names)
    for coef in coefs:
        part = long[long["coef"] == coef].set_index("gene")
        for name in own:
            np.testing.assert_array_equal(wide.set_index("gene").loc[part.index, f"{coef}|{name}"], part[name])
    best = wide[["Dx[T.AD]|pval", "Age|pval"]].min(axis=1)
    assert best.dropna().is_monotonic_increasing
    assert best.isna().to_numpy()[best.notna().sum() :].all()


def test_wide_with_one_contrast_is_the_long_table(adata):
    for options in ({}, {"pval_cutoff": 0.05}, {"sort_by": None}, {"sort_by": "mean", "log2fc_min": 0.1}):
        wide, long = (scglmm.get.nbmm_df(adata, "Age", wide=wide, **options) for wide in (True, False))
        pd.testing.assert_frame_equal(wide, long)


def test_wide_with_groups(grouped):
    wide = scglmm.get.nbmm_df(grouped, "Age", wide=True)
    assert {"T∕NK|log_fc", "T∕NK|mean", "T∕NK|status", "B|naive|padj", "B|naive|status"} <= set(wide.columns)
    both = scglmm.get.nbmm_df(grouped, ["Age", "Dx[T.MCI]"], wide=True)
    assert {"T∕NK|Dx[T.MCI]|pval", "T∕NK|Age|pval", "B|naive|Age|pval", "B|naive|mean"} <= set(both.columns)
    assert not any(column.startswith("B|naive|Dx[T.MCI]") for column in both)
    assert len(both) == grouped.n_vars


def test_wide_keeps_what_any_contrast_keeps(adata):
    coefs = ["Dx[T.AD]", "Age", "Sex[T.M]"]
    long = scglmm.get.nbmm_df(adata, coefs, pval_cutoff=0.05)
    wide = scglmm.get.nbmm_df(adata, coefs, pval_cutoff=0.05, wide=True)
    assert set(wide["gene"]) == set(long["gene"])
    assert wide["gene"].is_unique


def test_wide_with_duplicated_names(toy):
    adata = toy.fitted(6)
    adata.var_names = ["A", "A", "B", "C", "D", "E"]
    for table in adata.varm.values():
        if isinstance(table, pd.DataFrame):
            table.index = adata.var_names
    assert scglmm.get.nbmm_df(adata, wide=True, sort_by=None)["gene"].tolist() == list(adata.var_names)
