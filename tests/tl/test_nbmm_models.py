"""`scglmm.tl.nbmm`: formulas, offsets, and what is said about them."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import scglmm

PER_COEFFICIENT = ("coef", "se", "stat", "dof", "pval", "padj")


@pytest.mark.filterwarnings("ignore:Of the 4 levels of 'Dx.stim' only")  # two kinds of terms at once, no sound design
def test_random_effects_have_their_columns(adata):
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + stim + (stim|SubID) + (1|Dx:stim)", mask_var="tested")
    fit = adata.varm["nbmm_fit"]
    names = ["var[SubID:(Intercept)]", "var[SubID:stim[T.stim]]", "cov[SubID:(Intercept),stim[T.stim]]", "var[Dx:stim]"]
    assert list(fit.columns[1:5]) == names
    assert list(adata.varm["nbmm_varpart"].columns) == ["stim", "SubID", "Dx:stim", "CountNoise", "Residuals"]
    fitted = fit["status"] != "not_selected"
    variances = fit.loc[fitted, names]
    correlation = variances.iloc[:, 2] ** 2 / (variances.iloc[:, 0] * variances.iloc[:, 1])
    assert (correlation.dropna() < 1 + 1e-9).all()


def test_a_number_that_is_a_grouping_factor_too(adata):
    adata.obs["time"] = adata.obs["SubID"].cat.codes.astype(float)
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + time + (1|time)", mask_var="tested")
    assert list(adata.varm["nbmm_varpart"].columns) == ["time", "(1|time)", "CountNoise", "Residuals"]
    scglmm.tl.varpart(adata, method="delta")
    fitted = adata.var["tested"]
    np.testing.assert_allclose(adata.varm["nbmm_varpart"][fitted].sum(axis=1), 1)


def test_without_random_effects(adata):
    with pytest.warns(UserWarning, match=r"no random effect.*\(1\|donor\)") as caught:
        scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + stim")
    assert caught[0].filename == __file__
    fit = adata.varm["nbmm_fit"]
    assert set(fit["status"]) <= {"ok", "poisson_limit"}
    assert list(adata.varm["nbmm_varpart"].columns) == ["Dx", "stim", "CountNoise", "Residuals"]
    np.testing.assert_allclose(adata.varm["nbmm_varpart"].sum(axis=1), 1)
    assert adata.uns["nbmm"]["n_donors"] == 0


def test_intercept_only(adata, fitted):
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + (1|SubID)", key_added="null")
    assert list(adata.varm["null_coef"].columns) == ["(Intercept)"]
    coef = adata.varm["null_coef"]["(Intercept)"]
    np.testing.assert_allclose(coef, fitted.varm["nbmm_fit"]["null_intercept"], atol=2e-4)
    assert "names" not in adata.uns["null"]
    assert scglmm.get.nbmm_df(adata, key="null")["pval"].notna().all()


@pytest.mark.parametrize("more", ["", " + q2 + q3"])
def test_covariates_of_cells(adata, more):
    """Nodes along one covariate; with three every cell is a stratum. The degrees of freedom are many."""
    adata.obs[["q2", "q3"]] = np.random.default_rng(8).normal(size=(adata.n_obs, 2))
    scglmm.tl.nbmm(adata, f"~ offset(log(libSize)) + quality{more} + (1|SubID)", mask_var="tested")
    entry = adata.uns["nbmm"]
    if more:
        assert entry["n_strata"] == entry["n_nodes"] == adata.n_obs
        assert "cell_covariates" not in entry
    else:
        assert entry["n_strata"] < adata.n_obs
        assert list(entry["cell_covariates"]) == ["quality"]
    table = scglmm.get.nbmm_df(adata, "quality").dropna(subset="pval")
    assert (table["df"] > 100).all()
    assert (table["log_fc"].abs() < 5 * table["se"]).all()


def test_the_offset_by_default(adata):
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel()
    with pytest.warns(UserWarning, match=r"total count over only 30 genes.*offset\(log\(column\)\)") as caught:
        scglmm.tl.nbmm(adata, "~ stim + (1|SubID)", mask_var="tested", key_added="default")
    assert caught[0].filename == __file__
    assert adata.uns["default"]["offset"] == "log(total count)"
    scglmm.tl.nbmm(adata, "~ offset(log(total)) + stim + (1|SubID)", mask_var="tested", key_added="given")
    for name in PER_COEFFICIENT:
        np.testing.assert_array_equal(adata.varm[f"default_{name}"], adata.varm[f"given_{name}"])


def test_the_warning_names_total_counts(adata):
    adata.obs["total_counts"] = 1000.0
    with pytest.warns(UserWarning, match=r"`offset\(log\(total_counts\)\)` uses adata.obs\['total_counts'\]"):
        scglmm.tl.nbmm(adata, "~ stim + (1|SubID)", mask_var="tested")


def test_no_warning_with_many_genes(adata, log):
    names = [f"g{i}" for i in range(67 * 30)]
    wide = ad.AnnData(sparse.hstack([adata.X] * 67).tocsr(), obs=adata.obs, var=pd.DataFrame(index=names))
    sc.settings.verbosity = 3
    scglmm.tl.nbmm(wide, "~ stim + (1|SubID)", mask_var=np.arange(wide.n_vars) < 3)
    said = log.getvalue()
    assert "no offset() in the formula: the log of each cell's total count over all genes is the offset" in said
    assert "fitting ~ stim + (1|SubID) to 3 genes: 480 cells, 24 strata" in said
    assert "added" in said


@pytest.mark.parametrize("verbosity", [0, 1])
def test_quiet(adata, formula, capfd, log, verbosity):
    sc.settings.verbosity = verbosity
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "'stim' varies within all 12 levels")  # of the design, whatever the verbosity
        scglmm.tl.nbmm(adata, formula)
    out, err = capfd.readouterr()
    assert out == log.getvalue() == ""
    assert (err == "") is (verbosity == 0)  # at 1 there is a progress bar


def test_gene_names_may_be_duplicated(adata, fitted, formula):
    adata.var_names = [f"g{i // 2}" for i in range(adata.n_vars)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata, about the names
        scglmm.tl.nbmm(adata, formula, mask_var="tested")
    mask = adata.var["tested"].to_numpy()
    np.testing.assert_array_equal(adata.varm["nbmm_coef"].to_numpy()[mask], fitted.varm["nbmm_coef"].to_numpy()[mask])


@pytest.mark.filterwarnings("ignore:.0 . x.SubID. asks for 120 variances")
def test_many_variances(adata):
    """One of the columns of a result for each: 120 of them, and pandas is content."""
    adata = adata[:, :2].copy()
    adata.obs["x"] = pd.Categorical(np.resize([f"x{i:02d}" for i in range(15)], adata.n_obs))
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + (0 + x|SubID)", min_cells=100_000)
    fit = adata.varm["nbmm_fit"]
    assert fit.columns.str.startswith(("var[", "cov[")).sum() == 120
    assert set(fit["status"]) == {"too_few_counts"}
