"""`scglmm.tl.nbmm`: what becomes of genes that cannot be fitted as others can."""

from __future__ import annotations

import anndata as ad
import numpy as np
import scanpy as sc
from scipy import sparse

import scglmm

PER_COEFFICIENT = ("coef", "se", "stat", "dof", "pval", "padj")


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
