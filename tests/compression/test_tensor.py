"""Nodes along covariates of the cells: which they are, where nodes lie, and what interpolation errs by."""

from __future__ import annotations

import numpy as np
import pytest

from scglmm.compression.nodes import n_nodes, reach_of, sum_on_nodes, sum_on_rows
from scglmm.compression.tensor import Tensor, Variation, find_variation, make_tensor

N_DONORS, N_CELLS = 6, 1_500
TOLERANCE = 1e-10


def cells(seed: int = 0) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng, rng.integers(0, N_DONORS, N_CELLS), rng.normal(8, 0.6, N_CELLS)


def varying_rows(variation: Variation, m: int) -> np.ndarray:
    """What the variation says the varying columns are, (cells, m)."""
    s = variation.stratum
    return variation.origin[s] + np.einsum("nmd,dn->nm", variation.slope[s], variation.coordinates)


def tensor_of(columns: list[np.ndarray], donor: np.ndarray, offset: np.ndarray, bound: float = 0.3) -> Tensor:
    variation = find_variation([donor], columns)
    assert variation is not None
    return make_tensor(variation, offset, TOLERANCE, bound)


def test_one_covariate_and_its_interaction():
    rng, donor, _ = cells()
    x, dx = rng.normal(50, 3, N_CELLS), donor % 2
    columns = [np.ones(N_CELLS), dx.astype(float), x, x * dx, x]
    variation = find_variation([donor], columns)
    assert variation.varying.tolist() == [2, 3, 4]
    assert variation.coordinates.shape == (1, N_CELLS)
    assert (variation.coordinates[0] == x).all()
    assert variation.affine.all()
    assert variation.first.size == N_DONORS
    in_first = dx[variation.first] == 1
    assert (variation.slope[in_first, 1, 0] == 1).all()
    assert (variation.slope[~in_first, 1, 0] == 0).all()
    assert (variation.origin == 0).all()
    within = np.sqrt(np.mean((x - (np.bincount(donor, x) / np.bincount(donor))[donor]) ** 2))
    assert variation.scale[0] == pytest.approx(within)


def test_two_covariates():
    rng, donor, _ = cells(1)
    x, z = rng.normal(size=N_CELLS), rng.exponential(size=N_CELLS)
    columns = [np.ones(N_CELLS), 2 * x - 1, z, x + 3 * z]
    variation = find_variation([donor], columns)
    assert variation.coordinates.shape == (2, N_CELLS)
    np.testing.assert_allclose(varying_rows(variation, 3), np.stack(columns[1:], axis=1), atol=1e-12)


def test_a_curve_of_one_covariate_has_two_coordinates():
    rng, donor, _ = cells(2)
    x = rng.normal(size=N_CELLS)
    variation = find_variation([donor], [x, x**2])
    assert variation.coordinates.shape == (2, N_CELLS)
    assert find_variation([donor], [x, x**2, x**3]) is None


def test_what_is_no_covariate_of_the_cells():
    rng, donor, _ = cells(3)
    ones, age = np.ones(N_CELLS), rng.normal(size=N_DONORS)[donor]
    assert find_variation([donor], [ones, age]) is None
    batch = rng.integers(0, 3, N_CELLS).astype(float)
    assert find_variation([donor], [ones, age, batch]) is None  # strata of 80 cells
    x = rng.normal(size=N_CELLS)
    assert find_variation([donor], [ones, age, batch, x]).varying.tolist() == [3]
    assert find_variation([np.arange(N_CELLS) // 4], [ones, x]) is None  # 4 cells each
    assert find_variation([donor], []) is None


def test_strata_that_are_not_affine_keep_their_cells():
    rng, donor, offset = cells(4)
    x = rng.normal(size=N_CELLS)
    bent = np.where(donor == 0, np.sin(3 * x), x)
    cubic = np.where(donor == 0, x**3, 2 * x)
    columns = [x, bent, cubic]
    variation = find_variation([donor], columns)
    own = variation.stratum[donor == 0][0]
    assert variation.affine.tolist() == [s != own for s in range(N_DONORS)]
    tensor = make_tensor(variation, offset, TOLERANCE, 0.3)
    kept = tensor.nodes.exact[tensor.nodes.stratum]
    assert kept[donor == 0].all()
    assert not kept[donor != 0].all()
    for k, column in enumerate(columns):  # rows that are cells have their values to the last bit
        rows = tensor.rows(column, k)
        at = tensor.stratum < 0
        assert (rows[at] == column[tensor.cell[at]]).all()


@pytest.mark.parametrize("heavy", [False, True])
def test_sums_over_cells(heavy):
    """Sums of log(1 + e^t), which has the singularities of the log-likelihood, against all cells."""
    rng, donor, offset = cells(5)
    x = rng.standard_t(2, N_CELLS) if heavy else rng.normal(size=N_CELLS)
    z = rng.gamma(2, size=N_CELLS)
    w = rng.poisson(1, N_CELLS).astype(float)
    for columns in ([x], [x, z]):
        tensor = tensor_of(columns, donor, offset)
        on_nodes = sum_on_nodes(tensor.nodes, w)
        rows = np.stack([tensor.rows(c, k) for k, c in enumerate(columns)])
        per_node = np.repeat(rows, np.diff(tensor.nodes.start), axis=1)
        scale = tensor.variation.scale
        for slope in (np.zeros(2), np.array([0.3, -0.3]), np.array([-0.3, 0.1])):
            b = slope[: len(columns)] / scale
            assert tensor.limits.hold(b @ rows)
            for centre in (-14.0, -8.0, -5.0):
                exact = w @ np.logaddexp(0, offset + b @ np.stack(columns) + centre)
                found = on_nodes @ np.logaddexp(0, tensor.nodes.tau + b @ per_node + centre)
                assert found == pytest.approx(exact, rel=2 * TOLERANCE, abs=1e-12)
        assert tensor.nodes.size < 12 * N_CELLS


def test_sums_of_squares_are_exact():
    rng, donor, offset = cells(6)
    x, z = rng.normal(5, 1, N_CELLS), rng.gamma(2, size=N_CELLS)
    tensor = tensor_of([np.ones(N_CELLS), x, z], donor, offset, bound=1e-3)
    assert not tensor.nodes.exact.all()
    X = np.stack([tensor.rows(c, k) for k, c in enumerate([np.ones(N_CELLS), x, z])], axis=1)
    weights = np.add.reduceat(tensor.nodes.weights, tensor.nodes.start[:-1])
    cells_X = np.stack([np.ones(N_CELLS), x, z], axis=1)
    np.testing.assert_allclose((X * weights[:, None]).T @ X, cells_X.T @ cells_X, rtol=1e-11)
    w = rng.normal(size=N_CELLS)
    np.testing.assert_allclose(sum_on_rows(tensor.nodes, w) @ X, w @ cells_X, atol=1e-9)


def test_limits_are_where_the_tolerance_ends():
    """An affine linear predictor passes up to the slope for which so many nodes are enough, and not beyond."""
    rng, donor, offset = cells(7)
    x = rng.uniform(-1, 1, N_CELLS)
    tensor = tensor_of([x], donor, offset)
    rows = tensor.rows(x, 0)
    number = np.array([np.unique(rows[tensor.stratum == s]).size for s in range(N_DONORS)])
    half = np.array([np.ptp(x[tensor.variation.stratum == s]) / 2 for s in range(N_DONORS)])
    largest = (reach_of(number, TOLERANCE / 4) / half).min()
    assert largest >= 0.3 / tensor.variation.scale[0]
    assert tensor.limits.hold(0.999 * largest * rows + 4)
    assert not tensor.limits.hold(-1.001 * largest * rows)


@pytest.mark.parametrize("tolerance", [1e-8, 1e-12])
def test_reach_is_the_inverse_of_the_number_of_nodes(tolerance):
    for n in (4, 9, 17, 40):
        reach = reach_of(n, tolerance)
        assert n_nodes(np.array(0.9999 * reach), tolerance) <= n < n_nodes(np.array(1.0001 * reach), tolerance)


def test_outliers_do_not_widen_the_range_of_all():
    rng, donor, offset = cells(8)
    x = rng.normal(size=N_CELLS)
    size = tensor_of([x], donor, offset).cost
    x[::300] += 40
    tensor = tensor_of([x], donor, offset, bound=0.3 * find_variation([donor], [x]).scale[0])
    assert tensor.cost < 1.5 * size
    assert tensor.nodes.exact.any()
