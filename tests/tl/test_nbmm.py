"""`scglmm.tl.nbmm`: what is written, and what it does not depend on."""

from __future__ import annotations

import subprocess
import sys
import warnings

import anndata as ad
import joblib
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse, stats

import scglmm

COEFFICIENTS = ["(Intercept)", "Dx[T.AD]", "Age", "stim[T.stim]"]
PER_COEFFICIENT = ("coef", "se", "stat", "dof", "pval", "padj")

# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("name", PER_COEFFICIENT)
def test_tables_per_coefficient(fitted, name):
    table = fitted.varm[f"nbmm_{name}"]
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == COEFFICIENTS
    assert table.index.equals(fitted.var_names)
    assert (table.dtypes == np.float64).all()
    assert table.notna().all(axis=None)


def test_statistics_agree_with_each_other(fitted):
    coef, se, stat, dof, pval, padj = (fitted.varm[f"nbmm_{name}"].to_numpy() for name in PER_COEFFICIENT)
    np.testing.assert_allclose(stat, coef / se, rtol=1e-14)
    np.testing.assert_allclose(pval, 2 * stats.t.sf(np.abs(stat), dof), rtol=1e-12)
    for j in range(len(COEFFICIENTS)):
        np.testing.assert_allclose(padj[:, j], stats.false_discovery_control(pval[:, j]), rtol=1e-14)
    assert (dof > 0).all()


def test_covariances(fitted):
    vcov = fitted.varm["nbmm_vcov"]
    assert isinstance(vcov, np.ndarray)
    assert vcov.shape == (fitted.n_vars, 10)
    assert vcov.dtype == np.float64
    se = fitted.varm["nbmm_se"].to_numpy()
    np.testing.assert_allclose(np.sqrt(vcov[:, [0, 2, 5, 9]]), se, rtol=1e-14)
    for values in vcov:
        full = np.zeros((4, 4))
        full[np.tril_indices(4)] = values
        full = full + np.tril(full, -1).T
        assert (np.linalg.eigvalsh(full / np.sqrt(np.outer(np.diag(full), np.diag(full)))) > 0).all()


def test_fit_table(fitted):
    fit = fitted.varm["nbmm_fit"]
    record = ["theta", "var[SubID]", "loglik", "mean", "n_cells", "n_donors", "n_eval", "grad", "status"]
    assert list(fit.columns) == [*record, "null_intercept", "null_var", "var_linpred"]
    counts = fitted.X.toarray()
    np.testing.assert_allclose(fit["mean"], counts.mean(axis=0))
    np.testing.assert_array_equal(fit["n_cells"], (counts > 0).sum(axis=0))
    donors = [fitted.obs["SubID"][column > 0].nunique() for column in counts.T]
    np.testing.assert_array_equal(fit["n_donors"], donors)
    assert fit["n_cells"].dtype == fit["n_donors"].dtype == np.int64
    assert isinstance(fit["status"].dtype, pd.CategoricalDtype)
    assert {"ok", "singular"} <= set(fit["status"]) <= {"ok", "singular", "poisson_limit"}
    np.testing.assert_array_equal(fit["var[SubID]"] == 0, fit["status"] == "singular")
    assert fit["grad"].max() < 1e-5
    assert (fit["theta"] > 0).all()


def test_degrees_of_freedom_of_singular_genes(fitted):
    """12 donors and 3 coefficients of donors, the intercept among them; stim varies within donors."""
    singular = (fitted.varm["nbmm_fit"]["status"] == "singular").to_numpy()
    dof = fitted.varm["nbmm_dof"]
    assert singular.any()
    assert (dof.loc[singular, ["(Intercept)", "Dx[T.AD]", "Age"]] == 9).all(axis=None)
    assert (dof.loc[~singular, ["(Intercept)", "Dx[T.AD]", "Age"]] < 12).all(axis=None)


def test_variance_fractions(fitted):
    varpart = fitted.varm["nbmm_varpart"]
    assert list(varpart.columns) == ["Dx", "Age", "stim", "SubID", "CountNoise", "Residuals"]
    assert varpart.index.equals(fitted.var_names)
    assert ((varpart >= 0) & (varpart <= 1)).all(axis=None)
    np.testing.assert_allclose(varpart.sum(axis=1), 1, rtol=1e-12)
    singular = fitted.varm["nbmm_fit"]["status"] == "singular"
    assert (varpart.loc[singular, "SubID"] == 0).all()
    assert varpart.loc["g29", "stim"] > 0.1 > varpart.loc["g20", "stim"]


def test_uns(fitted, formula):
    entry = fitted.uns["nbmm"]
    assert entry["formula"] == formula
    assert entry["method"] == "reml"
    assert entry["family"] == "nbinom2"
    assert list(entry["coefficients"]) == COEFFICIENTS
    assert dict(entry["references"]) == {"Dx": "Control", "stim": "ctrl"}
    assert list(entry["factors"]["Dx"]) == ["Control", "AD"]
    assert entry["n_cells"] == fitted.n_obs
    assert entry["n_donors"] == 12
    assert entry["n_strata"] == 24
    assert entry["offset"] == "log(libSize)"
    assert sum(entry["status_counts"].values()) == fitted.n_vars
    assert {"scglmm", "numpy"} <= set(entry["versions"])
    assert entry["params"]["groupby"] == "Dx"
    assert entry["params"]["reference"] == "Control"
    assert list(entry["names"].dtype.names) == COEFFICIENTS[1:]
    assert fitted.uns["note"] == {"source": "simulated"}
    assert fitted.varm["loadings"].shape == (30, 2)


def test_scanpy_reads_it(fitted):
    table = sc.get.rank_genes_groups_df(fitted, "stim[T.stim]", key="nbmm")
    ours = scglmm.get.nbmm_df(fitted, "stim[T.stim]").set_index("gene").loc[table["names"]]
    np.testing.assert_allclose(table["logfoldchanges"], ours["log2_fc"], rtol=1e-6)
    np.testing.assert_allclose(table["scores"], ours["statistic"], rtol=1e-6)
    np.testing.assert_array_equal(table["pvals"], ours["pval"])
    np.testing.assert_array_equal(table["pvals_adj"], ours["padj"])
    assert set(table["names"][:6]) == {f"g{i}" for i in range(24, 30)}
    both = sc.get.rank_genes_groups_df(fitted, None, key="nbmm")
    assert len(both) == 3 * fitted.n_vars


def test_effects_are_found(fitted):
    table = scglmm.get.nbmm_df(fitted, "stim[T.stim]")
    assert set(table["gene"][:6]) == {f"g{i}" for i in range(24, 30)}
    assert (table["log_fc"][:6].sub(1.5).abs() < 4 * table["se"][:6]).all()
    assert (table["padj"][:6] < 1e-10).all()
    dx = scglmm.get.nbmm_df(fitted, "Dx[T.AD]", sort_by=None)
    assert dx["log_fc"][24:].mean() > 0.4 > abs(dx["log_fc"][:24].mean())


def test_maximum_likelihood_tests_with_z(adata, formula, fitted):
    scglmm.tl.nbmm(adata, formula, method="ml", key_added="ml")
    assert np.isposinf(adata.varm["ml_dof"]).all(axis=None)
    np.testing.assert_allclose(adata.varm["ml_pval"], 2 * stats.norm.sf(np.abs(adata.varm["ml_stat"])), rtol=1e-12)
    assert adata.uns["ml"]["method"] == "ml"
    assert adata.uns["ml"]["params"]["method"] == "nbmm-ml"
    # REML takes the degrees of freedom of the fixed effects into account: larger variances, another likelihood
    ml, reml = adata.varm["ml_fit"], fitted.varm["nbmm_fit"]
    assert (ml["var[SubID]"] <= reml["var[SubID]"] + 1e-8).mean() > 0.9
    assert not np.allclose(ml["loglik"], reml["loglik"], atol=0.1)
    np.testing.assert_allclose(adata.varm["ml_coef"], fitted.varm["nbmm_coef"], atol=0.1)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_round_trip(fitted, tmp_path, kind, assert_same):
    path = tmp_path / f"a.{kind}"
    getattr(fitted, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    assert_same(fitted, back)
    for name in PER_COEFFICIENT:
        assert list(back.varm[f"nbmm_{name}"].columns) == COEFFICIENTS
    assert back.uns["nbmm"]["formula"] == fitted.uns["nbmm"]["formula"]
    pd.testing.assert_frame_equal(
        sc.get.rank_genes_groups_df(back, "Dx[T.AD]", key="nbmm"),
        sc.get.rank_genes_groups_df(fitted, "Dx[T.AD]", key="nbmm"),
        check_dtype=False,
    )
    pd.testing.assert_frame_equal(scglmm.get.nbmm_df(back, "Age"), scglmm.get.nbmm_df(fitted, "Age"), check_dtype=False)
    scglmm.tl.varpart(back, method="delta")


def test_two_results_side_by_side(fitted, formula, assert_same):
    before = fitted.copy()
    scglmm.tl.nbmm(fitted, "~ offset(log(libSize)) + Dx + (1|SubID)", key_added="small")
    assert_same(before, fitted)
    assert list(fitted.varm["small_coef"].columns) == ["(Intercept)", "Dx[T.AD]"]
    scglmm.tl.nbmm(fitted, formula, key_added="small")
    assert list(fitted.varm["small_coef"].columns) == COEFFICIENTS


def test_names_with_a_slash(adata, tmp_path):
    adata.obs["a/b"] = adata.obs["quality"]
    adata.obs["Dx"] = adata.obs["Dx"].cat.rename_categories({"AD": "AD/MCI"})
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + `a/b` + I(Age / 10) + (1|SubID)", mask_var="tested")
    del adata.obs["a/b"]
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    for coefficient in ("Dx[T.AD/MCI]", "a/b", "I(Age / 10)"):
        assert scglmm.get.nbmm_df(back, coefficient)["pval"].notna().sum() == adata.var["tested"].sum()


# ------------------------------------------------------------------------------------------- what it does not depend on


@pytest.mark.parametrize("n_jobs", [2, np.int64(3), -1])
def test_number_of_workers(adata, fitted, formula, n_jobs, assert_same):
    scglmm.tl.nbmm(adata, formula, n_jobs=n_jobs)
    assert_same(adata, fitted)


def test_scanpy_settings_give_the_number_of_workers(adata, fitted, formula, assert_same, monkeypatch):
    asked = []
    effective = joblib.effective_n_jobs
    monkeypatch.setattr(joblib, "effective_n_jobs", lambda n: asked.append(n) or effective(n))
    before = sc.settings.n_jobs
    sc.settings.n_jobs = 2
    try:
        scglmm.tl.nbmm(adata, formula)
    finally:
        sc.settings.n_jobs = before
    assert asked == [2]
    assert_same(adata, fitted)


@pytest.mark.parametrize("how", ["column", "array", "list", "nullable"])
def test_some_of_the_genes(adata, fitted, formula, how, assert_same):
    mask = adata.var["tested"]
    if how == "nullable":
        adata.var["tested"] = mask.astype("boolean")
    given = {"column": "tested", "array": mask.to_numpy(), "list": mask.tolist(), "nullable": "tested"}[how]
    scglmm.tl.nbmm(adata, formula, mask_var=given)
    genes = list(adata.var_names[mask])
    assert_same(adata, fitted, genes=genes, padj=False)
    pval, padj = (adata.varm[f"nbmm_{name}"].loc[genes, "Age"] for name in ("pval", "padj"))
    np.testing.assert_allclose(padj, stats.false_discovery_control(pval))
    left_out = adata.varm["nbmm_fit"]["status"][~mask.to_numpy()]
    assert set(left_out) == {"not_selected"}
    assert adata.varm["nbmm_coef"][~mask.to_numpy()].isna().all(axis=None)


def test_order_of_the_genes(adata, fitted, formula, assert_same):
    shuffled = adata[:, np.random.default_rng(5).permutation(adata.n_vars)].copy()
    scglmm.tl.nbmm(shuffled, formula)
    assert_same(shuffled, fitted)


def test_genes_on_their_own(adata, fitted, formula, assert_same):
    """Without the others the tolerance of the nodes may differ, nothing else does."""
    part = adata[:, ["g3", "g29"]].copy()
    scglmm.tl.nbmm(part, formula)
    assert_same(part, fitted, genes=["g3", "g29"], rtol=1e-7, padj=False)


STORAGE = {
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": lambda X: X.toarray(),
    "float64": lambda X: X.astype(np.float64),
    "dense int": lambda X: X.toarray().astype(np.int64),
    "uint16": lambda X: X.astype(np.uint16),
    "unsorted": lambda X: _unsorted(X),
    "duplicates": lambda X: _duplicates(X),
}


def _unsorted(X: sparse.csr_matrix) -> sparse.csr_matrix:
    indices, data = X.indices.copy(), X.data.copy()
    for i in range(X.shape[0]):
        row = slice(X.indptr[i], X.indptr[i + 1])
        indices[row], data[row] = indices[row][::-1], data[row][::-1]
    return sparse.csr_matrix((data, indices, X.indptr), shape=X.shape)


def _duplicates(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """Every count above 1 in two entries, and explicit zeros."""
    rest = np.maximum(X.data - 1, 0)
    first = X.data - rest
    return sparse.csr_matrix(
        (np.stack([first, rest], axis=1).ravel(), np.repeat(X.indices, 2), 2 * X.indptr), shape=X.shape
    )


@pytest.mark.parametrize("kind", STORAGE)
def test_storage_in_memory(adata, fitted, formula, kind, assert_same):
    adata.X = STORAGE[kind](adata.X)
    before = adata.X.copy()
    scglmm.tl.nbmm(adata, formula)
    assert_same(adata, fitted)
    assert type(adata.X) is type(before)
    if sparse.issparse(before):
        np.testing.assert_array_equal(adata.X.data, before.data)
        np.testing.assert_array_equal(adata.X.indices, before.indices)


@pytest.mark.parametrize("where", ["layer", "raw"])
def test_other_places(adata, fitted, formula, where, assert_same):
    if where == "layer":
        adata.layers["counts"] = adata.X.astype(np.int32)
    else:
        adata.raw = adata.copy()
    adata.X = adata.X.log1p()
    arguments = {"layer": {"layer": "counts"}, "raw": {"use_raw": True}}[where]
    scglmm.tl.nbmm(adata, formula, **arguments)
    assert_same(adata, fitted)
    assert adata.uns["nbmm"]["params"]["use_raw"] is (where == "raw")


def test_raw_with_other_genes(adata, fitted, formula, assert_same):
    """Genes are found by name; those that raw lacks are not fitted, those that only raw has are in the total count."""
    X = sparse.hstack([adata.X[:, 10:20], adata.X[:, :1]]).tocsr()
    names = [*adata.var_names[10:20], "unknown"]
    other = ad.AnnData(X, obs=adata.obs, var=pd.DataFrame(index=names))
    other.raw = adata[:, ::-1].copy()
    scglmm.tl.nbmm(other, formula, use_raw=True)
    assert_same(other, fitted, genes=[f"g{i}" for i in range(10, 20)], padj=False)
    assert other.varm["nbmm_fit"].loc["unknown", "status"] == "not_selected"
    with pytest.warns(UserWarning, match="over only 30 genes"):
        scglmm.tl.nbmm(other, "~ Dx + (1|SubID)", use_raw=True)


@pytest.mark.parametrize(("mode", "kind"), [("r+", "csr"), ("r", "csr"), ("r", "csc"), ("r", "dense")])
def test_backed(adata, fitted, formula, mode, kind, tmp_path, assert_same):
    adata.X = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": lambda X: X.toarray()}[kind](adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed=mode)
    try:
        scglmm.tl.nbmm(backed, formula)
        assert_same(backed, fitted)
        assert backed.isbacked
    finally:
        backed.file.close()


def test_order_of_the_cells(adata, fitted, formula, assert_same):
    shuffled = adata[np.random.default_rng(3).permutation(adata.n_obs)].copy()
    scglmm.tl.nbmm(shuffled, formula)
    assert_same(shuffled, fitted, rtol=1e-8)


def test_order_of_the_donors(adata, fitted, formula, assert_same):
    names = adata.obs["SubID"].cat.categories
    adata.obs["SubID"] = adata.obs["SubID"].cat.reorder_categories(names[::-1])
    adata = adata[np.argsort(adata.obs["SubID"].cat.codes, kind="stable")].copy()
    scglmm.tl.nbmm(adata, formula)
    assert_same(adata, fitted, rtol=1e-8)


def test_unused_categories(adata, fitted, formula, assert_same):
    for column, extra in (("SubID", "nobody"), ("Dx", "MCI")):
        adata.obs[column] = adata.obs[column].cat.add_categories(extra)
    scglmm.tl.nbmm(adata, formula)
    assert_same(adata, fitted)
    assert adata.uns["nbmm"]["n_donors"] == 12
    assert list(adata.uns["nbmm"]["factors"]["Dx"]) == ["Control", "AD"]


@pytest.mark.parametrize("dtype", [object, "string", "category"])
def test_types_of_text(adata, fitted, formula, dtype, assert_same):
    for column in ("SubID", "stim"):
        adata.obs[column] = adata.obs[column].astype(str).astype(dtype)
    scglmm.tl.nbmm(adata, formula)
    assert_same(adata, fitted)


def test_missing_values_dropped(adata, formula, assert_same):
    rng = np.random.default_rng(7)
    gone = {name: rng.choice(adata.n_obs, 20, replace=False) for name in ("Age", "SubID", "libSize")}
    with_missing = adata.copy()
    for name, cells in gone.items():
        with_missing.obs.iloc[cells, with_missing.obs.columns.get_loc(name)] = np.nan
    counts = with_missing.X.toarray()
    counts[gone["Age"][0], 3] = np.nan  # a cell that is not used may hold anything
    with_missing.X = sparse.csr_matrix(counts)
    lost = np.zeros(adata.n_obs, bool)
    lost[np.concatenate(list(gone.values()))] = True
    scglmm.tl.nbmm(with_missing, formula, na_action="drop")
    left = adata[~lost].copy()
    scglmm.tl.nbmm(left, formula)
    assert_same(with_missing, left)
    assert with_missing.uns["nbmm"]["n_cells"] == (~lost).sum()
    assert with_missing.n_obs == adata.n_obs


def test_copy(adata, fitted, formula, assert_same):
    before = adata.copy()
    result = scglmm.tl.nbmm(adata, formula, copy=True)
    assert_same(result, fitted)
    assert set(adata.varm) == set(before.varm)
    assert set(adata.uns) == set(before.uns)
    assert scglmm.tl.nbmm(adata, formula) is None


def test_view(adata, fitted, formula, assert_same):
    view = adata[:, :]
    with pytest.warns(ad.ImplicitModificationWarning, match="view"):
        scglmm.tl.nbmm(view, formula)
    assert_same(view, fitted)
    assert "nbmm_coef" not in adata.varm


def test_other_processes(adata, fitted, formula, assert_same, tmp_path):
    """joblib may be told to use processes: tasks can be pickled, and nothing of the result changes.

    Both runs happen in a fresh interpreter, so that all processes load the same compiled code from numba's cache, which
    `fitted` has filled: code that a process has just compiled itself may differ from it in the last bit.
    """
    code = (
        "import sys, anndata, joblib, scglmm\n"
        "if __name__ == '__main__':\n"
        "    adata = anndata.read_h5ad(sys.argv[1])\n"
        "    other = adata.copy()\n"
        "    scglmm.tl.nbmm(adata, sys.argv[2], n_jobs=1)\n"
        "    with joblib.parallel_config(backend='loky'):\n"
        "        scglmm.tl.nbmm(other, sys.argv[2], n_jobs=2)\n"
        "    adata.write_h5ad(sys.argv[3])\n"
        "    other.write_h5ad(sys.argv[4])\n"
    )
    paths = [str(tmp_path / name) for name in ("in.h5ad", "one.h5ad", "two.h5ad")]
    adata.write_h5ad(paths[0])
    subprocess.run([sys.executable, "-c", code, paths[0], formula, *paths[1:]], check=True, capture_output=True)
    one, two = (ad.read_h5ad(path) for path in paths[1:])
    assert_same(two, one)
    assert_same(two, fitted, rtol=1e-8)


# ------------------------------------------------------------------------------------------------------------- statuses


def status_of(adata, **genes: np.ndarray) -> ad.AnnData:
    """The data with some genes replaced."""
    X = adata.X.toarray()
    for name, counts in genes.items():
        X[:, adata.var_names.get_loc(name)] = counts
    adata.X = sparse.csr_matrix(X)
    return adata


def test_a_gene_that_is_absent_in_one_condition(adata, fitted, formula, assert_same):
    gene = adata[:, "g20"].X.toarray().ravel()
    absent = status_of(adata.copy(), g20=gene * (adata.obs["stim"] == "ctrl").to_numpy())
    scglmm.tl.nbmm(absent, formula)
    assert absent.varm["nbmm_fit"].loc["g20", "status"] == "separated"
    assert absent.uns["nbmm"]["status_counts"]["separated"] == 1
    for name in PER_COEFFICIENT:
        table = absent.varm[f"nbmm_{name}"]
        assert np.isnan(table.loc["g20", "stim[T.stim]"])
        assert table.loc["g20", ["(Intercept)", "Dx[T.AD]", "Age"]].notna().all()
    vcov = absent.varm["nbmm_vcov"][20]
    assert np.isnan(vcov[6:]).all()
    assert np.isfinite(vcov[:6]).all()
    assert absent.varm["nbmm_varpart"].loc["g20"].isna().all()
    assert absent.varm["nbmm_padj"]["stim[T.stim]"].notna().sum() == 29
    # the others do not notice, and what is left of the gene is the fit of the cells that have it
    others = [name for name in adata.var_names if name != "g20"]
    assert_same(absent, fitted, genes=others, padj=False)
    alone = adata[adata.obs["stim"] == "ctrl"].copy()
    scglmm.tl.nbmm(alone, formula.replace(" + stim", ""))
    for name in ("coef", "se", "dof"):
        one, two = (x.varm[f"nbmm_{name}"].loc["g20", ["Dx[T.AD]", "Age"]] for x in (absent, alone))
        np.testing.assert_allclose(one, two, rtol=1e-6)
    assert scglmm.get.nbmm_df(absent, "stim[T.stim]")["gene"].iloc[-1] == "g20"
    assert sc.get.rank_genes_groups_df(absent, "stim[T.stim]", key="nbmm")["names"].iloc[-1] == "g20"


def test_rare_genes(adata, formula):
    n = adata.n_obs
    one, nine, ten = np.zeros((3, n))
    one[5] = 3
    nine[:9] = 1
    ten[:10] = 1
    adata = status_of(adata, g0=np.zeros(n), g1=one, g2=nine, g3=ten)
    scglmm.tl.nbmm(adata, formula)
    fit = adata.varm["nbmm_fit"]
    assert fit["status"].iloc[:3].tolist() == ["too_few_counts"] * 3
    assert fit["status"].iloc[3] not in {"too_few_counts", "not_selected"}
    assert fit["n_cells"].iloc[:4].tolist() == [0, 1, 9, 10]
    np.testing.assert_allclose(fit["mean"].iloc[:4], [0, 3 / n, 9 / n, 10 / n])
    assert adata.varm["nbmm_coef"].iloc[:3].isna().all(axis=None)
    scglmm.tl.nbmm(adata, formula, min_cells=0)
    fit = adata.varm["nbmm_fit"]
    assert fit["status"].iloc[0] == "too_few_counts"
    assert set(fit["status"].iloc[1:3]) <= {"separated", "singular", "ok", "poisson_limit"}
    scglmm.tl.nbmm(adata, formula, min_cells=n + 1)
    assert set(adata.varm["nbmm_fit"]["status"]) == {"too_few_counts"}
    assert adata.varm["nbmm_varpart"].isna().all(axis=None)
    scglmm.get.nbmm_df(adata, "Age")


def test_poisson_counts_have_theta_at_infinity(adata, formula, tmp_path):
    counts = np.random.default_rng(1).binomial(1, 0.2, adata.n_obs)  # less spread than Poisson
    adata = status_of(adata, g7=counts)
    scglmm.tl.nbmm(adata, formula)
    fit = adata.varm["nbmm_fit"].loc["g7"]
    assert fit["status"] in {"poisson_limit", "singular"}
    assert np.isposinf(fit["theta"])
    assert adata.varm["nbmm_varpart"].loc["g7", "Residuals"] == 0
    np.testing.assert_allclose(adata.varm["nbmm_varpart"].loc["g7"].sum(), 1)
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert np.isposinf(ad.read_h5ad(tmp_path / "a.h5ad").varm["nbmm_fit"].loc["g7", "theta"])


def test_every_gene_has_a_status(toy):
    """Counts that mock the model: every gene ends with a status and nothing is raised."""
    rng = np.random.default_rng(2)
    obs = toy.make_obs(120, 12, rng)
    X = np.zeros((120, 12))
    X[:, 0] = 10_000
    X[:, 1] = rng.integers(0, 2, 120) * 100_000
    X[3, 2] = 1_000_000
    X[:, 3] = obs["SubID"] == "D00"
    X[:, 4] = (obs["Dx"] == "AD") * 5
    X[:, 5] = (obs["Dx"] != "AD") * rng.poisson(0.1, 120)
    X[:, 6] = rng.poisson(np.exp(rng.normal(0, 4, 12)))[obs["SubID"].cat.codes]
    X[:, 7] = np.arange(120)
    X[:, 8] = rng.negative_binomial(0.01, 0.001, 120)
    X[:, 9] = rng.poisson(1e5, 120)
    X[:, 10] = np.where(obs["SubID"].isin(["D00", "D03"]), 7, 0)
    X[0, 11] = 1
    adata = ad.AnnData(X, obs=obs)
    known = {"ok", "singular", "poisson_limit", "separated", "not_converged"}
    for formula in ("Dx + (1|SubID)", "Dx * Sex + Age + (1|SubID)", "Dx + (libSize|SubID)"):
        for method in ("reml", "ml"):
            scglmm.tl.nbmm(adata, f"~ offset(log(libSize)) + {formula}", min_cells=0, method=method)
            status = adata.varm["nbmm_fit"]["status"]
            assert set(status) <= known
            tested = adata.varm["nbmm_pval"].notna()
            assert (adata.varm["nbmm_se"].to_numpy()[tested] > 0).all()
            assert not tested[status.isin(["not_converged"]).to_numpy()].any(axis=None)


# ----------------------------------------------------------------------------------------------------- models and terms


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


def test_a_covariate_of_cells(adata):
    """Every cell is a stratum: nothing is compressed, and the degrees of freedom are many."""
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + quality + (1|SubID)", mask_var="tested")
    assert adata.uns["nbmm"]["n_strata"] == adata.n_obs
    assert adata.uns["nbmm"]["n_nodes"] == adata.n_obs
    table = scglmm.get.nbmm_df(adata, "quality").dropna(subset="pval")
    assert (table["df"] > 100).all()
    assert (table["log_fc"].abs() < 5 * table["se"]).all()


# --------------------------------------------------------------------------------------------------------------- offset


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
