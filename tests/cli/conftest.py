"""A small file of counts, and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from click.testing import CliRunner, Result

from scglmm.cli import cli


@pytest.fixture(autouse=True)
def _settings():
    """The command line sets scanpy's; they are put back."""
    before = sc.settings.verbosity, sc.settings.logfile
    yield
    sc.settings.verbosity, sc.settings.logfile = before


@pytest.fixture
def counts(toy) -> AnnData:
    """400 cells of 12 donors, 12 genes, two types of cells; a layer, raw and other things that have to survive."""
    adata = toy.make_adata(n_genes=12, n_cells=400)
    adata.obs["type"] = pd.Categorical(np.where(np.arange(400) % 3, "T/NK", "B"))
    adata.var["some"] = np.arange(12) % 2 > 0
    adata.layers["umi"] = adata.X.copy()
    adata.raw = adata.copy()
    adata.uns["note"] = {"kept": True}
    adata.obsm["X_pca"] = np.ones((400, 2))
    adata.varm["PCs"] = np.ones((12, 2))
    return adata


@pytest.fixture
def h5ad(counts: AnnData, tmp_path: Path) -> Path:
    path = tmp_path / "in.h5ad"
    counts.write_h5ad(path, compression="gzip")
    return path


@pytest.fixture
def run() -> Callable[..., Result]:
    """Call ``scglmm`` with some arguments; the result has `exit_code`, `stdout` and `stderr`."""

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="scglmm")

    return call
