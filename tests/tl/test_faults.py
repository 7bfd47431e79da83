"""Killed processes, Ctrl-C and clusters: the results are the same to the last bit, or nothing has changed."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import anndata as ad
import joblib
import numpy as np
import pytest
import scanpy as sc

import scglmm
from scglmm.inference import genes
from scglmm.tl import _precision
from scglmm.tl._workers import effective_jobs

SCRIPTS = Path(__file__).with_name("scripts")


def run_script(name: str, *arguments: object) -> None:
    """Run a script in a fresh interpreter: code that a process has compiled itself may differ in the last bit."""
    command = [sys.executable, SCRIPTS / name, *arguments]
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, start_new_session=True)
    assert done.returncode == 0, done.stderr


def test_killed_and_interrupted_runs(adata, fitted, tmp_path, assert_untouched):
    """SIGKILL at a block boundary, within a block and between two; SIGINT with one worker and two, and to the CLI."""
    counts = tmp_path / "in.h5ad"
    # enough genes for moderation
    more = adata.copy()
    more.var_names = [f"h{i}" for i in range(more.n_vars)]
    ad.concat([adata, more], axis=1, merge="same").write_h5ad(counts)
    run_script("stopped.py", counts, tmp_path)
    expected = {name: ad.read_h5ad(tmp_path / f"expected-{name}.h5ad") for name in ("moderated", "groups")}
    assert expected["moderated"].uns["nbmm"]["moderation"]["n_genes"] == 60
    for name in ("moderated-boundary", "moderated-half", "interrupted-1", "interrupted-2", "interrupted_command-2"):
        assert_untouched(ad.read_h5ad(tmp_path / f"{name}.h5ad"), expected["moderated"])
    assert_untouched(ad.read_h5ad(tmp_path / "groups-between.h5ad"), expected["groups"])
    assert max(json.loads((tmp_path / "seconds.json").read_text()).values()) < 20
    said = f"goes on from the checkpoint {str(tmp_path / 'interrupted_command-2')!r}.\n"
    assert (tmp_path / "stderr").read_text() == f"Interrupted: no file was written. The same command {said}"
    assert not list(tmp_path.glob("*never*"))


def test_lost_workers(adata, fitted, formula, tmp_path, assert_untouched, assert_same):
    """A process of loky, and a worker of a dask cluster, are killed while they fit."""
    pytest.importorskip("distributed")
    counts = tmp_path / "in.h5ad"
    adata.write_h5ad(counts)
    run_script("lost_workers.py", counts, tmp_path, formula)
    here, loky, dask = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("here", "loky", "dask"))
    assert_untouched(loky, here)
    assert_untouched(dask, here)
    assert_same(here, fitted, rtol=1e-8)


def test_who_says_how_many_workers():
    with _settings(n_jobs=1):
        assert effective_jobs(None) == 1
        with joblib.parallel_config(n_jobs=3):
            assert (effective_jobs(None), effective_jobs(2)) == (3, 2)
    with _settings(n_jobs=2):
        assert effective_jobs(None) == 2
        with joblib.parallel_config("threading"):
            assert effective_jobs(None) == 2
        with joblib.parallel_config(n_jobs=1):
            assert effective_jobs(None) == 1
        with joblib.parallel_config("loky", n_jobs=3):
            assert (effective_jobs(None), effective_jobs(1)) == (3, 1)


class _settings:
    """scanpy's settings, for a while."""

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs

    def __enter__(self) -> None:
        self.before, sc.settings.n_jobs = sc.settings.n_jobs, self.n_jobs

    def __exit__(self, *_: object) -> None:
        sc.settings.n_jobs = self.before


def test_tasks_do_not_grow_with_the_cells(adata, formula, monkeypatch):
    """What a worker is sent are tables on the nodes, and nothing of the matrix."""
    sizes = []

    def run_tasks(function, tasks, n_jobs):
        for task in tasks:
            made = task()
            sizes.append(len(pickle.dumps(made)))
            yield function(made)

    monkeypatch.setattr(genes, "run_tasks", run_tasks)
    # as many nodes for every gene, whatever its counts
    monkeypatch.setattr(_precision, "LARGEST_TOTALS", [np.inf, np.inf])
    for times in (1, 10):
        many = ad.concat([adata] * times, merge="same", index_unique="-")
        # as many nodes for every stratum, whatever the number of cells
        many.obs["libSize"] = np.repeat(1000.0, many.n_obs)
        scglmm.tl.nbmm(many, "~ offset(log(libSize)) + Dx + Age + (1|SubID)")
    few, many = sizes[: len(sizes) // 2], sizes[len(sizes) // 2 :]
    assert len(few) == len(many) == 2
    assert many == few
    assert max(many) < 60_000
