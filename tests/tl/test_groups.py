"""`scglmm.tl.nbmm(groupby=)`: each group as if alone, or skipped with a reason."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse, stats

import scglmm
from scglmm.results import read_result

NAMES = ["T/NK", "B|naive", "αβ cells"]
PER_COEFFICIENT = ("coef", "se", "stat", "dof", "pval", "padj")


# The groups are small parts of small data, on which there is much to advise.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Groups? '.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:'stim' varies within:UserWarning"),
]


def test_advice_is_said_once_for_all_groups(typed, formula):
    with pytest.warns(UserWarning, match="Groups 'T/NK', 'B|naive': 'stim' varies within all 12 levels") as said:
        scglmm.tl.nbmm(typed, formula, groupby="type", mask_var="tested")
    assert sum("'stim' varies within all" in str(each.message) for each in said) <= 2


@pytest.fixture
def typed(adata: ad.AnnData) -> ad.AnnData:
    """The data with three types of cells in `obs["type"]`."""
    labels = np.random.default_rng(8).choice(3, adata.n_obs, p=[0.5, 0.3, 0.2])
    adata.obs["type"] = pd.Categorical.from_codes(labels, NAMES)
    return adata


def fit(adata: ad.AnnData, formula: str, **arguments: object) -> pd.DataFrame:
    """Fit every type, and return the table of groups."""
    scglmm.tl.nbmm(adata, formula, **{"groupby": "type"} | arguments)
    return adata.uns["nbmm"]["groups"]


def assert_as_alone(grouped: ad.AnnData, name: str, alone: ad.AnnData, *, padj: bool = True) -> None:
    """Whether a group has the results of a run on its cells alone, to the last bit."""
    result = read_result(grouped)
    name = result.find_group(name)
    for table in (*PER_COEFFICIENT, "varpart", "fit"):
        if table == "padj" and not padj:
            continue
        one, two = result.table(table, name), alone.varm[f"nbmm_{table}"]
        assert list(one.columns) == list(two.columns)
        for column in two.columns:
            np.testing.assert_array_equal(one[column].to_numpy(), two[column].to_numpy(), err_msg=f"{table} {column}")
    np.testing.assert_array_equal(result.vcov(name), alone.varm["nbmm_vcov"])


def cells_of(adata: ad.AnnData, name: str) -> ad.AnnData:
    return adata[(adata.obs["type"] == name).to_numpy()].copy()


@pytest.mark.parametrize("storage", ["csr", "csc", "dense", "backed"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_as_alone(typed, formula, storage, n_jobs, tmp_path, monkeypatch):
    monkeypatch.setattr("scglmm.tl._reading.TABLE_BYTES", 2e5)  # several blocks of genes
    monkeypatch.setattr("scglmm.compression.chunks.CHUNK_BYTES", 12_000)  # several chunks of rows
    typed.X = {"csc": sparse.csc_matrix, "dense": lambda X: X.toarray()}.get(storage, sparse.csr_matrix)(typed.X)
    data = typed
    if storage == "backed":
        typed.write_h5ad(tmp_path / "a.h5ad")
        data = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    try:
        groups = fit(data, formula, n_jobs=n_jobs)
        assert groups["status"].tolist() == ["ok"] * 3
        for name in NAMES:
            alone = cells_of(typed, name)
            if storage == "backed":
                alone.write_h5ad(tmp_path / "alone.h5ad")
                alone = ad.read_h5ad(tmp_path / "alone.h5ad", backed="r")
            try:
                scglmm.tl.nbmm(alone, formula)
                assert_as_alone(data, name, alone)
            finally:
                if storage == "backed":
                    alone.file.close()
    finally:
        if storage == "backed":
            data.file.close()


def test_other_models(typed):
    """No offset, a slope, nested terms, ML, some genes."""
    for formula in ("~ stim + (stim|SubID)", "~ Dx * stim + (1|SubID/stim)"):
        arguments = {"mask_var": np.arange(30) % 2 > 0, "method": "ml", "min_cells": 20}
        with pytest.warns(UserWarning, match="over only 30 genes"):
            fit(typed, formula, **arguments)
        assert typed.uns["nbmm"]["offset"] == "log(total count)"
        for name in NAMES[:2]:
            alone = cells_of(typed, name)
            with pytest.warns(UserWarning, match="over only 30 genes"):
                scglmm.tl.nbmm(alone, formula, **arguments)
            assert_as_alone(typed, name, alone)


def test_the_counts_are_read_once_for_all_groups(typed, formula, monkeypatch):
    from scglmm.compression import counts, tables

    passes = []

    def count(*args):
        passes.append(1)
        return all_chunks(*args)

    all_chunks = counts.chunks
    monkeypatch.setattr(counts, "chunks", count)
    monkeypatch.setattr(tables, "chunks", count)
    typed.X = typed.X.toarray()
    fit(typed, formula)
    assert len(passes) == 1  # checks, sums and tables


def test_what_is_written(typed, formula):
    groups = fit(typed, formula)
    stored = ["T∕NK", "B|naive", "αβ cells"]
    coefficients = ["(Intercept)", "Dx[T.AD]", "Age", "stim[T.stim]"]
    for name in PER_COEFFICIENT:
        assert list(typed.varm[f"nbmm_{name}"].columns) == [f"{g}|{c}" for g in stored for c in coefficients]
    assert typed.varm["nbmm_vcov"].shape == (30, 3, 10)
    assert list(groups.index) == stored
    assert list(groups.columns) == [
        *["status", "n_cells", "n_donors", "n_strata", "n_nodes", "n_genes", "log_mean_exposure", "dropped_levels"]
    ]
    assert groups["n_cells"].sum() == typed.uns["nbmm"]["n_cells"] == typed.n_obs
    assert (groups["n_donors"] == 12).all()
    entry = typed.uns["nbmm"]
    assert entry["groupby"] == "type"
    assert entry["params"]["groupby"] == "Dx"
    assert list(entry["names"].dtype.names) == [f"{g}|{c}" for g in stored for c in coefficients[1:]]
    assert sum(entry["status_counts"].values()) == 90
    table = scglmm.get.nbmm_df(typed, "stim[T.stim]")
    assert set(table["group"]) == set(stored)
    one = scglmm.get.nbmm_df(typed, "stim[T.stim]", group="T/NK")
    np.testing.assert_allclose(one["padj"], stats.false_discovery_control(one["pval"]))


def test_adjusted_across_the_groups(typed, formula):
    typed.obs.loc[typed.obs["type"] == "B|naive", "stim"] = "ctrl"
    typed.obs["other"] = np.where(np.arange(typed.n_obs) % 2, "u", "v")
    formula = formula.replace("stim", "other")
    fit(typed, formula)
    within = scglmm.get.nbmm_df(typed, "Age")
    fit(typed, formula, padj_across=True)
    across = scglmm.get.nbmm_df(typed, "Age")
    pd.testing.assert_frame_equal(within.drop(columns="padj"), across.drop(columns="padj"))
    tested = across["pval"].notna()
    np.testing.assert_allclose(across["padj"][tested], stats.false_discovery_control(across["pval"][tested]))
    assert not np.allclose(within["padj"], across["padj"], equal_nan=True)
    assert typed.uns["nbmm"]["padj_across"]
    ranked = sc.get.rank_genes_groups_df(typed, "T∕NK|Age", key="nbmm")
    assert set(ranked["pvals_adj"]) == set(across.loc[across["group"] == "T∕NK", "padj"])


# ------------------------------------------------------------------------------------------------------ skipped groups


def test_groups_that_cannot_answer(typed, formula, log):
    """One group has a constant term, one a single donor; the third has the numbers that it would have alone."""
    typed.obs.loc[typed.obs["type"] == "B|naive", "stim"] = "ctrl"
    gone = (typed.obs["type"] == "αβ cells") & (typed.obs["SubID"] != "D03")
    typed = typed[~gone.to_numpy()].copy()
    sc.settings.verbosity = 1
    groups = fit(typed, formula)
    status = groups["status"]
    assert status["T∕NK"] == "ok"
    assert status["B|naive"].startswith("skipped: 'stim' is constant")
    assert status["αβ cells"] == "skipped: it has 1 level of 'SubID', fewer than min_donors=3"
    assert groups["n_donors"].tolist() == [12, 12, 1]
    assert groups["n_nodes"].tolist()[1:] == [0, 0]
    assert "group 'B|naive' is skipped: 'stim' is constant" in log.getvalue()
    assert np.isnan(typed.varm["nbmm_vcov"][:, 1:]).all()
    alone = cells_of(typed, "T/NK")
    scglmm.tl.nbmm(alone, formula)
    assert_as_alone(typed, "T/NK", alone)
    # the only group that was fitted needs no choice
    assert "group" not in scglmm.get.nbmm_df(typed, "Age")
    scglmm.pl.volcano(typed, "Age", show=False)
    with pytest.raises(ValueError, match="'αβ cells' was not fitted: skipped: it has 1 level of 'SubID'"):
        scglmm.get.nbmm_df(typed, group="αβ cells")
    assert fit(typed, formula, min_donors=0)["status"]["αβ cells"].startswith("skipped: ")


def test_no_donor_to_spare(typed, formula):
    kept = ["D00", "D01", "D02"]
    gone = (typed.obs["type"] == "B|naive") & ~typed.obs["SubID"].isin(kept)
    typed = typed[~gone.to_numpy()].copy()
    status = fit(typed, formula)["status"]["B|naive"]
    assert status.startswith("skipped: No replicate is left to estimate the variance of (1|SubID) from: 'SubID' has 3")
    assert "3 coefficients are constant within levels ((Intercept), Dx[T.AD], Age)" in status


def test_no_gene_has_counts(typed, formula):
    X = typed.X.toarray()
    X[(typed.obs["type"] == "B|naive").to_numpy()] = 0
    typed.X = sparse.csr_matrix(X)
    groups = fit(typed, formula)
    assert groups.loc["B|naive", "status"] == "skipped: no gene has counts in min_cells=10 of its cells"
    assert read_result(typed).fitted_groups == ["T∕NK", "αβ cells"]


def test_no_group_can_be_fitted(typed, formula, assert_untouched):
    before = typed.copy()
    with pytest.raises(ValueError, match=r"No group of 'type' can be fitted:\n    every group: it has 12 levels of"):
        fit(typed, formula, min_donors=13)
    typed.obs["Dx"] = pd.Categorical(np.where(typed.obs["type"] == "T/NK", "AD", "Control"))
    message = r"'T/NK': 'Dx' is constant.*'AD'.*\n    'B\|naive': 'Dx' is constant.*'Control'"
    with pytest.raises(ValueError, match=message):
        fit(typed, formula)
    typed.obs["Dx"] = before.obs["Dx"]
    with pytest.raises(ValueError, match="no gene has counts in min_cells=1000 of its cells"):
        fit(typed, formula, min_cells=1000)
    assert_untouched(typed, before)


# --------------------------------------------------------------------------------------------------------------- levels


@pytest.fixture
def batches(typed: ad.AnnData) -> ad.AnnData:
    """A factor of three levels, of which B|naive lacks the last."""
    batch = np.random.default_rng(9).choice(["b1", "b2", "b3"], typed.n_obs)
    batch[(typed.obs["type"] == "B|naive").to_numpy() & (batch == "b3")] = "b2"
    typed.obs["batch"] = pd.Categorical(batch)
    return typed


def test_a_level_that_a_group_lacks(batches, formula, log, tmp_path):
    sc.settings.verbosity = 3
    groups = fit(batches, f"{formula} + batch")
    assert groups["dropped_levels"].tolist() == ["", "batch: b3", ""]
    assert "group 'B|naive' has no cells with batch: b3: dropped from its model" in log.getvalue()
    assert list(batches.uns["nbmm"]["factors"]["batch"]) == ["b1", "b2", "b3"]
    assert "B|naive|batch[T.b3]" not in batches.varm["nbmm_coef"]
    alone = cells_of(batches, "B|naive")
    scglmm.tl.nbmm(alone, f"{formula} + batch")
    assert_as_alone(batches, "B|naive", alone)
    assert set(scglmm.get.nbmm_df(batches, "batch[T.b3]")["group"]) == {"T∕NK", "αβ cells"}
    for kind in ("h5ad", "zarr"):
        getattr(batches, f"write_{kind}")(tmp_path / f"a.{kind}")
        back = getattr(ad, f"read_{kind}")(tmp_path / f"a.{kind}")
        assert back.uns["nbmm"]["groups"]["dropped_levels"].tolist() == ["", "batch: b3", ""]
        assert_as_alone(back, "B|naive", alone)


def test_the_reference_level_that_a_group_lacks(batches, formula):
    batches.obs["batch"] = batches.obs["batch"].cat.reorder_categories(["b3", "b1", "b2"])
    groups = fit(batches, f"{formula} + batch")
    assert groups["status"]["B|naive"].startswith("skipped: no cell has the reference level 'b3' of 'batch'")
    assert batches.uns["nbmm"]["references"]["batch"] == "b3"
    # a reference that is named is looked for in each group
    groups = fit(batches, f'{formula} + C(batch, Treatment("b2"))')
    assert groups["status"].tolist() == ["ok"] * 3
    groups = fit(batches, f'{formula} + C(batch, Treatment("b3"))')
    assert "has no level 'b3'" in groups["status"]["B|naive"]


# ------------------------------------------------------------------------------------------------- the column of groups


@pytest.mark.parametrize("dtype", [object, "string", "category"])
def test_types_of_text(typed, formula, dtype):
    typed.obs["type"] = typed.obs["type"].astype(str).astype(dtype)
    assert list(fit(typed, formula, mask_var="tested").index) == ["B|naive", "T∕NK", "αβ cells"]


def test_numbers_and_booleans(typed, formula):
    typed.obs["cluster"] = typed.obs["type"].cat.codes.astype(np.int64) + 8
    assert list(fit(typed, formula, mask_var="tested", groupby="cluster").index) == ["8", "9", "10"]
    typed.obs["flag"] = typed.obs["cluster"] > 8
    assert list(fit(typed, formula, mask_var="tested", groupby="flag").index) == ["False", "True"]


def test_unused_categories(typed, formula):
    typed.obs["type"] = typed.obs["type"].cat.add_categories("nothing")
    assert len(fit(typed, formula, mask_var="tested")) == 3


def test_cells_without_a_group(typed, formula):
    typed.obs.loc[typed.obs_names[:7], "type"] = np.nan
    with pytest.raises(ValueError, match=r"obs\['type'\] is missing \(NaN\) for 7 of 480 cells.*na_action='drop'"):
        fit(typed, formula)
    X = typed.X.toarray()
    X[3] = np.nan  # a cell that is not used may hold anything
    typed.X = sparse.csr_matrix(X)
    typed.obs.loc[typed.obs_names[8:10], "Age"] = np.nan
    groups = fit(typed, formula, na_action="drop")
    assert groups["n_cells"].sum() == typed.uns["nbmm"]["n_cells"] == 471
    alone = typed[(typed.obs["type"] == "T/NK").to_numpy()].copy()
    scglmm.tl.nbmm(alone, formula, na_action="drop")
    assert_as_alone(typed, "T/NK", alone)
    typed.obs["type"] = "all"
    with pytest.raises(ValueError, match=r"'Age' in 2 of 480 cells"):
        fit(typed, formula)


def test_donors_that_are_dropped_do_not_count(typed, formula):
    """Age is known of two donors only among the cells of one type, and of nobody among those of another."""
    group = typed.obs["type"]
    unknown = (group == "B|naive") & ~typed.obs["SubID"].isin(["D00", "D01"]) | (group == "αβ cells")
    typed.obs.loc[unknown, "Age"] = np.nan
    status = fit(typed, formula, na_action="drop")["status"]
    assert status["T∕NK"] == "ok"
    assert status["B|naive"].startswith("skipped: ")
    assert status["αβ cells"].startswith("skipped: No cell is left after dropping those with missing values")
    status = fit(typed, formula.replace(" + Dx + Age", " + scale(Age)"), na_action="drop")["status"]
    assert status["B|naive"].startswith("skipped: ")


@pytest.mark.parametrize("how", ["copy", "view", "raw"])
def test_ways_to_call(typed, formula, how):
    fit(typed, formula, mask_var="tested")
    other = typed.copy()
    del other.uns["nbmm"]
    if how == "copy":
        other = scglmm.tl.nbmm(other, formula, groupby="type", mask_var="tested", copy=True)
    elif how == "view":
        other = other[:, :]
        with pytest.warns(ad.ImplicitModificationWarning, match="view"):
            fit(other, formula, mask_var="tested")
    else:
        other.raw = other.copy()
        other.X = other.X.log1p()
        fit(other, formula, mask_var="tested", use_raw=True)
    for name in PER_COEFFICIENT:
        pd.testing.assert_frame_equal(typed.varm[f"nbmm_{name}"], other.varm[f"nbmm_{name}"])


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        ("Type", KeyError, r"groupby='Type' is not a column of `adata.obs`; the columns are 'type'"),
        ("Dx", ValueError, "groupby='Dx' is part of the formula as well.*leave groupby out"),
        ("SubID", ValueError, "groupby='SubID' is part of the formula"),
        ("libSize", ValueError, "groupby='libSize' is part of the formula"),
        ("quality", ValueError, r"obs\['quality'\] holds numbers such as .*, which name no groups"),
        ("barcode", ValueError, r"obs\['barcode'\] has 480 different values: a column such as cell types is meant"),
        ("empty", ValueError, r"obs\['empty'\] is missing \(NaN\) for every cell"),
        ("twice", ValueError, "different groups that read the same, '1'"),
        ("slash", ValueError, "would both be stored as"),
        (["type"], TypeError, "must be the name of one column"),
    ],
)
def test_bad_columns(typed, formula, column, error, message, assert_untouched, monkeypatch):
    monkeypatch.setattr("scglmm.tl._groups.MAX_GROUPS", 400)
    typed.obs["barcode"] = typed.obs_names
    typed.obs["empty"] = pd.Categorical([np.nan] * typed.n_obs, ["a"])
    values = np.arange(typed.n_obs) % 2
    typed.obs["twice"] = pd.Categorical.from_codes(values, [1, "1"])
    typed.obs["slash"] = pd.Categorical.from_codes(values, ["a/b", "a∕b"])
    before = typed.copy()
    with pytest.raises(error, match=message):
        fit(typed, formula, groupby=column)
    assert_untouched(typed, before)


def test_arguments(typed, formula):
    with pytest.raises(ValueError, match=r"padj_across=True adjusts p-values across groups.*groupby="):
        scglmm.tl.nbmm(typed, formula, padj_across=True)
    with pytest.raises(ValueError, match="min_donors must be a whole number"):
        fit(typed, formula, min_donors=-1)


# ------------------------------------------------------------------------------------------------- what is done with it


def test_varpart_again(typed, formula):
    fit(typed, formula)
    scglmm.tl.varpart(typed, method="lognormal")
    fractions = typed.varm["nbmm_varpart"]
    for name in NAMES:
        alone = cells_of(typed, name)
        scglmm.tl.nbmm(alone, formula, varpart_method="lognormal")
        group = read_result(typed).table("varpart", read_result(typed).find_group(name))
        np.testing.assert_allclose(group, alone.varm["nbmm_varpart"], rtol=1e-10, atol=1e-14)
    assert len(fractions.columns) == 18
    assert typed.uns["nbmm"]["varpart_method"] == "lognormal"


def test_refresh_after_a_subset_of_genes(typed, formula):
    fit(typed, formula)
    part = typed[:, 10:20].copy()
    scglmm.tl.refresh(part)
    assert len(part.uns["nbmm"]["names"]) == 10
    table = sc.get.rank_genes_groups_df(part, "αβ cells|Age", key="nbmm")
    assert set(table["names"]) == set(part.var_names)


def test_pictures(typed, formula):
    fit(typed, formula)
    for name in NAMES:
        scglmm.pl.volcano(typed, "Age", group=name, show=False)
        scglmm.pl.varpart(typed, group=name, show=False)
    sc.pl.rank_genes_groups(typed, key="nbmm", show=False)
    with pytest.raises(ValueError, match="more than one group: choose one with `group`"):
        scglmm.pl.volcano(typed, "Age", show=False)


def test_a_run_without_groups_replaces_one_with_them(typed, formula, fitted, assert_same):
    fit(typed, formula)
    scglmm.tl.nbmm(typed, formula)
    assert_same(typed, fitted)
    assert "groups" not in typed.uns["nbmm"]


def test_no_random_effect(typed):
    with pytest.warns(UserWarning, match="no random effect"):
        groups = fit(typed, "~ offset(log(libSize)) + Dx", mask_var="tested")
    assert groups["n_donors"].tolist() == [0, 0, 0]
