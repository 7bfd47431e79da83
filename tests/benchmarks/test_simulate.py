"""Simulated studies are what they claim, in memory and in files; the sweeps and the file benchmark run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import large, scaling  # noqa: E402
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
    monkeypatch.setattr(scaling, "run_module", lambda module, flag, point: scaling.measure(**json.loads(point)))
    scaling.main(["--smoke", "--sweep", "cells", "workers", "--out", str(tmp_path)])
    assert "20 donors" in capsys.readouterr().out
    lines = (tmp_path / "scaling.md").read_text().splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


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
