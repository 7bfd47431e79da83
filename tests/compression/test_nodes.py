from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import BarycentricInterpolator

from scglmm.compression.nodes import (
    CONSTANT,
    ZERO_INFLATED,
    Nodes,
    lagrange_basis,
    make_nodes,
    n_nodes,
    sum_on_nodes,
)

HALF_WIDTHS = (0.02, 0.1, 0.5, 1.0, 1.84, 2.5, 4.6, 6.0, 8.0)
FUNCTIONS = {
    "f": lambda t: np.logaddexp(0, t),
    "g": lambda t: 1 / (1 + np.exp(-t)),
}


def interpolation_error(half_width: float, n: int, function) -> float:
    """Largest error relative to the largest value over [c - h, c + h], for the worst centre c."""
    k = np.arange(n)
    x = np.cos((2 * k + 1) * np.pi / (2 * n))
    weight = (-1.0) ** k * np.sin((2 * k + 1) * np.pi / (2 * n))
    t = np.linspace(-1, 1, 302)  # no node among them
    basis = weight / (t[:, None] - x)
    basis /= basis.sum(axis=1, keepdims=True)
    # Beyond |c| = h + 40 both functions are exponentials or constants to rounding error.
    centres = np.concatenate([np.linspace(-h, h, 41) for h in (1.5 * half_width + 4, half_width + 40)])
    exact = function(half_width * t[:, None] + centres)
    error = np.abs(basis @ function(half_width * x[:, None] + centres) - exact).max(axis=0)
    return float((error / np.abs(exact).max(axis=0)).max())


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("tolerance", [1e-6, 1e-8, 1e-10, 1e-12])
def test_number_of_nodes_keeps_the_tolerance(name, tolerance):
    for half_width in HALF_WIDTHS:
        n = int(n_nodes(np.array(half_width), tolerance))
        error = interpolation_error(half_width, n, FUNCTIONS[name])
        assert error <= tolerance + 2e-14, (half_width, n)


def test_constant_of_the_bound():
    largest = 0.0
    for half_width in HALF_WIDTHS:
        rho = np.pi / half_width + np.hypot(np.pi / half_width, 1)
        for n in range(2, 90):
            if rho**-n < 1e-12:
                break
            for function in FUNCTIONS.values():
                largest = max(largest, interpolation_error(half_width, n, function) * rho**n)
    assert 5 < largest < CONSTANT


@pytest.mark.parametrize("half_width", [0.05, 0.5, 2.0])
def test_number_of_nodes_for_zero_inflated_zeros(half_width):
    """log(e^zeta + f0) and its derivative; absolute where they are below 1, far out they are next to nothing."""
    n = int(n_nodes(np.array(half_width), 1e-10, ZERO_INFLATED))
    k = np.arange(n)
    x = half_width * np.cos((2 * k + 1) * np.pi / (2 * n))
    t = np.linspace(-half_width, half_width, 302)
    basis = (-1.0) ** k * np.sin((2 * k + 1) * np.pi / (2 * n)) / (t[:, None] - x)
    basis /= basis.sum(axis=1, keepdims=True)
    for theta in (0.05, 1.0, 10.0, np.inf):
        for zeta in (-9.2, -5.0, -2.0, 0.0, 3.0):
            for centre in np.linspace(-5, 5, 21):

                def function(s, theta=theta, zeta=zeta, centre=centre):
                    mu = np.exp(s + centre)
                    log_zero = -mu if np.isinf(theta) else -theta * np.log1p(mu / theta)
                    value = np.logaddexp(zeta, log_zero)
                    return np.stack([value, np.exp(log_zero - value) * mu / (1 + mu / theta)])

                exact = function(t)
                error = np.abs(function(x) @ basis.T - exact)
                assert (error <= 1e-10 * np.maximum(1, np.abs(exact).max(axis=1, keepdims=True))).all()


def test_numbers_of_nodes_named_in_the_design():
    forty_fold, four_decades = np.log(40) / 2, np.log(1e4) / 2
    assert n_nodes(np.array([forty_fold, four_decades]), 1e-10).tolist() == [20, 40]
    assert n_nodes(np.array([0.0, 1e-9]), 1e-10).tolist() == [1, 2]


def few_and_many() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    stratum = np.repeat([0, 1, 2, 3], [200, 5, 60, 1])
    offset = rng.normal(8, 1, stratum.size)
    offset[stratum == 2] = 7.5
    shuffle = rng.permutation(stratum.size)
    return stratum[shuffle], offset[shuffle]


def basis_of(nodes: Nodes, cell: int) -> np.ndarray:
    start, stop = nodes.start[nodes.stratum[cell]], nodes.start[nodes.stratum[cell] + 1]
    basis = np.zeros(stop - start)
    lagrange_basis.py_func(nodes.offset[cell], nodes.tau, nodes.axes.weight, start, stop, basis)
    return basis


def test_layout():
    stratum, offset = few_and_many()
    nodes = make_nodes(stratum, offset)
    assert nodes.n_strata == 4
    assert nodes.n_cells.tolist() == [200, 5, 60, 1]
    assert nodes.exact.tolist() == [False, True, False, True]
    assert np.diff(nodes.start)[1:].tolist() == [5, 1, 1]
    assert nodes.size == nodes.tau.size == nodes.weights.size
    assert (stratum[nodes.order] == np.sort(stratum)).all()
    for s in range(4):
        cells = nodes.order[nodes.cell_start[s] : nodes.cell_start[s + 1]]
        assert (np.diff(cells) > 0).all()
        tau = nodes.tau[nodes.start[s] : nodes.start[s + 1]]
        if nodes.exact[s]:
            assert (tau == offset[cells]).all()
        else:
            assert offset[cells].min() <= tau.min()
            assert tau.max() <= offset[cells].max()


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 8), st.integers(1, 300), st.integers(1, 5))
def test_weights_count_cells_and_sum_offsets(seed, half_width, n, n_strata):
    rng = np.random.default_rng(seed)
    stratum = np.concatenate([np.arange(n_strata), rng.integers(0, n_strata, n)])
    offset = rng.uniform(-half_width, half_width, stratum.size) + rng.normal(0, 5)
    nodes = make_nodes(stratum, offset)
    scale = stratum.size * np.abs(offset).max()
    for s in range(n_strata):
        at = slice(nodes.start[s], nodes.start[s + 1])
        assert nodes.weights[at].sum() == pytest.approx(nodes.n_cells[s], rel=1e-12)
        total = nodes.weights[at] @ nodes.tau[at]
        assert total == pytest.approx(offset[stratum == s].sum(), abs=1e-13 * scale)


def test_strata_with_few_cells_keep_them():
    rng = np.random.default_rng(1)
    offset = rng.normal(size=30)
    needed = int(n_nodes(np.array(np.ptp(offset) / 2), 1e-10))
    for n in (needed, needed + 1):
        stratum, o = np.zeros(n, np.int64), np.resize(offset, n)
        o[:2] = offset.min(), offset.max()
        nodes = make_nodes(stratum, o)
        assert nodes.exact.tolist() == [n == needed]
        assert nodes.size == needed
        if n == needed:
            assert (nodes.tau == o).all()
            assert (nodes.weights == 1).all()


def test_uncompressed_keeps_every_cell():
    stratum, offset = few_and_many()
    nodes = make_nodes(stratum, offset, compress=False)
    assert nodes.exact.all()
    assert nodes.size == stratum.size
    assert (nodes.tau == offset[nodes.order]).all()
    assert (nodes.weights == 1).all()


def test_a_constant_offset_is_one_node():
    nodes = make_nodes(np.zeros(100, np.int64), np.full(100, 2.5))
    assert nodes.tau.tolist() == [2.5]
    assert nodes.weights.tolist() == [100.0]


@pytest.mark.parametrize("ulps", [1, 2, 3, 5, 17, 1000])
@pytest.mark.parametrize("level", [np.log(1e4), 0.3, -7.0])
def test_offsets_that_differ_by_rounding_only(ulps, level):
    # Size factors that are equal but for rounding: the nodes must not collapse onto one another.
    offset = np.full(20, level)
    offset[::3] += ulps * np.spacing(level)
    nodes = make_nodes(np.zeros(20, np.int64), offset)
    assert nodes.weights.sum() == pytest.approx(20, rel=1e-12)
    assert np.abs(nodes.weights).max() <= 200
    assert nodes.weights @ np.exp(nodes.tau) == pytest.approx(np.exp(offset).sum(), rel=1e-12)


@pytest.mark.parametrize("tolerance", [1e-6, 1e-10])
def test_sums_over_cells_are_kept(tolerance):
    rng = np.random.default_rng(3)
    stratum = np.repeat([0, 1], [400, 300])
    offset = rng.uniform(0, np.log(1e4), stratum.size)
    nodes = make_nodes(stratum, offset, tolerance)
    of_node = np.repeat([0, 1], np.diff(nodes.start))
    for function in FUNCTIONS.values():
        for eta in (-14.0, -6.0, -2.0, 3.0):
            values = nodes.weights * function(nodes.tau + eta)
            for s in (0, 1):
                exact = function(offset[stratum == s] + eta)
                assert values[of_node == s].sum() == pytest.approx(
                    exact.sum(), abs=tolerance * exact.max() * exact.size
                )


def test_basis_against_scipy():
    rng = np.random.default_rng(4)
    stratum, offset = np.zeros(300, np.int64), rng.normal(5, 1, 300)
    nodes = make_nodes(stratum, offset)
    values = rng.normal(size=nodes.size)
    interpolate = BarycentricInterpolator(nodes.tau, values)
    for cell in range(0, 300, 17):
        assert basis_of(nodes, cell) @ values == pytest.approx(float(interpolate(offset[cell])), rel=1e-9)


def test_basis_at_a_node_is_exact():
    nodes = make_nodes(np.zeros(300, np.int64), np.random.default_rng(5).normal(size=300))
    for k in range(nodes.size):
        basis = np.full(nodes.size, np.nan)
        lagrange_basis.py_func(nodes.tau[k], nodes.tau, nodes.axes.weight, 0, nodes.size, basis)
        assert basis.tolist() == [float(j == k) for j in range(nodes.size)]


def test_sum_on_nodes():
    """With 1 for every cell the table A; with any values sums that interpolate linear functions exactly."""
    stratum, offset = few_and_many()
    nodes = make_nodes(stratum, offset)
    np.testing.assert_allclose(sum_on_nodes(nodes, np.ones(stratum.size)), nodes.weights, atol=1e-12)
    values = np.random.default_rng(1).normal(size=stratum.size)
    total = sum_on_nodes(nodes, values)
    for s in range(nodes.n_strata):
        at = slice(nodes.start[s], nodes.start[s + 1])
        assert total[at].sum() == pytest.approx(values[stratum == s].sum())
        assert total[at] @ nodes.tau[at] == pytest.approx((values * offset)[stratum == s].sum())


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_weights_from_finer_nodes(n_jobs):
    """The weights that a look at the cells gives, also where strata keep their cells on one side or on both."""
    stratum, offset = few_and_many()
    finer = make_nodes(stratum, offset, 1e-14, n_jobs=n_jobs)
    np.testing.assert_array_equal(finer.weights, make_nodes(stratum, offset, 1e-14).weights)
    for tolerance in (1e-14, 1e-12, 1e-6):
        direct = make_nodes(stratum, offset, tolerance)
        nodes = make_nodes(stratum, offset, tolerance, finer=finer, n_jobs=n_jobs)
        np.testing.assert_array_equal(nodes.tau, direct.tau)
        np.testing.assert_array_equal(nodes.exact, direct.exact)
        np.testing.assert_allclose(nodes.weights, direct.weights, rtol=1e-11, atol=1e-11)
