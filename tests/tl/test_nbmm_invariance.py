"""`scglmm.tl.nbmm`: what the results do not depend on."""

from __future__ import annotations

import subprocess
import sys

import anndata as ad
import joblib
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse, stats

import scglmm
from scglmm.tl._precision import share_genes


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


ALONE = {
    "memory": {},
    "columns": {},
    "backed": {},
    "dense": {},
    "groups": {"groupby": "Dx"},
    "ml": {"method": "ml"},
    "zero inflation": {"ziformula": "~ 1", "method": "ml"},
    "covariate": {},
}


@pytest.mark.parametrize("how", ALONE)
def test_genes_on_their_own(adata, formula, how, tmp_path):
    """To the last bit the same without the others, which need finer nodes or not: one has a million counts."""
    rng = np.random.default_rng(1)
    X = adata.X.toarray()
    X[:, 5] = rng.poisson(rng.gamma(2, 0.5 * adata.obs["libSize"]))
    assert X[:, 5].sum() > 1e6
    sparse_as = {"columns": sparse.csc_matrix, "dense": np.asarray}.get(how, sparse.csr_matrix)
    rest = "(1|SubID)" if how == "groups" else "Dx + Age + stim + (1|SubID)"
    rest = "Dx + quality + (1|SubID)" if how == "covariate" else rest

    def fit(genes: list[str], **more: object) -> ad.AnnData:
        part = adata[:, genes].copy()
        part.X = sparse_as(X[:, adata.var_names.get_indexer(genes)])
        if how == "backed":
            part.write_h5ad(tmp_path / "a.h5ad")
            part = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
        try:
            scglmm.tl.nbmm(part, f"~ offset(log(libSize)) + {rest}", **ALONE[how] | more)
        finally:
            if part.isbacked:
                part.file.close()
        return part

    whole = fit(list(adata.var_names))
    for some in (["g29", "g5", "g3", "g14"], ["g3", "g14"], ["g29", "g27"]):
        alone = fit(some, n_jobs=2, min_cells=1, **({"max_memory": "1GB"} if how == "backed" else {}))
        for key in alone.varm:
            one, two = alone.varm[key], whole.varm[key]
            if key == "nbmm_padj" or key == "loadings":
                continue
            if isinstance(one, pd.DataFrame):
                statuses = [name for name in one if name.endswith("status")]
                two = two.loc[some]
                assert (one[statuses].astype(str) == two[statuses].astype(str)).all(axis=None)
                pd.testing.assert_frame_equal(
                    one.drop(columns=statuses), two.drop(columns=statuses), check_exact=True, obj=key
                )
            else:
                np.testing.assert_array_equal(one, two[whole.var_names.get_indexer(some)], err_msg=key)


def test_counts_choose_the_nodes():
    """Every gene keeps the absolute error, and only its own counts matter."""
    totals = np.array([1e7, 0, 50_000, 50_001, 5e6, 5.1e6, 3])
    shares = share_genes(2, totals)
    assert [share.group for share in shares] == [2, 2, 2]
    assert [share.at.tolist() for share in shares] == [[1, 2, 6], [3, 4], [0, 5]]
    for share in shares:
        assert (share.tolerance * 20 * totals[share.at] <= 1.0001e-4).all()
    assert [share.tolerance for share in share_genes(0, totals[[5]])] == [1e-14]
    (empty,) = share_genes(0, np.empty(0))
    assert empty.at.size == 0


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
    # what is not sparse in memory is read once, onto finer nodes, and so added up in another order
    assert_same(adata, fitted, rtol=None if sparse.issparse(before) else 1e-8)
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
        assert_same(backed, fitted, rtol=1e-8)
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

    Both runs happen in a fresh interpreter, whose processes load from numba's cache what this one may have compiled
    itself.
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
    assert_same(two, fitted)
