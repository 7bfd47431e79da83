from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import scglmm.get


@pytest.fixture(scope="module")
def adata(toy):
    return toy.fitted()


def test_matrix_of_statistics(adata):
    matrix = scglmm.get.stat_matrix(adata, ["Dx[T.AD]", "Age"])
    assert list(matrix.index) == ["Dx[T.AD]", "Age"]
    stat, pval = adata.varm["nbmm_stat"], adata.varm["nbmm_pval"]
    tested = pval.index[pval[["Dx[T.AD]", "Age"]].notna().any(axis=1)]
    assert list(matrix.columns) == list(tested)
    assert len(tested) < adata.n_vars
    np.testing.assert_array_equal(matrix, stat.loc[tested, ["Dx[T.AD]", "Age"]].T)
    assert (matrix.dtypes == np.float64).all()
    assert list(scglmm.get.stat_matrix(adata).index) == ["Dx[T.AD]", "Dx[T.MCI]", "Sex[T.M]", "Age"]


@pytest.mark.parametrize("value", ["z", "log2_fc", "log_fc"])
def test_other_values(adata, value):
    row = scglmm.get.stat_matrix(adata, "Age", value=value).loc["Age"]
    table = scglmm.get.nbmm_df(adata, "Age").set_index("gene").loc[row.index]
    expected = np.sign(table["statistic"]) * stats.norm.isf(table["pval"] / 2) if value == "z" else table[value]
    np.testing.assert_allclose(row, expected)


def test_z_of_a_p_value_of_zero_is_finite(toy):
    adata = toy.fitted()
    adata.varm["nbmm_pval"]["Age"] = 0.0
    assert np.isfinite(scglmm.get.stat_matrix(adata, "Age", value="z")).all(axis=None)


def test_groups_and_what_is_missing(toy):
    adata = toy.fitted_groups()
    matrix = scglmm.get.stat_matrix(adata, "Age")
    assert list(matrix.index) == ["T/NK", "B|naive"]
    assert matrix.notna().all(axis=None)
    left = scglmm.get.stat_matrix(adata, "Age", missing=None)
    assert left.isna().any(axis=None)
    assert left.notna().any(axis=0).all()
    pd.testing.assert_frame_equal(left.fillna(0.0), matrix)
    every = scglmm.get.stat_matrix(adata, ["Age", "Dx[T.MCI]"])
    assert list(every.index) == ["T/NK|Age", "T/NK|Dx[T.MCI]", "B|naive|Age"]
    assert list(scglmm.get.stat_matrix(adata, "Age", group="B|naive").index) == ["Age"]


def test_symbols_of_several_genes(toy):
    adata = toy.fitted(share_untested=0.0)
    mean = adata.varm["nbmm_fit"]["mean"]
    adata.var["symbol"] = adata.var["symbol"].astype(object)
    adata.var.loc[["GENE1", "GENE2", "GENE3"], "symbol"] = "TWICE"
    adata.var.loc["GENE4", "symbol"] = None
    matrix = scglmm.get.stat_matrix(adata, "Age", gene_symbols="symbol")
    assert matrix.columns.is_unique
    assert matrix.shape == (1, 57)
    kept = mean[["GENE1", "GENE2", "GENE3"]].idxmax()
    assert matrix.loc["Age", "TWICE"] == adata.varm["nbmm_stat"].loc[kept, "Age"]


def test_decoupler_takes_the_matrix(adata):
    dc = pytest.importorskip("decoupler", minversion="2")
    matrix = scglmm.get.stat_matrix(adata)
    net = pd.DataFrame({"source": np.repeat(["up", "down"], 10), "target": matrix.columns[:20], "weight": 1.0})
    scores, _ = dc.mt.ulm(data=matrix, net=net, tmin=3)
    assert scores.shape == (4, 2)
    assert list(scores.index) == list(matrix.index)


def test_columns_of_pertpy(adata):
    table = scglmm.get.pertpy_df(adata, ["Dx[T.AD]", "Age"])
    assert list(table.columns[:5]) == ["variable", "log_fc", "p_value", "adj_p_value", "contrast"]
    assert table["contrast"].drop_duplicates().tolist() == ["Dx[T.AD]", "Age"]
    ours = scglmm.get.nbmm_df(adata, "Age").dropna(subset="pval")
    own = table[table["contrast"] == "Age"]
    assert own["variable"].tolist() == ours["gene"].tolist()
    for theirs, name in {
        "log_fc": "log2_fc",
        "p_value": "pval",
        "adj_p_value": "padj",
        "statistic": "statistic",
    }.items():
        np.testing.assert_array_equal(own[theirs], ours[name])
    np.testing.assert_allclose(own["log_fc"] / own["se"], own["statistic"])


def test_pertpy_with_groups_and_symbols(toy):
    adata = toy.fitted_groups()
    table = scglmm.get.pertpy_df(adata, "Age", gene_symbols="symbol")
    assert table["contrast"].drop_duplicates().tolist() == ["T/NK", "B|naive"]
    assert table["variable"].str.startswith("SYM").all()


@pytest.mark.parametrize("getter", ["stat_matrix", "pertpy_df"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"coef": "Dx"}, KeyError, "is a factor"),
        ({"coef": []}, ValueError, "`coef` is empty"),
        ({"key": "x"}, KeyError, "No result 'x'"),
        ({"group": "T"}, ValueError, "not fitted with `groupby`"),
        ({"gene_symbols": "x"}, KeyError, "No column 'x' in `adata.var`"),
    ],
)
def test_errors(adata, getter, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(scglmm.get, getter)(adata, **arguments)


def test_unknown_value(adata):
    with pytest.raises(ValueError, match="`value` must be one of 'statistic', 'z', 'log2_fc', 'log_fc', not 't'"):
        scglmm.get.stat_matrix(adata, value="t")
