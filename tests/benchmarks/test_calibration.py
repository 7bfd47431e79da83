"""The calibration study runs, goes on where it was stopped, and computes what it says."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.calibration import bias, bulk, composition, methods, metrics, rbulk, run  # noqa: E402
from benchmarks.calibration.realdata import RealNull  # noqa: E402
from benchmarks.calibration.scenarios import MISFITS, Scenario, grid, smoke  # noqa: E402
from benchmarks.calibration.simulate import simulate  # noqa: E402
from benchmarks.calibration.store import Result, Store  # noqa: E402

SMALL = Scenario("small", "test", n=4, cells=40, n_genes=60, datasets=2)


@pytest.fixture(scope="module")
def small():
    return simulate(SMALL, 0).kept()


def test_smoke_run_resumes_and_reports(tmp_path, capsys):
    arguments = ["--smoke", "--out", str(tmp_path), "--scenario", "smoke-within-4"]
    run.main([*arguments, "--methods", "reml", "Wilcoxon, cells"])
    assert "1 tasks" in capsys.readouterr().out
    run.main([*arguments, "--methods", "reml", "Wilcoxon, cells", "ml-z"])  # one more method: the others are kept
    files = sorted(p.relative_to(tmp_path).parts[1] for p in tmp_path.glob("*/*/*.npz"))
    assert files == sorted(2 * ["Wilcoxon, cells", "ml-z", "reml", "truth"])
    capsys.readouterr()
    run.main([*arguments, "--methods", "reml"])
    assert "0 tasks" in capsys.readouterr().out

    summary = pd.read_csv(tmp_path / "tables" / "summary.csv").set_index("method")
    assert list(summary.index) == ["ml-z", "reml", "Wilcoxon, cells"]
    assert summary["type1_0.05"].between(0, 1).all()
    assert (tmp_path / "tables" / "type1.png").stat().st_size > 10_000
    text = (tmp_path / "tables" / "tables.md").read_text()
    lines = text.splitlines()
    at = lines.index("## Type I error at 5%, in percent")
    assert [line.count("|") for line in lines[at + 2 : at + 5]] == [5, 5, 5]


def test_tables_without_mixed_models(tmp_path):
    run.main(["--smoke", "--out", str(tmp_path), "--scenario", "smoke-between-4v4-t", "--methods", "Wilcoxon, cells"])
    assert "singular" not in (tmp_path / "tables" / "tables.md").read_text()


def test_missing_moderation_is_told(monkeypatch):
    monkeypatch.setattr(methods, "can_moderate", lambda: False)
    assert "moderate" in methods.unavailable()["moderated"]
    assert "moderated" not in methods.python_methods()


def test_a_method_that_fails_stays_missing(tmp_path, monkeypatch, capsys):
    def broken(data):
        raise FloatingPointError("no luck")

    monkeypatch.setattr(methods, "python_methods", lambda: {"broken": broken, "Wilcoxon, cells": methods.wilcoxon})
    run._task(SMALL, {0: ["broken", "Wilcoxon, cells"]}, tmp_path)
    assert "no luck" in capsys.readouterr().out
    store = Store(tmp_path, SMALL)
    assert store.methods() == ["Wilcoxon, cells"]
    assert not store.has("broken", 0)


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("design", ["between", "within"])
def test_simulation_has_the_moments_it_claims(misfit, design):
    scenario = replace(SMALL, design=design, misfit=misfit, n=150, cells=10, n_genes=40, share_de=0.5, mean=(1.0, 3.0))
    data = simulate(scenario, 3)
    again = simulate(scenario, 3)
    assert (data.counts != again.counts).nnz == 0
    assert (data.counts != simulate(scenario, 4).counts).nnz > 0
    size = data.obs["libSize"].to_numpy() / data.obs["libSize"].mean()
    treated = (data.obs["treatment"] == "trt").to_numpy()
    rate = np.array([np.asarray(data.counts[t].sum(axis=0)).ravel() / size[t].sum() for t in (~treated, treated)])
    # Within donors, everything but the effect cancels; between donors the donor effects are left in the noise.
    estimate = np.log(rate[1] / rate[0])
    tolerance = 5 * np.sqrt(2 * (data.truth["variance"] + 0.03) / 150) + 0.1
    assert (np.abs(estimate - data.truth["beta"]) < tolerance).all()
    assert len(data.obs) == 10 * 300


def test_unequal_numbers_of_cells():
    data = simulate(replace(SMALL, ratio=30.0, cells=100), 0)
    n = data.obs["donor"].value_counts()
    assert n.max() / n.min() > 20
    assert n.mean() == pytest.approx(100, rel=0.05)


def test_scenarios_have_names_of_their_own():
    names = [s.name for s in grid() + smoke()]
    assert len(set(names)) == len(names)
    assert all(s.datasets >= 50 and s.datasets * s.n_genes * (1 - s.share_de) >= 20_000 for s in grid())
    assert replace(SMALL, effect=0.1).fingerprint != SMALL.fingerprint
    assert replace(SMALL, datasets=9).fingerprint == SMALL.fingerprint


def test_pseudobulk_sums(small):
    found = bulk.pseudobulk(small)
    assert found.counts.shape == (8, small.counts.shape[1])
    assert found.counts.sum() == small.counts.sum()
    first = small.obs["donor"] == found.obs["donor"].iloc[0]
    assert found.counts[0].tolist() == small.counts[first.to_numpy()].sum(axis=0).tolist()
    assert found.obs["libSize"].iloc[0] == pytest.approx(small.obs["libSize"][first].sum())


def test_wilcoxon_is_scipys(small):
    p = methods.wilcoxon(small).p
    size = small.obs["libSize"].to_numpy()
    values = np.log1p(small.counts[:, [7]].toarray().ravel() * np.median(size) / size)
    treated = (small.obs["treatment"] == "trt").to_numpy()
    # Kruskal and Wallis' test of two groups is the same test without the continuity correction.
    assert np.log(p[7]) == pytest.approx(np.log(stats.kruskal(values[treated], values[~treated]).pvalue), abs=0.02)


def test_pydeseq2(small):
    pytest.importorskip("pydeseq2")
    result = bulk.pydeseq2(small)
    ours = methods.mixed_model(small, method="reml")
    informative = small.truth["mean"].to_numpy() > 1
    assert np.corrcoef(result.beta[informative], ours.beta[informative])[0, 1] > 0.95
    assert np.isfinite(result.p).mean() > 0.9


@pytest.mark.skipif(not rbulk.available(), reason="R with edgeR or DESeq2 is not here")
def test_r_methods(small):
    names = [name for name in ("edgeR-QL",) if name in rbulk.available()]
    paired = simulate(replace(SMALL, design="within", name="paired"), 0).kept()
    found = rbulk.run_batch([bulk.pseudobulk(small), bulk.pseudobulk(paired)], [names, names])
    ours = methods.mixed_model(small, method="reml")
    informative = small.truth["mean"].to_numpy() > 1
    for name in names:
        assert np.corrcoef(found[0][name].beta[informative], ours.beta[informative])[0, 1] > 0.95
        assert np.isfinite(found[1][name].p).all()


def test_real_null(reference):
    null = RealNull(reference / "kang18_bcells.h5ad")
    splits = [null.load(i).obs for i in range(null.datasets)]
    groups = {frozenset(o.loc[o["treatment"] == "trt", "donor"]) for o in splits}
    assert len(groups) == 35
    assert all(len(g) == 4 for g in groups)
    assert all(frozenset(splits[0]["donor"].cat.categories) - g not in groups for g in groups)


def _cell(p, beta, **fields):
    n = p.shape
    truth = {"beta": beta, "variance": np.ones(n), "mean": np.ones(n), "theta": np.ones(n), "kept": np.ones(n, bool)}
    fields = {"beta": beta, "se": np.full(n, np.nan), "df": np.full(n, np.inf), "variance": np.ones(n)} | fields
    return metrics.Cell(truth, {"edgeR-QL": {"p": p, "seconds": np.ones(n[0])} | fields})


def test_clustered_standard_error():
    rng = np.random.default_rng(1)
    # All genes of a data set alike: the error is that of a mean of 2,000 data sets, not of 40,000 genes.
    hits = np.repeat(rng.uniform(size=(2000, 1)) < 0.05, 20, axis=1)
    rate, se = metrics.clustered(hits, np.ones_like(hits))
    assert rate == hits.mean()
    assert se == pytest.approx(np.sqrt(rate * (1 - rate) / 2000), rel=0.01)


def test_size_adjusted_power_undoes_a_wrong_level():
    rng = np.random.default_rng(2)
    beta = np.where(np.arange(400) < 100, 2.0, 0.0) * np.ones((50, 1))
    z = rng.normal(size=(50, 400)) + beta
    right = 2 * stats.norm.sf(np.abs(z))
    cell = _cell(right, beta)
    cell.methods["too small"] = cell.methods["edgeR-QL"] | {"p": right**2}
    table = metrics.size_adjusted(cell).set_index("method")
    expected = stats.norm.sf(stats.norm.isf(0.025) - 2) + stats.norm.cdf(-stats.norm.isf(0.025) - 2)
    assert table["size_adjusted"]["edgeR-QL"] == pytest.approx(expected, abs=0.03)
    assert table["size_adjusted_gain"]["too small"] == 0
    summary = metrics.summary(cell).set_index("method")
    assert summary["type1_0.05"]["edgeR-QL"] == pytest.approx(0.05, abs=4 * summary["type1_0.05_se"]["edgeR-QL"])
    assert summary["fdr"]["edgeR-QL"] == pytest.approx(0.05 * 0.75, abs=4 * summary["fdr_se"]["edgeR-QL"])
    assert summary["fdr"]["too small"] > 0.06


def test_coverage_of_t_intervals():
    rng = np.random.default_rng(3)
    shape = (50, 400)
    noise = rng.standard_t(3, shape)
    cell = _cell(np.full(shape, 0.5), np.zeros(shape))
    cell.methods["edgeR-QL"] |= {"beta": noise, "se": np.ones(shape), "df": np.full(shape, 3.0)}
    covered, se = metrics.coverage(cell, cell.methods["edgeR-QL"], cell.truth["kept"])
    assert covered == pytest.approx(0.95, abs=4 * se)


def test_untested_genes_cost_power_but_not_level():
    beta = np.zeros((4, 10))
    beta[:, :5] = 1.0
    p = np.full((4, 10), 0.5)
    p[:, 0] = 0.001
    p[:, 1] = np.nan
    p[:, 9] = np.nan
    row = metrics.summary(_cell(p, beta)).iloc[0]
    assert row["power_0.05"] == 1 / 5
    assert row["null_genes"] == 16
    assert row["untested"] == pytest.approx(0.2)


def test_store_scatters_to_all_genes(tmp_path):
    store = Store(tmp_path, SMALL)
    store.write_result("m", 3, Result.of(2, 1.5, p=np.array([0.1, 0.2])), np.array([True, False, True]))
    found = store.read("m", [3])
    assert found["p"][0].tolist()[::2] == [0.1, 0.2]
    assert np.isnan(found["p"][0, 1])
    assert store.indices("m") == [3]
    store.forget("m")
    assert store.methods() == []


def test_bias_study():
    table = bias.study(10, 1.0, 4.0, 30).set_index("estimator")
    assert list(table.index) == list(bias.ESTIMATORS)
    # The maximum of the Laplace likelihood is nearer to that of the exact one than the joint mode is.
    assert abs(table["slope"]["laplace-beta"] - table["slope"]["exact-beta"]) < abs(
        table["slope"]["reml"] - table["slope"]["exact-beta"]
    )


def test_stable_genes_undo_a_change_of_composition():
    table = composition.study(0, 200).set_index(["method", "offset"])
    shift = (table["beta"] / table["tested"])["reml"]
    assert shift["total counts"] < -0.2
    assert abs(shift["stable genes"]) < 0.1
