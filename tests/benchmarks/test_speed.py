"""The comparison of implementations: the yardstick is right, the report says what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import scglmm  # noqa: E402
from benchmarks.data import FORMULA  # noqa: E402
from benchmarks.measure import WorkerFailed, run_json  # noqa: E402
from benchmarks.speed import report, tools  # noqa: E402
from benchmarks.speed import run as speed  # noqa: E402
from benchmarks.speed.problem import Problem  # noqa: E402
from benchmarks.speed.yardstick import log_likelihood  # noqa: E402


@pytest.fixture(scope="module")
def problem():
    adata = scglmm.datasets.psychad()
    adata = adata[np.linspace(0, adata.n_obs - 1, 2000).astype(int)].copy()
    return Problem.of(adata, FORMULA, np.array([3, 40]))


@pytest.mark.parametrize("theta", [0.6, 30.0, np.inf])
def test_yardstick_is_the_integral(theta):
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(4), 7)
    eta = rng.normal(0.3, 0.5, 28)
    y = rng.poisson(np.exp(eta + rng.normal(0, 0.7, 4)[donor])).astype(float)
    sigma2 = 0.5

    def integrand(u, d):
        mu = np.exp(eta[donor == d] + u)
        counts = stats.poisson(mu) if np.isinf(theta) else stats.nbinom(theta, theta / (theta + mu))
        return counts.pmf(y[donor == d]).prod() * stats.norm.pdf(u, 0, np.sqrt(sigma2))

    exact = sum(np.log(integrate.quad(integrand, -8, 8, args=(d,), epsabs=0, limit=200)[0]) for d in range(4))
    assert log_likelihood(y, eta, donor, sigma2, theta, 25) == pytest.approx(exact, abs=1e-7)
    assert log_likelihood(y, eta, donor, sigma2, theta) == pytest.approx(exact, abs=0.1)
    without = log_likelihood(y, eta, donor, 0.0, theta)
    assert log_likelihood(y, eta, donor, 1e-9, theta) == pytest.approx(without, abs=1e-4)


def test_yardstick_is_the_likelihood_of_glmmtmb(reference):
    import anndata as ad
    import pandas as pd

    adata = ad.read_h5ad(reference / "psychad40.h5ad")
    table = pd.read_csv(reference / "psychad40_glmmTMB.csv").set_index("gene").loc["G16"]
    age = adata.obs["Age"].to_numpy(float)
    age = (age - age.mean()) / age.std(ddof=1)
    columns = [np.ones(adata.n_obs), adata.obs["Dx"] == "AD", age, adata.obs["Sex"] == "M"]
    beta = table[["logFC_Intercept", "logFC_DxAD", "logFC_Age_s", "logFC_SexM"]].to_numpy(float)
    eta = np.log(adata.obs["libSize"].to_numpy(float)) + np.column_stack(columns).astype(float) @ beta
    y = np.asarray(adata[:, "G16"].X.todense(), float).ravel()
    donor = adata.obs["SubID"].cat.codes.to_numpy()
    value = log_likelihood(y, eta, donor, table["sigma2_subject"], table["theta"])
    assert value == pytest.approx(table["logLik"], abs=1e-4)


def test_problem_survives_files(problem, tmp_path):
    problem.write(tmp_path)
    again = Problem.read(tmp_path)
    assert (again.names, again.genes) == (problem.names, problem.genes)
    for name in ("X", "donor", "offset", "counts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(problem, name))
    assert (np.diff(again.donor) >= 0).all()
    np.testing.assert_allclose(again.X[:, 1:].mean(axis=0), 0, atol=1e-12)
    with pytest.raises(ValueError, match=r"one term"):
        Problem.of(scglmm.datasets.psychad()[:500].copy(), "~ Age + (Age|SubID)", np.array([0]))


def test_ways_to_call_scglmm_agree_and_are_reported(problem, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tools, "ENOUGH", 4)

    def run_here(tool, folder, timeout):
        fits = [vars(fit) for fit in tool.fit(Problem.read(folder))]
        return {"version": "1", "fits": fits, "note": "stopped" if tool.name.endswith("ML") else ""}

    monkeypatch.setattr(speed, "run", run_here)
    monkeypatch.setattr(speed, "is_installed", lambda tool: tool.is_ours)
    chosen = ["scglmm, fits", "scglmm, tl.nbmm ML", "scglmm, tl.nbmm REML", "glmmTMB"]
    monkeypatch.setattr(speed, "TOOLS", {name: tools.TOOLS[name] for name in chosen})
    speed.main(["--smoke", "--tools", *chosen, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "glmmTMB: not installed here." in printed
    assert "scglmm, tl.nbmm ML: 2 genes, then: stopped." in printed
    assert (tmp_path / "speed.md").read_text().strip().endswith(printed.strip()[-500:])
    import pandas as pd

    table = pd.read_csv(tmp_path / "speed.csv").set_index(["tool", "gene"])
    assert (table["cpu"] > 0).all()
    both = table.loc["scglmm, fits"], table.loc["scglmm, tl.nbmm ML"]
    np.testing.assert_allclose(both[0]["laplace"], both[1]["laplace"], atol=1e-6)
    np.testing.assert_allclose(both[0]["laplace"], both[0]["loglik"], atol=1e-4)  # scglmm's own
    assert table.loc["scglmm, tl.nbmm REML", "laplace_gap"].isna().all()
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_a_tool_that_fails_says_why():
    with pytest.raises(WorkerFailed, match=r"^no luck$"):
        run_json([sys.executable, "-c", "print('hello'); raise SystemExit('at first\\nno luck')"])
    with pytest.raises(WorkerFailed, match=r"not done after"):
        run_json([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    code = "import os; print('RESULT {\"threads\": ' + os.environ['OMP_NUM_THREADS'] + '}')"
    assert run_json([sys.executable, "-c", code], one_thread=True) == {"threads": 1}


def test_ratio_is_over_the_same_genes():
    problem = Problem([], ["a", "b"], np.ones((4, 1)), np.array([0, 0, 1, 1]), np.zeros(4), np.ones((4, 2)))
    results = report.Results(problem, "")

    def fit(gene, cpu):
        return vars(tools.Fit(gene, cpu, cpu, [0.1], 0.1, 2.0, 2.0**20))

    results.add(tools.TOOLS["scglmm, fits"], {"version": "", "fits": [fit("a", 1.0), fit("b", 100.0)], "note": ""})
    results.add(tools.TOOLS["glmmTMB"], {"version": "", "fits": [fit("a", 7.0)], "note": ""})
    assert results.by_tool.loc["glmmTMB", "ratio"] == 7.0
    assert results.by_tool["laplace_worst"].max() == 0
