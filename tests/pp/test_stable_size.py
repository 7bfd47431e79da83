"""`scglmm.pp.stable_size`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scglmm

N_DONORS, N_CELLS, N_GENES = 8, 40, 300
PROGRAMME = 15  # genes that go up in treated donors


@pytest.fixture
def cells() -> AnnData:
    """Half of the donors are treated: the first genes take 40% of their counts, the others do not change."""
    rng = np.random.default_rng(3)
    donor = np.repeat(np.arange(N_DONORS), N_CELLS)
    treated = donor % 2 == 1
    rate = np.tile(rng.lognormal(-1.0, 1.0, N_GENES), (donor.size, 1))
    rest = rate[0, PROGRAMME:].sum()
    rate[np.ix_(treated, np.arange(PROGRAMME))] *= 0.4 / 0.6 * rest / rate[0, :PROGRAMME].sum()
    size = rng.lognormal(0, 0.3, donor.size)
    counts = rng.poisson(rate * size[:, None])
    obs = pd.DataFrame(
        {"donor": pd.Categorical([f"d{d}" for d in donor]), "treated": np.where(treated, "yes", "no"), "size": size},
        index=[f"c{i}" for i in range(donor.size)],
    )
    return AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs)


def test_sizes_do_not_move_with_the_programme(cells):
    assert scglmm.pp.stable_size(cells, "donor") is None
    treated = (cells.obs["treated"] == "yes").to_numpy()
    for size, moves in ((cells.obs["stable_size"], 0.0), (pd.Series(cells.X.sum(axis=1).A1, cells.obs_names), 0.3)):
        off = np.log(size.to_numpy() / cells.obs["size"].to_numpy())
        assert off[treated].mean() - off[~treated].mean() == pytest.approx(moves, abs=0.05 if moves == 0 else 0.15)
    assert not cells.var["stable_size_gene"].to_numpy()[:PROGRAMME].any()
    counted = cells[:, cells.var["stable_size_gene"].to_numpy()].X.sum(axis=1).A1
    # over a sample, sizes add up to the counts in stable genes
    np.testing.assert_allclose(
        cells.obs["stable_size"].groupby(cells.obs["donor"], observed=True).sum(),
        pd.Series(counted, cells.obs_names).groupby(cells.obs["donor"], observed=True).sum(),
        rtol=1e-6,
    )


def test_several_columns_and_names(cells):
    cells.obs["half"] = np.tile(["a", "b"], cells.n_obs // 2)
    copied = scglmm.pp.stable_size(cells, ["donor", "half"], key_added="size_2", copy=True)
    assert "size_2" not in cells.obs
    assert {"size_2", "half"} <= set(copied.obs)
    assert "size_2_gene" in copied.var


def test_raw_and_layers_give_the_same(cells):
    expected = scglmm.pp.stable_size(cells, "donor", copy=True).obs["stable_size"]
    cells.layers["counts"] = cells.X.copy()
    cells.raw = cells.copy()
    cells.X = np.log1p(cells.X.toarray())
    for where in ({"layer": "counts"}, {"use_raw": True}):
        found = scglmm.pp.stable_size(cells, "donor", copy=True, **where).obs["stable_size"]
        pd.testing.assert_series_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"sample": "donr"}, KeyError, "'donr' is not a column of `adata.obs`; the columns are 'donor'"),
        (None, {"sample": []}, ValueError, "names no column"),
        ("one", {"sample": "donor"}, ValueError, "only one sample"),
        ("missing", {"sample": "donor"}, ValueError, r"missing \(NaN\) for 1 of 320 cells"),
        ("empty", {"sample": "donor"}, ValueError, "1 cells have no counts at all"),
        ("fractional", {"sample": "donor"}, ValueError, "fractional value"),
        (
            None,
            {"sample": "donor", "min_count": 1e6},
            ValueError,
            "No gene has min_count=1e.06 counts in each",
        ),
        (None, {"sample": "donor", "min_count": 0}, ValueError, "above 0"),
        (None, {"sample": "donor", "key_added": ""}, ValueError, "name of a column"),
        (None, {"sample": "donor", "layer": "counts"}, KeyError, "no layer 'counts'"),
    ],
)
def test_bad_input(cells, change, options, error, message):
    if change == "one":
        cells.obs["donor"] = "d"
    elif change == "missing":
        cells.obs.loc["c5", "donor"] = np.nan
    elif change == "empty":
        cells.X = cells.X.multiply((np.arange(cells.n_obs) != 3)[:, None]).tocsr()
    elif change == "fractional":
        cells.X = cells.X * 0.5
    before = list(cells.obs)
    with pytest.raises(error, match=message):
        scglmm.pp.stable_size(cells, **options)
    assert list(cells.obs) == before


def test_not_an_anndata():
    with pytest.raises(TypeError, match="must be an AnnData"):
        scglmm.pp.stable_size(pd.DataFrame(), "donor")
