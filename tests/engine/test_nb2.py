from __future__ import annotations

import numba
import numpy as np
import pytest
from models import Cells, compile_model
from scipy.stats import nbinom, poisson

from scglmm.engine import nb2
from scglmm.engine.layout import ETA, G_THETA, H_THETA, G, H, T

MEANS = (-10.0, -5.0, -1.0, 0.5, 3.0, 10.0)
THETAS = (0.01, 0.3, 2.0, 50.0, 1e4, 1e6, 1e8)


def cells_at(mean: float, theta: float, n: int = 40, seed: int = 0) -> Cells:
    """Cells without random effects: offsets of sd 0.5 and counts of the given log mean."""
    rng = np.random.default_rng(seed)
    offset = rng.normal(0, 0.5, n)
    y = rng.poisson(np.exp(mean + offset) * rng.gamma(theta, 1 / theta, n)).astype(float)
    return Cells(y, offset, np.ones((n, 1)), [], np.arange(n) // 8)


def exact(cells: Cells, eta: float, theta: float) -> tuple[float, float]:
    """Log-likelihood and its derivative in log(theta) in extended precision, count by count."""
    from scipy.special import gammaln

    value = slope = np.longdouble(0)
    theta = np.longdouble(theta)
    for y, offset in zip(cells.y, cells.offset, strict=True):
        j = np.arange(int(y), dtype=np.longdouble)
        log_mu = np.longdouble(offset) + np.longdouble(eta)
        m = np.exp(log_mu) / theta
        value += np.log1p(j / theta).sum() + y * log_mu - (y + theta) * np.log1p(m) - gammaln(y + 1)
        slope += (y + theta) * m / (1 + m) - theta * np.log1p(m) - (j / (theta + j)).sum()
    return float(value), float(slope)


def from_engine(cells: Cells, eta: float, theta: float) -> tuple[float, np.ndarray]:
    value, gradient, *_ = compile_model(cells).evaluate(np.array([eta, np.log(theta)]), joint=False)
    return value, gradient


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("mean", MEANS)
def test_log_likelihood(mean, theta):
    cells = cells_at(mean, theta)
    for eta in (mean, mean - 2, mean + 2):
        value, gradient = from_engine(cells, eta, theta)
        expected, slope = exact(cells, eta, theta)
        # Large terms of both signs: y log(mu) alone is of this size.
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-12 + 1e-14 * np.sum(cells.y) * abs(mean))
        # At theta = 1e8 the derivative is the difference of sums 1e8 times larger, were they not written otherwise.
        scale = np.sum(cells.y + np.exp(eta + cells.offset)) / theta
        assert gradient[1] == pytest.approx(slope, rel=1e-6, abs=1e-9 * scale)
        mu = np.exp(eta + cells.offset)
        assert gradient[0] == pytest.approx(np.sum((cells.y - mu) / (1 + mu / theta)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("theta", [0.01, 0.3, 2.0, 50.0, 1e3])
@pytest.mark.parametrize("mean", MEANS)
def test_log_likelihood_against_scipy(mean, theta):
    cells = cells_at(mean, theta)
    value, _ = from_engine(cells, mean + 0.3, theta)
    mu = np.exp(mean + 0.3 + cells.offset)
    assert value == pytest.approx(nbinom.logpmf(cells.y, theta, theta / (theta + mu)).sum(), rel=1e-9)


@pytest.mark.parametrize("mean", MEANS[:-1])
def test_poisson_limit(mean):
    cells = cells_at(mean, 1e12)
    value, _ = from_engine(cells, mean, 1e8)
    mu = np.exp(mean + cells.offset)
    # The first correction is sum ((y - mu)^2 - y) / (2 theta).
    expected = poisson.logpmf(cells.y, mu).sum() + np.sum((cells.y - mu) ** 2 - cells.y) / 2e8
    assert value == pytest.approx(expected, rel=1e-11, abs=1e-14 * np.sum(cells.y) * abs(mean))


@pytest.mark.parametrize("theta", [0.01, 2.0, 1e4, 1e8])
def test_huge_counts(theta):
    y = np.array([0.0, 3.0, 129.0, 4_000.0, 1_000_000.0, 2_000_000.0])
    cells = Cells(y, np.log(y + 1), np.ones((y.size, 1)), [], np.zeros(y.size, int))
    value, gradient = from_engine(cells, 0.1, theta)
    expected, slope = exact(cells, 0.1, theta)
    # lgamma(1e7 + 1) is 1.5e8: what remains of it after subtraction has 8 digits less.
    assert value == pytest.approx(expected, rel=1e-11, abs=1e-6)
    assert gradient[1] == pytest.approx(slope, rel=1e-8)


@numba.njit
def derivatives(nodes, start, theta, strata):
    nb2.derivatives(nodes, start, theta, strata)


@numba.njit
def score_curvature(nodes, start, theta, strata):
    nb2.score_curvature(nodes, start, theta, strata)


@numba.njit
def log_likelihood(nodes, start, theta, strata):
    return nb2.log_likelihood(nodes, start, theta, strata)


def kernel_rows(cells: Cells, eta: np.ndarray, theta: float, kernel=derivatives) -> np.ndarray:
    """The rows that a kernel fills: one column for each stratum."""
    model = compile_model(cells)
    strata = np.full((7, model.X.shape[0]), np.nan)
    strata[ETA] = eta
    kernel(model.data.nodes, model.data.start, theta, strata)
    return strata


@numba.njit
def second_order(nodes, start, theta, strata, slope, out):
    return nb2.second_order(nodes, start, theta, strata, slope, out)


def further(cells: Cells, eta: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
    """Further derivatives of the rows, and the second derivative in log(theta) of the log-likelihood."""
    model = compile_model(cells)
    strata, out = np.full((7, model.X.shape[0]), np.nan), np.empty((5, model.X.shape[0]))
    strata[ETA] = eta
    _, slope = log_likelihood(model.data.nodes, model.data.start, theta, strata)
    return out[:4], second_order(model.data.nodes, model.data.start, theta, strata, slope, out)


def test_logarithms_are_taken_in_blocks_of_nodes():
    rng = np.random.default_rng(0)
    start = np.r_[0, 1, 700, 1023, 1024, 1030, 3200, 3201]
    nodes, eta = np.abs(rng.normal(size=(3, start[-1]))), rng.normal(size=start.size - 1)
    strata = np.full((7, eta.size), np.nan)
    strata[ETA] = eta
    m = nodes[0] * np.exp(np.repeat(eta, np.diff(start))) / 2.0
    value, slope = log_likelihood(nodes, start, 2.0, strata)
    assert value == pytest.approx(-np.sum((nodes[2] + 2.0 * nodes[1]) * np.log1p(m)), rel=1e-12)
    expected = np.sum(2.0 * nodes[1] * (m / (1 + m) - np.log1p(m)) + nodes[2] * m / (1 + m))
    assert slope == pytest.approx(expected, rel=1e-10)
    # as quadrature calls it, one stratum after another
    parts = [log_likelihood(nodes, start[s : s + 2], 2.0, strata[:, s : s + 1]) for s in range(eta.size)]
    assert np.sum(parts, axis=0) == pytest.approx([value, slope], rel=1e-10)


@pytest.mark.parametrize("theta", [0.01, 2.0, 1e8])
def test_strata_of_one_node(theta):
    """They have code of their own: every node as a stratum adds up to the strata that have them together."""
    rng = np.random.default_rng(0)
    start, nodes = np.array([0, 1, 20, 27]), np.abs(rng.normal(size=(3, 27)))
    eta = rng.normal(size=3)
    single = np.full((7, 27), np.nan)
    single[ETA] = np.repeat(eta, np.diff(start))
    together = np.full((7, 3), np.nan)
    together[ETA] = eta
    for kernel in (derivatives, score_curvature):
        kernel(nodes, np.arange(28), theta, single)
        kernel(nodes, start, theta, together)
        np.testing.assert_allclose(
            np.add.reduceat(single[G:], start[:-1], axis=1), together[G:], rtol=1e-12, atol=1e-13
        )
    one, two = (log_likelihood(nodes, s, theta, x) for s, x in ((np.arange(28), single), (start, together)))
    np.testing.assert_allclose(one, two, rtol=1e-13)


@pytest.mark.parametrize("theta", [0.01, 0.3, 2.0, 50.0, 1e4])
@pytest.mark.parametrize("mean", [-10.0, -1.0, 3.0, 10.0])
def test_each_derivative_is_that_of_the_one_before(mean, theta):
    cells = cells_at(mean, theta)
    eta = mean + np.linspace(-1, 1, 5)

    def log_likelihood(eta: np.ndarray) -> np.ndarray:
        mu = np.exp(eta[cells.stratum] + cells.offset)
        terms = cells.y * np.log(mu) - (cells.y + theta) * np.log1p(mu / theta)
        return np.bincount(cells.stratum, terms)

    def slope(function, x) -> np.ndarray:
        d = [(function(x + h) - function(x - h)) / (2 * h) for h in (4e-3, 2e-3, 1e-3)]
        once = [(4 * d[1] - d[0]) / 3, (4 * d[2] - d[1]) / 3]
        return (16 * once[1] - once[0]) / 15

    rows = kernel_rows(cells, eta, theta)
    size = np.abs(rows).max()  # of the sums that are differenced

    def close(row: int, expected: np.ndarray, noise: float = 0.0) -> None:
        assert rows[row] == pytest.approx(expected, rel=1e-6, abs=noise + 1e-8 * max(1e-4, size))

    close(G, slope(log_likelihood, eta), 1e-12 * np.sum(cells.y) * abs(mean))
    close(H, -slope(lambda x: kernel_rows(cells, x, theta)[G], eta))
    close(T, slope(lambda x: kernel_rows(cells, x, theta)[H], eta))
    log_theta = np.log(theta)
    close(G_THETA, slope(lambda x: kernel_rows(cells, eta, np.exp(x))[G], log_theta))
    close(H_THETA, slope(lambda x: kernel_rows(cells, eta, np.exp(x))[H], log_theta))

    found, bend = further(cells, eta, theta)
    expected = [
        slope(lambda x: kernel_rows(cells, x, theta)[T], eta),
        slope(lambda x: kernel_rows(cells, eta, np.exp(x))[T], log_theta),
        slope(lambda x: kernel_rows(cells, eta, np.exp(x))[G_THETA], log_theta),
        slope(lambda x: kernel_rows(cells, eta, np.exp(x))[H_THETA], log_theta),
    ]
    assert found == pytest.approx(np.array(expected), rel=1e-6, abs=1e-8 * max(1e-4, size))

    def theta_slope(log_theta: float) -> float:
        m = np.exp(eta[cells.stratum] + cells.offset - log_theta)
        return np.sum(-np.exp(log_theta) * np.log1p(m) + (cells.y + np.exp(log_theta)) * m / (1 + m))

    assert bend == pytest.approx(slope(theta_slope, log_theta), rel=1e-6, abs=1e-9 * theta * cells.y.size)


def test_both_kernels_give_the_same_first_derivatives():
    cells = cells_at(1.0, 2.0)
    eta = np.linspace(-1, 3, 5)
    full, short = kernel_rows(cells, eta, 2.0), kernel_rows(cells, eta, 2.0, score_curvature)
    assert short[G] == pytest.approx(full[G], rel=1e-14)
    assert short[H] == pytest.approx(full[H], rel=1e-14)
    assert np.isnan(short[T]).all()


@pytest.mark.parametrize("row", [G, H, T, G_THETA, H_THETA])
def test_derivatives_at_the_poisson_limit(row):
    theta = 1e8
    cells = cells_at(2.0, 1e12)
    eta = np.full(5, 2.1)
    y, mu = cells.y.astype(np.longdouble), np.exp(np.longdouble(2.1) + cells.offset.astype(np.longdouble))
    m = mu / theta
    r = 1 / (1 + m)
    h = (y * m + mu) * r**2
    expected = {
        G: (y - mu) * r,
        H: h,
        T: h * (1 - m) * r,
        G_THETA: (y - mu) * m * r**2,
        H_THETA: mu * r**2 - h * (1 - m) * r,
    }[row]
    sums = np.array([expected[cells.stratum == s].sum() for s in range(5)], float)
    assert kernel_rows(cells, eta, theta)[row] == pytest.approx(sums, rel=1e-8 if row == H_THETA else 1e-11)


@pytest.mark.parametrize("eta", [-745.0, -300.0, 299.0, 350.0, 5000.0])
@pytest.mark.parametrize("theta", [1e-8, 1.0, 1e8])
def test_far_away_nothing_overflows(eta, theta):
    rows = kernel_rows(cells_at(0.0, 2.0), np.full(5, eta), theta)
    assert np.isfinite(rows[[G, H, T, G_THETA, H_THETA]]).all()
    assert (rows[H] >= 0).all()


@pytest.mark.parametrize("m", [1e-9, 1e-5, 9e-4, 1e-3])
def test_difference_series(m):
    x = np.longdouble(m)
    assert nb2.difference_series.py_func(m) == pytest.approx(float(x / (1 + x) - np.log1p(x)), rel=1e-11)


def test_log_likelihood_as_python(as_python):
    cells = cells_at(1.0, 2.0)
    model = compile_model(cells)
    for theta in (2.0, 1e8):
        strata = np.zeros((7, 5))
        strata[ETA] = 0.7
        f, f_theta = nb2.log_likelihood(model.data.nodes, model.data.start, theta, strata)
        m = np.exp(0.7 + cells.offset) / theta
        assert f == pytest.approx(-np.sum((cells.y + theta) * np.log1p(m)), rel=1e-12)
        expected = np.sum(cells.y * m / (1 + m)) + theta * np.sum(m / (1 + m) - np.log1p(m))
        assert f_theta == pytest.approx(expected, rel=1e-6)
