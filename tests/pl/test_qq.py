from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot as plt

import scglmm


def test_each_status_against_its_own_number_of_genes(toy, assert_readable):
    adata = toy.fitted(300)
    ax = scglmm.pl.qq(adata, "Age", show=False)
    assert_readable(ax.get_figure())
    table = scglmm.get.nbmm_df(adata, "Age").dropna(subset="pval")
    points = {c.get_label(): c.get_offsets() for c in ax.collections if c.get_label() in set(table["status"])}
    assert set(points) == set(table["status"])
    for name, xy in points.items():
        p = np.sort(table.loc[table["status"] == name, "pval"])
        np.testing.assert_allclose(xy[:, 1], -np.log10(p))
        np.testing.assert_allclose(xy[:, 0], -np.log10(np.arange(1, len(p) + 1) / (len(p) + 1)))
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(texts) == sorted(f"{name} {len(xy):,}" for name, xy in points.items())


def test_all_genes_and_p_values_of_zero(toy):
    adata = toy.fitted(300)
    best = scglmm.get.nbmm_df(adata, "Age")["gene"][:3]
    adata.varm["nbmm_pval"].loc[best, "Age"] = 0.0
    ax = scglmm.pl.qq(adata, "Age", by_status=False, show=False)
    (genes,) = [c for c in ax.collections if c.get_label() == "genes"]
    triangles = ax.collections[-1].get_offsets()
    assert len(triangles) == 3
    assert len(genes.get_offsets()) == scglmm.get.nbmm_df(adata, "Age")["pval"].notna().sum() - 3
    assert triangles[0, 1] > genes.get_offsets()[:, 1].max()


def test_band_covers_null_p_values(toy):
    adata = toy.fitted(500)
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(30):
        adata.varm["nbmm_pval"]["Age"] = rng.uniform(size=500)
        ax = scglmm.pl.qq(adata, "Age", by_status=False, show=False)
        band, genes = ax.collections[0].get_paths()[0].vertices, ax.collections[1].get_offsets()
        # the median gene is where the band is widest in terms of p
        plt.close("all")
        near = np.abs(band[:, 0] - genes[250, 0]) < 1e-9
        inside.append(band[near, 1].min() <= genes[250, 1] <= band[near, 1].max())
    assert 0.8 <= np.mean(inside) <= 1.0


def test_errors(toy):
    with pytest.raises(ValueError, match="No gene has a p-value"):
        scglmm.pl.qq(toy.fitted(share_untested=1.0), "Age")
    with pytest.raises(ValueError, match="choose one with `coef`"):
        scglmm.pl.qq(toy.fitted())
