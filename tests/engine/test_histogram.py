from __future__ import annotations

import numpy as np
import pytest
from scipy.special import digamma, gammaln

from scglmm.compression.tables import DIRECT
from scglmm.engine.histogram import exceedance, histogram_curvature, histogram_terms, log_factorials

THETAS = (1e-8, 0.01, 0.3, 2.0, 50.0, 1e4, 1e6, 1e8)
COUNTS = np.array([0, 0, 0, 1, 1, 2, 5, 40, DIRECT - 1, DIRECT, DIRECT + 1, DIRECT + 1, 500, 12_345])


def arguments(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return exceedance(*np.unique(y, return_counts=True))


def exact(y: np.ndarray, theta: float) -> tuple[float, float]:
    """The sum over j and its derivative in log(theta), term by term in extended precision."""
    value = slope = np.longdouble(0)
    theta = np.longdouble(theta)
    for count in y:
        j = np.arange(int(count), dtype=np.longdouble)
        value += np.log1p(j / theta).sum()
        slope -= (j / (theta + j)).sum()
    return float(value), float(slope)


@pytest.mark.parametrize("theta", THETAS)
def test_terms_one_by_one(theta):
    for y in (COUNTS, COUNTS[COUNTS <= DIRECT], np.array([0, 1]), np.array([3]), np.array([1_000_000])):
        value, slope = histogram_terms(*arguments(y), theta)
        expected, expected_slope = exact(y, theta)
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-300)
        assert slope == pytest.approx(expected_slope, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("theta", [0.01, 0.3, 2.0, 50.0, 1e3])
def test_against_gamma_functions(theta):
    value, slope = histogram_terms(*arguments(COUNTS), theta)
    expected = np.sum(gammaln(COUNTS + theta) - gammaln(theta) - COUNTS * np.log(theta))
    expected_slope = np.sum(theta * (digamma(COUNTS + theta) - digamma(theta)) - COUNTS)
    assert value == pytest.approx(expected, rel=1e-10)
    assert slope == pytest.approx(expected_slope, rel=1e-8)


@pytest.mark.parametrize("theta", [0.01, 1e8])
def test_ten_million_counts_in_one_cell(theta):
    value, slope = histogram_terms(*arguments(np.array([10_000_000])), theta)
    expected, expected_slope = exact(np.array([10_000_000]), theta)
    assert value == pytest.approx(expected, rel=1e-12)
    assert slope == pytest.approx(expected_slope, rel=1e-9)


@pytest.mark.parametrize("theta", THETAS)
def test_curvature_one_by_one(theta):
    for y in (COUNTS, COUNTS[COUNTS <= DIRECT], np.array([0, 1]), np.array([1_000_000])):
        expected = 0.0
        for count in y:
            j = np.arange(int(count), dtype=np.longdouble)
            expected += (j * theta / (theta + j) ** 2).sum()
        assert histogram_curvature(*arguments(y), theta) == pytest.approx(float(expected), rel=1e-9, abs=1e-300)


def test_no_counts():
    exceed, tail = arguments(np.zeros(5))
    assert tail.shape == (2, 0)
    assert histogram_terms(exceed, tail, 1.5) == (0.0, 0.0)
    assert histogram_curvature(exceed, tail, 1.5) == 0.0
    assert log_factorials(exceed, tail) == 0.0


def test_log_factorials():
    assert log_factorials(*arguments(COUNTS)) == pytest.approx(gammaln(COUNTS + 1.0).sum(), rel=1e-13)
    assert log_factorials(*arguments(np.array([1e7]))) == pytest.approx(gammaln(1e7 + 1), rel=1e-14)


def test_exceedance():
    exceed, tail = arguments(COUNTS)
    assert exceed.tolist() == [(j < COUNTS).sum() for j in range(DIRECT)]
    assert tail.tolist() == [[DIRECT + 1, 500, 12_345], [2, 1, 1]]
    exceed, tail = arguments(np.array([0, 2, 2, 1]))
    assert exceed.tolist() == [3, 2]
    assert tail.shape == (2, 0)


@pytest.mark.parametrize("theta", [0.3, 1e8])
def test_as_python(theta):
    assert histogram_terms.py_func(*arguments(COUNTS), theta) == pytest.approx(
        histogram_terms(*arguments(COUNTS), theta), rel=1e-13
    )
    assert log_factorials.py_func(*arguments(COUNTS)) == pytest.approx(log_factorials(*arguments(COUNTS)), rel=1e-14)
