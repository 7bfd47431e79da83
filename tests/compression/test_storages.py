"""The same sums from every storage, in pieces of any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from scglmm.compression import chunks, mapreduce
from scglmm.compression.chunks import Chunk, cell_totals, read_column
from scglmm.compression.counts import NotCountsError, Summary, canonical, looks_like_counts, summarise_groups
from scglmm.compression.nodes import make_nodes
from scglmm.compression.prepared import Prepared
from scglmm.compression.tables import Part, Tables, accumulate_and_check, accumulate_parts

from .storages import STORAGES, store

N_CELLS, N_GENES = 400, 11
SEQUENTIAL = [name for name in STORAGES if not name.startswith("dask")]


def counts() -> np.ndarray:
    rng = np.random.default_rng(3)
    dense = rng.poisson(rng.gamma(0.5, np.geomspace(0.1, 20, N_GENES), (N_CELLS, N_GENES))).astype(np.float32)
    dense[[3, 170, 330], 4] = [500, 501, 500]
    dense[:, 6] = 0
    return dense


def two_parts(tolerance: float = 1e-10) -> tuple[list[Part], np.ndarray]:
    """Two sets of cells, of which the second wants presence and fewer genes; some cells are in neither."""
    rng = np.random.default_rng(4)
    label = rng.integers(-1, 2, N_CELLS)
    offset = rng.normal(8, 0.8, N_CELLS)
    parts = []
    for k, genes in enumerate([np.arange(N_GENES), np.array([9, 2, 5])]):
        rows = np.flatnonzero(label == k)
        stratum = np.concatenate([np.arange(8), rng.integers(0, 7, rows.size - 8)])
        parts.append(Part(rows, make_nodes(stratum, offset[rows], tolerance), genes, presence=k == 1))
    return parts, label


def assert_tables(one: Tables, two: Tables, *, exact: bool) -> None:
    assert one.genes.tolist() == two.genes.tolist()
    np.testing.assert_array_equal(one.histogram, two.histogram)
    assert sorted(one.tails) == sorted(two.tails)
    for gene, tail in one.tails.items():
        np.testing.assert_array_equal(np.stack(tail), np.stack(two.tails[gene]))
    for a, b in ((one.values, two.values), (one.presence, two.presence)):
        if a is None or exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


def assert_summaries(one: list[Summary], two: list[Summary]) -> None:
    for a, b in zip(one, two, strict=True):
        for name in ("cell_total", "gene_total", "gene_cells"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.fixture(params=["whole", "pieces"])
def pieces(request, monkeypatch) -> None:
    if request.param == "pieces":
        monkeypatch.setattr(chunks, "CHUNK_BYTES", 1500)
        monkeypatch.setattr(chunks, "CHUNK_ROWS", 170)
        monkeypatch.setattr(mapreduce, "ROWS_PER_NODE", 0)
        monkeypatch.setattr(mapreduce, "LEAST_ROWS", 1)
        monkeypatch.setattr(mapreduce, "WAVE_CELLS", 200)


@pytest.mark.parametrize("name", STORAGES)
@pytest.mark.usefixtures("pieces")
def test_sums(name, tmp_path):
    dense = counts()
    parts, label = two_parts()
    expected = accumulate_parts(sp.csr_array(dense), parts)
    summaries = summarise_groups(sp.csr_array(dense), label, 2)
    matrix = canonical(store(name, dense, tmp_path))
    exact = name in SEQUENTIAL
    assert_summaries(summarise_groups(matrix, label, 2), summaries)
    together = accumulate_and_check(matrix, parts, label, 2, 2)
    assert_summaries(together[0], summaries)
    for found in (accumulate_parts(matrix, parts, 1), accumulate_parts(matrix, parts, 2), together[1]):
        for k in range(2):
            assert_tables(found[k], expected[k], exact=exact)
    few = [replace(part, genes=part.genes[1:3]) for part in parts]
    for one, two in zip(accumulate_parts(matrix, few), accumulate_parts(sp.csr_array(dense), few), strict=True):
        assert_tables(one, two, exact=exact)
    np.testing.assert_array_equal(cell_totals(matrix), dense.sum(axis=1))
    for gene in (0, 6, 10):
        np.testing.assert_array_equal(read_column(matrix, gene), dense[:, gene])
    assert looks_like_counts(matrix)


@pytest.mark.parametrize("name", STORAGES)
def test_what_is_not_counts(name, tmp_path):
    dense = counts()
    dense[170, 5] = -1
    matrix = canonical(store(name, dense, tmp_path))
    parts, label = two_parts()
    label[170] = 1
    with pytest.raises(NotCountsError, match="negative value -1") as caught:
        accumulate_and_check(matrix, parts, label, 2)
    assert (caught.value.row, caught.value.column) == (170, 5)
    # cells that are not used may hold anything
    parts, label = two_parts()
    outside = int(np.flatnonzero(label < 0)[50])
    dense[170, 5], dense[outside, 5] = 1, np.nan
    if name != "integer":
        accumulate_and_check(canonical(store(name, dense, tmp_path)), parts, label, 2)


@pytest.mark.parametrize("name", ["h5 csr", "h5 csc", "zarr csc", "h5 dense in tiles", "h5 dense in columns"])
def test_every_byte_is_read_once(name, tmp_path, monkeypatch):
    """Pieces are disjoint, keep to the size, and only columns that are wanted are read where that can be."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1500)
    dense = counts()
    matrix = store(name, dense, tmp_path)
    seen = np.zeros(dense.shape)
    for chunk in chunks.chunks(matrix):
        assert isinstance(chunk, Chunk)
        assert chunk.matrix.nnz * 8 <= (1500 if "dense" not in name else 8 * dense.shape[0] * 3)
        seen[chunk.rows, chunk.columns] += chunk.matrix.toarray()
    np.testing.assert_array_equal(seen, dense)
    if "csc" in name or "columns" in name:
        columns = {c for chunk in chunks.chunks(matrix, 4, 6) for c in range(chunk.columns.start, chunk.columns.stop)}
        assert columns <= {3, 4, 5, 6}


def test_the_order_of_the_rows_is_that_of_the_matrix(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1500)
    for name in SEQUENTIAL:
        last = np.full(N_GENES, -1)
        for chunk in chunks.chunks(store(name, counts(), tmp_path)):
            piece = chunk.matrix.tocsc()
            for j in range(piece.shape[1]):
                rows = piece.indices[piece.indptr[j] : piece.indptr[j + 1]] + chunk.row
                if rows.size:
                    assert rows.min() > last[chunk.column + j]
                    last[chunk.column + j] = rows.max()


@pytest.mark.parametrize("name", [name for name in STORAGES if name.startswith("dask")])
def test_dask_gives_the_same_bits_with_any_scheduler(name, tmp_path, monkeypatch):
    import dask

    monkeypatch.setattr(mapreduce, "ROWS_PER_NODE", 0)
    monkeypatch.setattr(mapreduce, "LEAST_ROWS", 100)
    matrix = store(name, counts(), tmp_path)
    parts, _ = two_parts()
    with dask.config.set(scheduler="sync"):
        one = accumulate_parts(matrix, parts)
    with dask.config.set(scheduler="threads", num_workers=4):
        two = accumulate_parts(matrix, parts)
    for a, b in zip(one, two, strict=True):
        assert_tables(a, b, exact=True)


def test_dask_leaves_its_blocks_as_they_are():
    """Duplicate entries are summed in a copy."""
    import dask
    import dask.array as da

    block = sp.csr_matrix((np.ones(4, np.float32), np.array([1, 1, 0, 2]), np.array([0, 3, 4])), shape=(2, 3))
    block.has_canonical_format = False
    matrix = da.from_delayed(dask.delayed(block, traverse=False), (2, 3), np.float32, meta=sp.csr_matrix((0, 0)))
    (summary,) = summarise_groups(matrix, np.zeros(2, int), 1)
    assert summary.gene_total.tolist() == [1, 2, 1]
    assert block.nnz == 4


def test_dask_chunks_of_unknown_size():
    import dask.array as da

    matrix = da.ones((6, 3), chunks=(2, 3))
    matrix = matrix[matrix[:, 0] > 0]
    with pytest.raises(ValueError, match=r"unknown sizes: call `compute_chunk_sizes\(\)`"):
        summarise_groups(matrix, np.zeros(6, int), 1)


@pytest.mark.parametrize("name", ["csr", "csc", "dask csr, both"])
def test_tables_of_finer_nodes_become_those_of_the_model(name, tmp_path):
    dense = counts()
    parts, label = two_parts()
    finer, _ = two_parts(1e-14)
    for fine, part in zip(finer, parts, strict=True):
        assert (np.diff(fine.nodes.start) > np.diff(part.nodes.start)).any()
        assert (fine.nodes.exact != part.nodes.exact).any() or fine.nodes.exact.any()
    matrix = store(name, dense, tmp_path)
    _, tables = accumulate_and_check(matrix, finer, label, 2)
    prepared = Prepared(matrix, [part.nodes for part in parts], [part.nodes.grid for part in finer], tables)
    assert prepared.shape == dense.shape
    for wanted in (parts, [replace(parts[1], genes=np.array([5, 9])), replace(parts[0], genes=np.array([4, 0]))]):
        expected = accumulate_parts(sp.csr_array(dense), wanted)
        for found, table in zip(accumulate_parts(prepared, wanted), expected, strict=True):
            assert_tables(found, table, exact=False)
