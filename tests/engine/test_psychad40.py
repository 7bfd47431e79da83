"""The 40 simulated genes of `psychad40.h5ad`: compressed against uncompressed, and against glmmTMB."""

from __future__ import annotations

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scglmm.compression.counts import canonical
from scglmm.compression.nodes import make_nodes
from scglmm.compression.strata import find_strata
from scglmm.compression.tables import accumulate
from scglmm.engine.fit import OK, fit
from scglmm.engine.laplace import laplace
from scglmm.engine.layout import make_work
from scglmm.engine.responses import Responses
from scglmm.engine.structure import analyse

COEFFICIENTS = ["Intercept", "DxAD", "Age_s", "SexM"]


@pytest.fixture(scope="module")
def psychad(reference):
    """Designs built by hand, and every gene both ways."""
    adata = ad.read_h5ad(reference / "psychad40.h5ad")
    obs = adata.obs
    n = adata.n_obs
    donor = obs["SubID"].cat.codes.to_numpy()
    age = (obs["Age"] - obs["Age"].mean()) / obs["Age"].std()
    X = np.column_stack([np.ones(n), obs["Dx"] == "AD", age, obs["Sex"] == "M"]).astype(float)
    offset = np.log(obs["libSize"].to_numpy(float))
    stratum, first = find_strata([*X.T, donor], n)
    assert first.size == 249
    structure, _ = analyse([donor[first]], [249], [np.ones((249, 1))], 249)
    genes, shift = np.arange(adata.n_vars), offset.max()
    # Columns of mean square 1: X = Q R over the cells.
    R = np.linalg.qr(X, mode="r") / np.sqrt(n)
    Q = np.ascontiguousarray(X[first] @ np.linalg.inv(R))
    both = {}
    for name, compress in (("compressed", True), ("full", False)):
        nodes = make_nodes(stratum, offset, compress=compress)
        both[name] = Responses(nodes, accumulate(canonical(adata.X), np.arange(n), nodes, genes, 2), shift)
    work = make_work(structure, Q)
    return SimpleNamespace(
        names=list(adata.var_names), structure=structure, Q=Q, R=R, shift=shift, work=work, **both
    )  # fmt: skip


def pooled(psychad, data) -> np.ndarray:
    """First guess of the engine's coefficients: the pooled rate."""
    return psychad.R[:, 0] * np.log(data.y_sum.sum() / (data.nodes[0] @ data.nodes[1]))


def criterion(psychad, data, par, joint, beta):
    gradient, beta, v = np.empty(par.size), beta.copy(), np.zeros(249)
    return laplace(data, psychad.structure, psychad.Q, joint, True, par, beta, v, gradient, psychad.work), gradient


def test_compressed_against_uncompressed(psychad):
    assert psychad.compressed[0].nodes.shape[1] < 0.15 * psychad.full[0].nodes.shape[1]
    for g in range(len(psychad.names)):
        data, full = psychad.compressed[g], psychad.full[g]
        beta = pooled(psychad, data)
        at_optimum = fit(data, psychad.structure, psychad.Q, True, beta, work=psychad.work)
        assert data.y_sum.tolist() == full.y_sum.tolist()
        for joint, par in (
            (False, np.r_[beta, 0.5, 0.3]),
            (False, np.r_[at_optimum.beta, at_optimum.psi, at_optimum.log_theta]),
            (True, np.r_[at_optimum.psi, at_optimum.log_theta]),
        ):
            value, gradient = criterion(psychad, data, par, joint, beta)
            exact, exact_gradient = criterion(psychad, full, par, joint, beta)
            assert value == pytest.approx(exact, rel=1e-8)
            assert abs(value - exact) < 1e-4
            assert np.abs(gradient - exact_gradient).max() <= 1e-6 * (1 + np.abs(exact_gradient).max())


def test_estimates_do_not_depend_on_the_compression(psychad):
    for g in (2, 11, 24):
        found = [
            fit(data[g], psychad.structure, psychad.Q, True, pooled(psychad, data[g]), work=psychad.work)
            for data in (psychad.compressed, psychad.full)
        ]
        assert found[0].status == found[1].status == OK
        assert found[0].beta == pytest.approx(found[1].beta, abs=1e-7)
        assert found[0].psi == pytest.approx(found[1].psi, abs=1e-7)
        assert found[0].log_theta == pytest.approx(found[1].log_theta, abs=1e-6)


@pytest.fixture(scope="module")
def expected(reference) -> pd.DataFrame:
    return pd.read_csv(reference / "psychad40_glmmTMB.csv", index_col="gene")


def test_maximum_likelihood_against_glmmtmb(psychad, expected):
    checked = 0
    for name, row in expected.iterrows():
        data = psychad.compressed[psychad.names.index(name)]
        found = fit(data, psychad.structure, psychad.Q, False, pooled(psychad, data), work=psychad.work)
        assert found.status == OK
        if name == "G40":  # where glmmTMB does not converge
            assert found.value >= -1839.27
            continue
        checked += 1
        assert row["convergence"] == 0
        back = np.linalg.inv(psychad.R)
        free = np.ix_(found.free, found.free)
        covariance = np.zeros(found.hessian.shape)
        covariance[free] = np.linalg.inv(-found.hessian[free])
        beta = back @ found.beta - psychad.shift * np.eye(4)[0]
        se = np.sqrt(np.diag(back @ covariance[:4, :4] @ back.T))
        beta_there = row[[f"logFC_{c}" for c in COEFFICIENTS]].to_numpy(float)
        se_there = row[[f"se_{c}" for c in COEFFICIENTS]].to_numpy(float)
        assert np.abs((beta - beta_there) / se_there).max() < 0.002
        assert np.abs(se / se_there - 1).max() < 0.002
        assert found.psi[0] ** 2 == pytest.approx(row["sigma2_subject"], rel=1e-3)
        assert np.exp(-found.log_theta) == pytest.approx(1 / row["theta"], rel=1e-3, abs=2e-5)
        assert found.value == pytest.approx(row["logLik"], abs=0.01)
    assert checked == 11


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
def test_all_genes_end_at_an_optimum(psychad, joint):
    evaluations = []
    for g in range(len(psychad.names)):
        data = psychad.compressed[g]
        found = fit(data, psychad.structure, psychad.Q, joint, pooled(psychad, data), work=psychad.work)
        assert found.status == OK
        assert found.grad < 1e-6 * max(1.0, 1e-3 * abs(found.value))
        evaluations.append(found.n_eval)
    assert np.median(evaluations) <= 30
