"""`tl.nbmm` with a dask cluster: the counts are summed by its workers, to the same bits for any number of them."""

from __future__ import annotations

from collections.abc import Iterator

import dask
import pytest
from anndata.experimental import read_lazy
from dask.distributed import Client, LocalCluster

import scglmm
from scglmm.compression import mapreduce


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_same_numbers(client, adata, fitted, formula, tmp_path, assert_same, monkeypatch):
    monkeypatch.setattr(mapreduce, "LEAST_ROWS", 50)
    monkeypatch.setattr(mapreduce, "ROWS_PER_NODE", 0)
    monkeypatch.setattr(mapreduce, "WAVE_CELLS", 200)
    path = tmp_path / "a.zarr"
    adata.write_zarr(path)
    data, again = read_lazy(path), read_lazy(path)
    data.X, again.X = data.X.rechunk((60, -1)), again.X.rechunk((60, -1))
    scglmm.tl.nbmm(data, formula)
    assert_same(data, fitted, rtol=1e-8)
    with dask.config.set(scheduler="threads"):
        scglmm.tl.nbmm(again, formula)
    assert_same(data, again)
    # the sums were made there
    logs = client.run(lambda dask_worker: "".join(map(str, dask_worker.state.log)))
    assert all("_sum_stretch" in log for log in logs.values())
