"""Simulated studies are what they claim, in memory and in files; the sweeps and the file benchmark run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import cost, large, scaling  # noqa: E402
from benchmarks.simulate import STRETCH, Simulator, Study, multiply, simulate, tile, write_h5ad  # noqa: E402


@pytest.fixture(scope="module")
def study():
    return Study(STRETCH + 2_000, 60, 25, density=0.1)


def test_moments(study):
    simulator = Simulator(study)
    counts = simulator.anndata().X.toarray()
    mu = simulator.size[:, None] * simulator.rate[simulator.donor]
    variance = mu + mu**2 / simulator.theta
    z = (counts.sum(axis=0) - mu.sum(axis=0)) / np.sqrt(variance.sum(axis=0))
    assert np.abs(z).max() < 4
    zero = np.exp(-simulator.theta * np.log1p(mu / simulator.theta))
    z = ((counts == 0).sum(axis=0) - zero.sum(axis=0)) / np.sqrt((zero * (1 - zero)).sum(axis=0))
    assert np.abs(z).max() < 4
    often = counts.sum(axis=0) > 1000
    np.testing.assert_allclose(((counts - mu) ** 2 / variance).mean(axis=0)[often], 1, atol=0.25)
    assert (counts > 0).mean() == pytest.approx(0.1, rel=0.1)
    assert simulator.obs["SubID"].nunique() == 25


def test_files_hold_what_memory_holds(study, tmp_path):
    paths = {None: tmp_path / "plain.h5ad", "gzip": tmp_path / "gzip.h5ad"}
    n = write_h5ad(study, paths)
    whole = simulate(study)
    assert n == whole.X.nnz
    for path in paths.values():
        read = ad.read_h5ad(path)
        assert (read.X != whole.X).nnz == 0
        assert read.obs.equals(whole.obs)
    backed = ad.read_h5ad(paths["gzip"], backed="r")
    assert (backed.X[STRETCH - 5 : STRETCH + 5] != whole.X[STRETCH - 5 : STRETCH + 5]).nnz == 0
    assert paths["gzip"].stat().st_size < paths[None].stat().st_size


def test_order_of_cells(study):
    mixed, kept = (Simulator(Study(2_000, 4, 10, shuffled=shuffled)) for shuffled in (True, False))
    assert np.bincount(mixed.donor).tolist() == np.bincount(kept.donor).tolist()
    assert (np.diff(kept.donor) >= 0).all()
    assert (np.diff(mixed.donor) < 0).mean() > 0.3


def test_repeats():
    small = simulate(Study(50, 3, 5))
    assert multiply(small, 3).shape == (150, 3)
    tiled = tile(small, 2)
    assert (tiled.X[:, 3:] != small.X).nnz == 0


def test_a_point_of_the_sweeps(tmp_path, capsys, monkeypatch):
    points = []

    def here(module, flag, point):
        points.append(json.loads(point))
        return scaling.measure(**points[-1])

    monkeypatch.setattr(scaling, "run_module", here)
    scaling.main(["--smoke", "--sweep", "cells", "--out", str(tmp_path)])
    assert "20 donors" in capsys.readouterr().out
    scaling.main(["--smoke", "--sweep", "cells", "workers", "--out", str(tmp_path), "--resume"])
    assert points == 2 * [{"cells": 2_000, "donors": 20, "genes": 12, "workers": 1}]  # the first was kept
    lines = (tmp_path / "scaling.md").read_text().splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_formulas(tmp_path):
    """Constants come back from measurements that obey the formulas, and the tables find their place."""
    truth = cost.Constants(3e-7, 2.5e-8, 1.2e-9, 1e-3, 5e-7, 2.0, 70.0)
    rows = []
    for cells, donors, genes in [(6e4, 250, 40), (6e5, 250, 40), (6e4, 250, 6400), (2e5, 2000, 400), (2e6, 50, 400)]:
        work = cost.Work.typical(cells, genes, donors, 0.05, 1.7)
        weights = truth.cell_node * cells * work.per_cell
        added = truth.nonzero_node * work.nonzeros * work.per_cell
        sizes = {"cells": int(cells), "donors": donors, "genes": genes, "workers": 1, "strata": donors}
        seconds = {
            "design_s": truth.cell * cells,
            "nodes_s": weights,
            "compression_s": weights + added,
            "fit_reml_ms": 1e3 * (truth.fit + truth.fit_node * work.nodes),
            "call_cpu_s": truth.cell * cells + 3 * weights + added + genes * work.fit_seconds(truth),
            "call_bytes": (truth.cell_bytes + 32) * cells + work.table_bytes,
        }
        rows.append({"sweep": "x", "nonzeros": work.nonzeros, "nodes": int(work.nodes)} | sizes | seconds)
    table = pd.DataFrame(rows)
    found = cost.Constants.of(table)
    for name, value in vars(truth).items():
        assert getattr(found, name) == pytest.approx(value, rel=0.02), name
    table.to_csv(tmp_path / "scaling.csv", index=False)
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- begin {x} -->\n<!-- end {x} -->\n" for x in ("constants", "measured", "filled")))
    for _ in range(2):
        cost.main(["--measured", str(tmp_path / "scaling.csv"), "--write", str(page)])
        text = page.read_text()
        assert text.count("| 100,000,000 |") == 1
        for block in text.split("<!-- end"):
            assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) <= 1


def test_passes():
    work = cost.Work.typical(1e6, 20_000, 500, 0.05, 1.7)
    constants = cost.Constants(*[1e-6] * 6, 70.0)
    assert work.passes(constants, 32e9) == 1
    assert work.passes(constants, 2e9) == 2
    assert work.passes(constants, 1e9) == 1 + int(np.ceil(work.table_bytes / (1e9 - 110e6 - 70e6 - cost.PIECES // 2)))
    assert work.passes(constants, 3e8) is None


def test_from_disk(tmp_path, capsys, monkeypatch):
    found = []

    def here(module, flag, *arguments):
        monkeypatch.setattr(large, "give", found.append)
        if flag == "--read":
            large.read_and_sum(arguments[0], int(arguments[1]))
        else:
            large.fit_from_disk(*arguments[:3], int(arguments[3]))
        return found[-1]

    monkeypatch.setattr(large, "run_module", here)
    small = "--cells 1500 --genes 30 --donors 12 --density 0.2"
    how = "--compression gzip --method ml --n-jobs 1 --chunk 400 --folder"
    large.main([*small.split(), *how.split(), str(tmp_path)])
    printed = capsys.readouterr().out
    assert "times the read and sum" in printed
    (path,) = tmp_path.glob("*.h5ad")
    assert found[0]["total"] == ad.read_h5ad(path).X.sum()
    assert found[-1]["fits_cpu"] > 0
