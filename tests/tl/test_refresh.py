from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from anndata import ImplicitModificationWarning

import scglmm.tl


@pytest.mark.parametrize("make", ["fitted", "fitted_groups"])
def test_refresh_changes_nothing_without_a_subset(toy, make):
    adata = getattr(toy, make)()
    before = dict(adata.uns["nbmm"])
    scglmm.tl.refresh(adata)
    assert set(adata.uns["nbmm"]) == set(before)
    for name in ("names", "scores", "logfoldchanges", "pvals", "pvals_adj"):
        now = adata.uns["nbmm"][name]
        assert now.dtype == before[name].dtype
        for column in now.dtype.names:
            np.testing.assert_array_equal(now[column], before[name][column])


def test_arrays_follow_a_subset_of_genes(toy):
    adata = toy.fitted()
    part = adata[:, 20:40].copy()
    assert len(part.uns["nbmm"]["names"]) == 60
    scglmm.tl.refresh(part, "nbmm")
    table = sc.get.rank_genes_groups_df(part, "Dx[T.AD]", key="nbmm")
    whole = sc.get.rank_genes_groups_df(adata, "Dx[T.AD]", key="nbmm").set_index("names")
    assert sorted(table["names"]) == sorted(part.var_names)
    np.testing.assert_array_equal(table["pvals_adj"], whole.loc[table["names"], "pvals_adj"])
    assert len(adata.uns["nbmm"]["names"]) == 60
    assert part.uns["nbmm"]["params"] == adata.uns["nbmm"]["params"]


def test_a_view(toy):
    adata = toy.fitted()
    view = adata[:, :30]
    with pytest.warns(ImplicitModificationWarning, match="Received a view"):
        scglmm.tl.refresh(view)
    assert len(view.uns["nbmm"]["names"]) == 30
    assert len(adata.uns["nbmm"]["names"]) == 60


def test_errors(toy):
    adata = toy.fitted()
    with pytest.raises(KeyError, match="No result 'other'"):
        scglmm.tl.refresh(adata, "other")
    del adata.uns["nbmm"]
    with pytest.raises(KeyError, match=r"no entry 'nbmm' to refresh"):
        scglmm.tl.refresh(adata)
