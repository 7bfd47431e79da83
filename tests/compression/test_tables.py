from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scglmm.compression import chunks, tables
from scglmm.compression.counts import canonical
from scglmm.compression.nodes import Nodes, lagrange_basis, make_nodes
from scglmm.compression.tables import (
    DIRECT,
    Part,
    Tables,
    accumulate,
    accumulate_parts,
    exact_places,
    gene_blocks,
    gene_bytes,
)

FORMS = {"csr": sp.csr_array, "csc": sp.csc_array, "dense": np.asarray}
N_CELLS, N_GENES = 400, 11
SIZES = [150, 3, 120, 1, 60, 66]  # two strata of few cells, which keep them


def cells(seed: int = 0) -> tuple[np.ndarray, Nodes]:
    """Counts with some large ones, and nodes of strata in mixed order."""
    rng = np.random.default_rng(seed)
    stratum = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    offset = rng.normal(8, 0.9, N_CELLS)
    mean = np.exp(offset - 8)[:, None] * np.geomspace(0.02, 20, N_GENES)
    dense = rng.negative_binomial(0.5, 0.5 / (0.5 + mean)).astype(float)
    dense[5, 3], dense[6, 3], dense[7, 3] = DIRECT, DIRECT + 1, 10_000_000
    dense[8, 4], dense[9, 4] = 200, 200
    dense[:, 7] = 0
    return dense, make_nodes(stratum, offset)


def dense_basis(nodes: Nodes) -> np.ndarray:
    """The matrix L (cells, nodes)."""
    basis = np.zeros((nodes.stratum.size, nodes.size))
    for cell in range(nodes.stratum.size):
        start, stop = nodes.start[nodes.stratum[cell]], nodes.start[nodes.stratum[cell] + 1]
        if nodes.exact[nodes.stratum[cell]]:
            same = np.flatnonzero(nodes.stratum == nodes.stratum[cell])
            basis[cell, start + np.flatnonzero(same == cell)[0]] = 1.0
        else:
            lagrange_basis.py_func(nodes.offset[cell], nodes.tau, start, stop, basis[cell, start:stop])
    return basis


def as_matrix(table: Tables, nodes: Nodes) -> np.ndarray:
    """Y as (nodes, genes)."""
    n_genes = table.genes.size
    parts = []
    for s in range(nodes.n_strata):
        stretch = table.values[nodes.start[s] * n_genes : nodes.start[s + 1] * n_genes]
        parts.append(stretch.reshape(n_genes, -1).T)
    return np.vstack(parts)


def assert_same(a: Tables, b: Tables) -> None:
    """Equal to the last bit."""
    assert (a.genes == b.genes).all()
    assert a.values.tobytes() == b.values.tobytes()
    assert (a.histogram == b.histogram).all()
    assert a.tails.keys() == b.tails.keys()
    for gene in a.tails:
        assert np.stack(a.tails[gene]).tolist() == np.stack(b.tails[gene]).tolist()


def check_counts_of(table: Tables, dense: np.ndarray) -> None:
    """Histogram and tails, counted again."""
    for g in range(table.genes.size):
        positive = dense[:, table.genes[g]][dense[:, table.genes[g]] > 0].astype(int)
        expected = np.bincount(np.minimum(positive, DIRECT), minlength=DIRECT + 1)
        assert table.histogram[g].tolist() == expected.tolist()
        values, times = np.unique(positive[positive > DIRECT], return_counts=True)
        found = table.tails.get(g, (np.empty(0), np.empty(0)))
        assert np.stack(found).tolist() == [values.tolist(), times.tolist()]


@pytest.fixture(scope="module")
def example() -> tuple[np.ndarray, Nodes, Tables]:
    dense, nodes = cells()
    return dense, nodes, accumulate(sp.csr_array(dense), np.arange(N_CELLS), nodes, np.arange(N_GENES))


def test_the_weights_are_a_basis_summed(example):
    _, nodes, _ = example
    assert nodes.exact.tolist() == [False, True, False, True, False, False]
    assert dense_basis(nodes).sum(axis=0) == pytest.approx(nodes.weights, abs=1e-11)


def test_table_is_a_matrix_product(example):
    dense, nodes, table = example
    expected = dense_basis(nodes).T @ dense
    assert as_matrix(table, nodes) == pytest.approx(expected, abs=1e-12 * np.abs(expected).max())
    check_counts_of(table, dense)
    assert set(table.tails) == {3, 4} | {g for g in range(N_GENES) if (dense[:, g] > DIRECT).any()}


def test_totals_of_strata_and_sums_with_offsets_are_kept(example):
    dense, nodes, table = example
    matrix = as_matrix(table, nodes)
    for s in range(nodes.n_strata):
        at = slice(nodes.start[s], nodes.start[s + 1])
        assert matrix[at].sum(axis=0) == pytest.approx(dense[nodes.stratum == s].sum(axis=0), rel=1e-12)
    assert nodes.tau @ matrix == pytest.approx(nodes.offset @ dense, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_jobs", [1, 2, 3, 50])
def test_same_bits_from_any_storage_and_number_of_threads(example, form, n_jobs):
    dense, nodes, table = example
    genes = np.arange(N_GENES)
    assert_same(accumulate(canonical(FORMS[form](dense)), np.arange(N_CELLS), nodes, genes, n_jobs), table)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "n_jobs"), [(1, 1), (37, 1), (150, 1), (150, 2)])
def test_same_bits_from_chunks_of_any_size(example, form, rows, n_jobs, monkeypatch):
    dense, nodes, table = example
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 8 * rows * N_GENES)
    monkeypatch.setattr(tables, "CSC_CELLS", rows)
    monkeypatch.setattr(tables, "SEARCHED", rows)
    assert_same(accumulate(FORMS[form](dense), np.arange(N_CELLS), nodes, np.arange(N_GENES), n_jobs), table)


@pytest.mark.parametrize("form", FORMS)
def test_genes_in_any_selection_and_order(example, form):
    dense, nodes, table = example
    genes = np.array([9, 3, 0])
    found = accumulate(FORMS[form](dense), np.arange(N_CELLS), nodes, genes, 2)
    assert (as_matrix(found, nodes) == as_matrix(table, nodes)[:, genes]).all()
    check_counts_of(found, dense)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_subset_of_rows(form, n_jobs):
    dense, nodes = cells()
    rng = np.random.default_rng(1)
    rows = np.sort(rng.choice(1000, N_CELLS, replace=False))
    whole = rng.poisson(3, (1000, N_GENES)).astype(float)
    whole[np.setdiff1d(np.arange(1000), rows)[:5], 2] = 500  # large counts that must not be seen
    whole[rows] = dense
    expected = accumulate(sp.csr_array(dense), np.arange(N_CELLS), nodes, np.arange(N_GENES))
    assert_same(accumulate(FORMS[form](whole), rows, nodes, np.arange(N_GENES), n_jobs), expected)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_chunks_in_which_no_row_is_used(n_jobs, monkeypatch):
    dense, nodes = cells()
    whole = np.vstack([np.full((100, N_GENES), 7.0), dense[:150], np.full((90, N_GENES), 300.0), dense[150:]])
    rows = np.concatenate([np.arange(100, 250), np.arange(340, 590)])
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 8 * 30 * N_GENES)
    expected = accumulate(sp.csr_array(dense), np.arange(N_CELLS), nodes, np.arange(N_GENES))
    assert_same(accumulate(whole, rows, nodes, np.arange(N_GENES), n_jobs), expected)


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8, np.bool_])
def test_types_of_numbers(form, dtype):
    dense, nodes = cells()
    dense = np.minimum(dense, 1 if dtype is np.bool_ else 255)
    expected = accumulate(dense, np.arange(N_CELLS), nodes, np.arange(N_GENES))
    assert_same(accumulate(FORMS[form](dense.astype(dtype)), np.arange(N_CELLS), nodes, np.arange(N_GENES)), expected)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.bool_, np.float32])
def test_types_of_dense_numbers(dtype):
    dense, nodes = cells()
    dense = np.minimum(dense, 1 if dtype is np.bool_ else 60_000)
    expected = accumulate(dense, np.arange(N_CELLS), nodes, np.arange(N_GENES))
    assert_same(accumulate(dense.astype(dtype), np.arange(N_CELLS), nodes, np.arange(N_GENES)), expected)


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_indices_of_64_bits(example, form):
    dense, nodes, table = example
    matrix = FORMS[form](dense)
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    assert_same(accumulate(canonical(matrix), np.arange(N_CELLS), nodes, np.arange(N_GENES), 2), table)


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_explicit_zeros(example, form):
    dense, nodes, table = example
    matrix = FORMS[form](dense + 1)
    matrix.data -= 1
    assert_same(accumulate(matrix, np.arange(N_CELLS), nodes, np.arange(N_GENES)), table)


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_unsorted_indices(example, form):
    dense, nodes, table = example
    matrix = FORMS[form](dense)
    rng = np.random.default_rng(2)
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        shuffle = start + rng.permutation(stop - start)
        matrix.indices[start:stop], matrix.data[start:stop] = matrix.indices[shuffle], matrix.data[shuffle]
    matrix.has_sorted_indices = False
    assert_same(accumulate(canonical(matrix), np.arange(N_CELLS), nodes, np.arange(N_GENES)), table)


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_duplicate_entries(form):
    dense, nodes = cells()
    matrix = FORMS[form](dense)
    # Every entry twice, its count split in two.
    halves = FORMS[form](
        (
            np.column_stack([matrix.data // 2, matrix.data - matrix.data // 2]).ravel(),
            np.repeat(matrix.indices, 2),
            matrix.indptr * 2,
        ),
        shape=matrix.shape,
    )
    expected = accumulate(matrix, np.arange(N_CELLS), nodes, np.arange(N_GENES))
    assert_same(accumulate(canonical(halves), np.arange(N_CELLS), nodes, np.arange(N_GENES)), expected)


def test_uncompressed_tables_are_the_counts():
    dense, compressed = cells()
    nodes = make_nodes(compressed.stratum, compressed.offset, compress=False)
    for form in FORMS.values():
        table = accumulate(form(dense), np.arange(N_CELLS), nodes, np.arange(N_GENES), 2)
        assert (as_matrix(table, nodes) == dense[nodes.order]).all()


def test_take(example):
    _, nodes, table = example
    part = table.take(nodes, 3, 7)
    assert part.genes.tolist() == [3, 4, 5, 6]
    assert (as_matrix(part, nodes) == as_matrix(table, nodes)[:, 3:7]).all()
    assert (part.histogram == table.histogram[3:7]).all()
    assert {g + 3 for g in part.tails} == {g for g in table.tails if 3 <= g < 7}
    for g, tail in part.tails.items():
        assert np.stack(tail).tolist() == np.stack(table.tails[g + 3]).tolist()
    assert table.take(nodes, 9, 99).genes.tolist() == [9, 10]
    assert_same(table.take(nodes, 0, N_GENES), table)


def test_exact_places():
    _, nodes = cells()
    places = exact_places(nodes)
    for s in range(nodes.n_strata):
        assert places[nodes.stratum == s].tolist() == list(range(nodes.n_cells[s]))


def test_blocks_of_genes_keep_to_the_memory():
    _, nodes = cells()
    rows = np.arange(N_CELLS)
    each = gene_bytes(nodes)
    part = Part(rows, nodes, np.arange(100)[::-1])
    assert [block.size for block in gene_blocks([part], 1e12)] == [100]
    assert [block.size for block in gene_blocks([part], 40 * each)] == [33, 34, 33]
    assert [block.size for block in gene_blocks([part], 1)] == [1] * 100
    assert gene_blocks([Part(rows, nodes, np.arange(0))], 1) == []
    other = Part(rows, nodes, np.array([1, 3, 200]))
    for parts in ([part], [part, other], [other]):
        for fit in (1, 2, 3, 7.5, 50):
            blocks = gene_blocks(parts, fit * each)
            assert np.concatenate(blocks).tolist() == sorted({int(g) for p in parts for g in p.genes})
            for block in blocks:
                assert sum(np.isin(p.genes, block).sum() for p in parts) <= max(fit, len(parts))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_jobs", [1, 3])
def test_several_parts_in_one_pass(form, n_jobs):
    """Sets of cells that share the matrix: every table is that of its own pass, to the last bit."""
    dense, nodes = cells()
    matrix = canonical(FORMS[form](dense))
    label = np.arange(N_CELLS) % 3
    parts = []
    for k, genes in enumerate([np.array([4, 1, 9]), np.arange(N_GENES)]):
        rows = np.flatnonzero(label == k)
        stratum = np.unique(nodes.stratum[rows], return_inverse=True)[1]
        parts.append(Part(rows, make_nodes(stratum, nodes.offset[rows]), genes))
    together = accumulate_parts(matrix, parts, n_jobs)
    for part, table in zip(parts, together, strict=True):
        assert_same(table, accumulate(matrix, part.rows, part.nodes, part.genes))


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_presence(form):
    """The table of the indicator of a count, which nobody pays for who does not want it."""
    dense, nodes = cells()
    matrix = canonical(FORMS[form](dense))
    part = Part(np.arange(N_CELLS), nodes, np.arange(N_GENES))
    plain, both = accumulate_parts(matrix, [part, Part(part.rows, nodes, part.genes, presence=True)], 2)
    assert plain.presence is None
    np.testing.assert_array_equal(plain.values, both.values)
    ones = Tables(both.genes, both.presence, both.histogram, {})
    np.testing.assert_allclose(as_matrix(ones, nodes), dense_basis(nodes).T @ (dense > 0), atol=1e-10)
    taken = both.take(nodes.grid, 2, 5)
    expected = as_matrix(ones, nodes)[:, 2:5]
    np.testing.assert_array_equal(as_matrix(Tables(taken.genes, taken.presence, taken.histogram, {}), nodes), expected)
