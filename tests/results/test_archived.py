"""Results that an earlier version has written stay readable: getters, plots, and what follows a fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

import scglmm

ARCHIVED = Path(__file__).parents[1] / "reference" / "results_0_1_0.h5ad"


@pytest.fixture
def archived() -> ad.AnnData:
    """What `tests/reference/results_0_1_0.py` has written with version 0.1.0."""
    return ad.read_h5ad(ARCHIVED)


def test_it_is_the_first_release(archived):
    assert archived.uns["nbmm"]["versions"]["scglmm"] == "0.1.0"


def test_coefficients(archived):
    table = scglmm.get.nbmm_df(archived, "Dx[T.AD]").set_index("gene")
    assert list(table.index[:2]) == ["g9", "g8"]
    np.testing.assert_allclose(
        table.loc["g9", ["log_fc", "se", "df", "pval", "padj"]].to_numpy(float),
        [0.944137, 0.283283, 6.497077, 0.013995, 0.125957],
        rtol=5e-5,
    )
    assert table.loc["g0", "status"] == "separated"
    assert np.isnan(table.loc["g0", "pval"])
    assert scglmm.get.nbmm_df(archived, wide=True).shape[0] == archived.n_vars


def test_groups(archived):
    for name in ("by/type", "by∕type"):
        table = scglmm.get.nbmm_df(archived, "Dx[T.AD]", key=name, group="T/NK").set_index("gene")
        assert table.loc["g9", "log_fc"] == pytest.approx(0.984531, rel=1e-5)
    assert list(archived.uns["by∕type"]["groups"].index) == ["B|naive", "T∕NK"]


def test_every_getter(archived):
    joint = scglmm.get.joint_df(archived, "both")
    assert (joint["gene"].iloc[0], joint["df1"].iloc[0]) == ("g9", 2)
    assert joint["pval"].iloc[0] == pytest.approx(0.002943, rel=5e-4)
    lrt = scglmm.get.lrt_df(archived)
    assert (lrt["gene"].iloc[0], lrt["statistic"].iloc[0]) == ("g2", pytest.approx(16.809178, rel=1e-6))
    assert scglmm.get.shrunken_df(archived, "Dx[T.AD]").shape == (10, 14)
    assert scglmm.get.stat_matrix(archived).shape == (2, 10)
    assert len(scglmm.get.pertpy_df(archived)) == 19  # but for the gene without an estimate
    listed = scglmm.get.diagnose_df(archived, "counts_in_one_donor")
    assert listed[["gene", "name"]].to_numpy().tolist() == [["g0", "D0"]]
    assert len(sc.get.rank_genes_groups_df(archived, "Dx[T.AD]", key="nbmm")) == 10


def test_plots(archived):
    assert scglmm.pl.volcano(archived, "Dx[T.AD]", show=False) is not None
    assert scglmm.pl.varpart(archived, show=False) is not None


CALLS: dict[str, Callable[[ad.AnnData], None]] = {
    "contrast": lambda adata: scglmm.tl.contrast(adata, "Dx[T.AD] + stim[T.yes]"),
    "shrink": lambda adata: scglmm.tl.shrink(adata, "Dx[T.AD]"),
    "varpart": lambda adata: scglmm.tl.varpart(adata, method="delta"),
    "refresh": lambda adata: scglmm.tl.refresh(adata[:, :5].copy()),
    "lrt": lambda adata: scglmm.tl.lrt(adata, "~ stim + (1|donor)"),
    "diagnose": lambda adata: scglmm.tl.diagnose(adata),
}


@pytest.mark.filterwarnings("ignore:Only 9 genes:UserWarning")
@pytest.mark.parametrize("what", CALLS)
def test_what_follows_a_fit(archived, what):
    CALLS[what](archived)
