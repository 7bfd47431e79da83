"""A gene of an AnnData as the response."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scglmm


@pytest.fixture
def adata():
    rng = np.random.default_rng(3)
    n = 200
    obs = pd.DataFrame(
        {"donor": np.repeat([f"d{i}" for i in range(10)], 20), "libSize": rng.integers(500, 5000, n).astype(float)},
        index=[f"c{i}" for i in range(n)],
    )
    obs["group"] = np.where(obs["donor"].str[1].astype(int) < 5, "a", "b")
    counts = rng.poisson(obs["libSize"].to_numpy()[:, None] * [0.001, 0.002, 0.004])
    var = pd.DataFrame(index=["G1", "HLA-DRA", "G3"])
    return AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


FORMULA = "G1 ~ offset(log(libSize)) + group + (1|donor)"


def test_a_gene(adata):
    fit = scglmm.glmm(FORMULA, adata)
    assert fit.family == "nbinom2"
    frame = adata.obs.assign(G1=adata[:, "G1"].X.toarray().ravel())
    same = scglmm.glmm(FORMULA, frame, family="nbinom2")
    pd.testing.assert_frame_equal(fit.coef_table, same.coef_table)
    assert list(fit.fitted().index) == list(adata.obs_names)
    assert "G1" not in adata.obs


def test_the_same_numbers_as_for_all_genes(adata):
    scglmm.tl.nbmm(adata, FORMULA.replace("G1 ", ""))
    for gene in ("G1", "G3"):
        fit = scglmm.glmm(FORMULA.replace("G1", gene), adata, reml=True)
        np.testing.assert_allclose(fit.coef_table["estimate"], adata.varm["nbmm_coef"].loc[gene], rtol=1e-5)
        # at the estimated variances; those of glmm count their estimation as well, as glmmTMB's do
        own = np.sqrt(np.diag(fit.estimates.vcov_fixed))
        np.testing.assert_allclose(own, adata.varm["nbmm_se"].loc[gene], rtol=1e-4)
        np.testing.assert_allclose(fit.coef_table["se"], own, rtol=0.02)


@pytest.mark.parametrize("change", ["dense", "csc", "layer", "raw", "int"])
def test_wherever_the_counts_are(adata, change):
    expected = scglmm.glmm(FORMULA, adata).coef_table
    options = {}
    if change == "dense":
        adata.X = adata.X.toarray()
    elif change == "csc":
        adata.X = adata.X.tocsc()
    elif change == "int":
        adata.X = adata.X.astype(np.int64)
    elif change == "layer":
        adata.layers["counts"] = adata.X.copy()
        adata.X = adata.X * 0.5
        options["layer"] = "counts"
    else:
        adata.raw = adata.copy()
        adata = adata[:, ["G3"]].copy()
        options["use_raw"] = True
    pd.testing.assert_frame_equal(scglmm.glmm(FORMULA, adata, **options).coef_table, expected)


def test_names_with_a_minus(adata):
    fit = scglmm.glmm(FORMULA.replace("G1", "HLA-DRA"), adata)
    assert fit.model.response == "`HLA-DRA`"
    assert fit.model.y.sum() == adata[:, "HLA-DRA"].X.sum()


def test_a_column_of_obs_as_the_response(adata):
    fit = scglmm.glmm("log(libSize) ~ group + (1|donor)", adata)
    assert fit.family == "gaussian"


def test_without_an_offset_it_is_said(adata):
    with pytest.warns(UserWarning, match="no offset, so the library sizes of the cells count as an effect on 'G1'"):
        scglmm.glmm("G1 ~ group + (1|donor)", adata)


@pytest.mark.parametrize(
    ("formula", "options", "error", "message"),
    [
        ("G2 ~ group", {}, KeyError, "'G2' is neither a gene nor a column of `adata.obs`; near names are 'G"),
        (FORMULA, {"layer": "count"}, KeyError, "layer='count' is not a layer of `adata`; the layers are 'counts'"),
        (FORMULA, {"use_raw": True}, ValueError, "`adata.raw` is not set"),
        (FORMULA, {"use_raw": True, "layer": "counts"}, ValueError, "name two places"),
        ("G1 ~ offset(log(libsize)) + group", {}, KeyError, "obs has no column 'libsize'"),
        (FORMULA, {"layer": "half"}, ValueError, "'G1' is fractional"),
    ],
)
def test_refused(adata, formula, options, error, message):
    adata.layers["counts"] = adata.X.copy()
    adata.layers["half"] = adata.X * 0.5
    with pytest.raises(error, match=message):
        scglmm.glmm(formula, adata, **options)


def test_a_gene_that_is_a_column_too(adata):
    adata.obs["G1"] = 1.0
    with pytest.raises(ValueError, match="'G1' is a gene and a column of"):
        scglmm.glmm(FORMULA, adata)
