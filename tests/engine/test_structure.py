from __future__ import annotations

import numpy as np
import pytest
from models import KINDS, compile_model, simulate

from scglmm.engine.structure import analyse


def random_terms(seed: int, n_strata: int, shape: list[tuple[int, int]]):
    """Codes and covariates of terms with (levels, columns)."""
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, levels, n_strata) for levels, _ in shape]
    return codes, [levels for levels, _ in shape], [rng.normal(size=(n_strata, columns)) for _, columns in shape]


SHAPES = {
    "none": [],
    "one": [(9, 1)],
    "slope": [(9, 2)],
    "three columns": [(6, 3)],
    "crossed": [(9, 1), (7, 2)],
    "three crossed": [(9, 1), (7, 1), (4, 2)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_order_is_where_each_effect_went(name):
    codes, levels, covariates = random_terms(1, 40, SHAPES[name])
    structure, order = analyse(codes, levels, covariates, 40)
    q = sum(n * c.shape[1] for n, c in zip(levels, covariates, strict=True))
    assert sorted(order) == list(range(q))
    slot = effect = 0
    for code, n, covariate in zip(codes, levels, covariates, strict=True):
        width = covariate.shape[1]
        for column in range(width):
            assert (structure.z[:, slot + column] == covariate[:, column]).all()
            assert (structure.z_column[:, slot + column] == order[effect + code * width + column]).all()
        slot, effect = slot + width, effect + n * width
    assert structure.z.shape == (40, slot)


def test_psi_is_lower_triangles_column_by_column():
    codes, levels, covariates = random_terms(2, 30, [(5, 3), (4, 1), (3, 2)])
    structure, _ = analyse(codes, levels, covariates, 30)
    assert structure.psi_at.T.tolist() == [
        [0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 1, 0], [2, 1, 0], [2, 2, 0],
        [3, 3, 1],
        [4, 4, 2], [5, 4, 2], [5, 5, 2],
    ]  # fmt: skip


def dense_pattern(structure) -> np.ndarray:
    """Strict lower triangle of Z'Z, in the new order, with the fill of its elimination."""
    q = structure.starts.shape[1] - 1
    full = np.zeros((q, q), bool)
    for row in structure.z_column:
        full[np.ix_(row, row)] = True
    for j in range(q):
        below = np.flatnonzero(full[j + 1 :, j]) + j + 1
        full[np.ix_(below, below)] = True
    return np.tril(full, -1)


@pytest.mark.parametrize("name", SHAPES)
def test_pattern_is_that_of_the_factor(name):
    codes, levels, covariates = random_terms(3, 25, SHAPES[name])
    structure, _ = analyse(codes, levels, covariates, 25)
    q = structure.starts.shape[1] - 1
    pattern = dense_pattern(structure)
    column_start, row_start = structure.starts
    row_index, row_column, row_place = structure.entries
    assert row_index.size == pattern.sum()
    for j in range(q):
        assert row_index[column_start[j] : column_start[j + 1]].tolist() == np.flatnonzero(pattern[:, j]).tolist()
        by_row = slice(row_start[j], row_start[j + 1])
        assert row_column[by_row].tolist() == np.flatnonzero(pattern[j]).tolist()
        # An entry found by its row is the same entry as found by its column.
        assert (row_index[row_place[by_row]] == j).all()
        for column, place in zip(row_column[by_row], row_place[by_row], strict=True):
            assert column_start[column] <= place < column_start[column + 1]


@pytest.mark.parametrize("name", SHAPES)
def test_places(name):
    codes, levels, covariates = random_terms(4, 25, SHAPES[name])
    structure, _ = analyse(codes, levels, covariates, 25)
    q = structure.starts.shape[1] - 1
    row_of = np.concatenate([np.arange(q), structure.entries[0]])
    column_of = np.concatenate([np.arange(q), np.repeat(np.arange(q), np.diff(structure.starts[0]))])
    w = structure.z.shape[1]
    pair = 0
    for a in range(w):
        for b in range(a + 1):
            x, y = structure.z_column[:, a], structure.z_column[:, b]
            assert (row_of[structure.place[:, pair]] == np.maximum(x, y)).all()
            assert (column_of[structure.place[:, pair]] == np.minimum(x, y)).all()
            pair += 1
    assert structure.place.shape == (25, pair)


def test_one_intercept_has_nothing_below_the_diagonal():
    model = compile_model(simulate("one"))
    assert model.structure.entries.shape == (3, 0)


def test_nested_terms_give_no_fill():
    model = compile_model(simulate("nested", n_donors=20))
    assert model.structure.entries.shape[1] == 40  # one entry for every sample


def test_crossed_terms_fill_little():
    # 200 donors crossed with 5 batches: eliminated first, the donors leave a triangle of batches.
    rng = np.random.default_rng(0)
    n = 1000
    codes = [np.repeat(np.arange(200), 5), rng.permutation(n) % 5]
    for order in ([0, 1], [1, 0]):
        structure, _ = analyse([codes[k] for k in order], [[200, 5][k] for k in order], [np.ones((n, 1))] * 2, n)
        pairs = len(set(zip(*codes, strict=True)))
        assert structure.entries.shape[1] <= pairs + 10


@pytest.mark.parametrize("n_strata", [1, 4])
def test_no_term(n_strata):
    structure, order = analyse([], [], [], n_strata)
    assert order.size == 0
    assert structure.z.shape == (n_strata, 0)
    assert structure.psi_at.shape == (3, 0)
    assert structure.starts.tolist() == [[0], [0]]


def test_types_are_the_same_for_all_models():
    # Kernels are compiled once for each set of types.
    types = set()
    for kind in KINDS:
        structure = compile_model(simulate(kind)).structure
        types.add(tuple((array.dtype, array.ndim, array.flags["C_CONTIGUOUS"]) for array in structure))
    assert len(types) == 1
