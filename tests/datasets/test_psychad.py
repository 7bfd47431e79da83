from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scglmm
from scglmm.datasets import _psychad

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(scope="module")
def adata():
    return scglmm.datasets.psychad()


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("simulate_psychad", DATA / "simulate_psychad.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cells(adata):
    obs = adata.obs
    assert adata.n_vars == 400
    assert abs(adata.n_obs - 60_000) < 500
    assert list(obs["Dx"].cat.categories) == ["Control", "AD"]
    assert list(obs["Sex"].cat.categories) == ["F", "M"]
    assert obs["Age"].between(40, 110).all()
    cells = obs["SubID"].value_counts()
    assert len(cells) == 249
    assert cells.min() >= 10
    assert cells.max() > 5 * cells.median()
    # Dx, Age and Sex belong to the donor.
    assert (obs.groupby("SubID", observed=True)[["Dx", "Age", "Sex"]].nunique() == 1).all(axis=None)


def test_counts(adata):
    assert sparse.issparse(adata.X)
    assert adata.X.format == "csr"
    counts = adata.X.data
    assert np.all(counts == np.round(counts))
    assert counts.min() >= 1
    total = np.asarray(adata.X.sum(axis=1)).ravel()
    assert np.all(total <= adata.obs["libSize"].to_numpy())
    assert np.issubdtype(adata.obs["libSize"].dtype, np.integer)


def test_truth(adata):
    var = adata.var
    assert var.notna().all(axis=None)
    assert var.index.is_unique
    assert var["mean"].between(0.0015, 22).all()
    assert var["mean"].min() < 0.003
    assert var["mean"].max() > 18
    assert var["theta"].between(0.05, 50).all()
    assert var["var_SubID"].between(0, 1.5).all()
    assert np.mean(var["beta_DxAD"] != 0) == pytest.approx(0.25, abs=0.05)
    np.testing.assert_allclose(var["mean"], adata.X.astype(np.float64).mean(axis=0).A1)


def test_counts_follow_the_truth(adata):
    """Around each donor's own rate, counts of well expressed genes vary as NB2 with the true theta."""
    donor = adata.obs["SubID"].cat.codes.to_numpy()
    lib = adata.obs["libSize"].to_numpy().astype(float)
    genes = np.flatnonzero((adata.var["mean"] > 1) & (adata.var["theta"] > 1))[:20]
    ratios = []
    for y, theta in zip(adata.X[:, genes].toarray().T.astype(float), adata.var["theta"].iloc[genes], strict=True):
        mu = lib * (np.bincount(donor, y) / np.bincount(donor, lib))[donor]
        pearson = (y - mu) ** 2 / np.where(mu > 0, mu + mu**2 / theta, 1.0)
        ratios.append(pearson.sum() / (len(y) - 249))
    np.testing.assert_allclose(ratios, 1.0, atol=0.1)


def test_ptprg_has_the_published_figures(adata):
    truth = adata.var.loc["PTPRG"]
    assert truth["theta"] == 0.2443
    assert truth["var_SubID"] == 0.4803
    assert truth[["beta_DxAD", "beta_Age", "beta_SexM"]].to_list() == [1.103, -0.00726, -0.103]
    assert truth["zeros"] == pytest.approx(0.71, abs=0.005)
    expected, published = (pd.Series(adata.uns["PTPRG"][name]) for name in ("expected", "published"))
    assert expected.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(expected, published[expected.index], rtol=0.05)
    np.testing.assert_allclose(expected, published[expected.index], atol=0.001)


def test_ptprg_variance_over_cells(adata):
    """The covariates' spread over cells, which the published fractions rest on."""
    obs = adata.obs
    assert np.var(obs["Dx"] == "AD") == pytest.approx(0.25, abs=0.003)
    assert np.var(obs["Sex"] == "M") == pytest.approx(0.25, abs=0.003)
    assert np.std(obs["Age"]) == pytest.approx(9.77, abs=0.05)


def test_file_is_small():
    assert (DATA / "psychad_sim.h5ad").stat().st_size < 12_000_000


def test_script_makes_the_file(adata, script):
    """Donors, cells and the first genes made again are those of the file."""
    genes = 6
    obs_seed, truth_seed, *_ = np.random.SeedSequence(script.SEED).spawn(adata.n_vars + 2)
    rng = np.random.default_rng(obs_seed)
    obs = script.draw_cells(rng, script.draw_donors(rng, 249, 60_000))
    assert obs.index.to_list() == adata.obs_names.to_list()
    for column in ["SubID", "Dx", "Sex"]:
        assert obs[column].astype(str).to_list() == adata.obs[column].astype(str).to_list()
    # The last digits of exp and log differ between platforms.
    np.testing.assert_allclose(obs["Age"], adata.obs["Age"], atol=0.11)
    np.testing.assert_allclose(obs["libSize"], adata.obs["libSize"], atol=1)
    truth = script.draw_truth(np.random.default_rng(truth_seed), adata.n_vars - 1)
    columns = ["beta_DxAD", "beta_Age", "beta_SexM", "var_SubID", "theta"]
    np.testing.assert_allclose(truth[columns].head(genes), adata.var[columns].iloc[1 : genes + 1])


def test_simulate_is_deterministic(script):
    small = {"n_donors": 80, "n_cells": 4_000, "n_genes": 5, "n_draws": 3}
    one, two = script.simulate(**small), script.simulate(**small)
    assert (one.X != two.X).nnz == 0
    pd.testing.assert_frame_equal(one.obs, two.obs)
    pd.testing.assert_frame_equal(one.var, two.var)
    other = script.simulate(**small, seed=1)
    assert (one.X != other.X).nnz > 0


def test_too_few_donors_for_ptprg(script):
    with pytest.raises(ValueError, match="too few donors"):
        script.simulate(n_donors=6, n_cells=300, n_genes=2, n_draws=1)


def test_missing_file(monkeypatch, tmp_path):
    monkeypatch.setattr(_psychad, "_NAME", "absent.h5ad")
    monkeypatch.setattr(_psychad, "_checkout", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"simulate_psychad\.py"):
        scglmm.datasets.psychad()


def test_reads_the_packaged_file_first(monkeypatch, tmp_path, adata):
    small = adata[:5, :2].copy()
    small.write_h5ad(tmp_path / "psychad_sim.h5ad")
    monkeypatch.setattr(_psychad, "files", lambda _: tmp_path)
    assert scglmm.datasets.psychad().shape == (5, 2)
