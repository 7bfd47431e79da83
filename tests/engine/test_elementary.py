"""Own log(1 + x) and exp(x) against numpy in extended precision."""

from __future__ import annotations

import numba
import numpy as np

from scglmm.engine.elementary import exp, log1p


@numba.njit
def map_log1p(x, out):
    for i in range(x.size):
        out[i] = log1p(x[i])


@numba.njit
def map_exp(x, out):
    for i in range(x.size):
        out[i] = exp(x[i])


def in_units(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest error in units of the last place."""
    return float((np.abs(found - expected) / np.spacing(np.abs(expected))).max())


def test_log1p():
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [
            10 ** rng.uniform(-300, 280, 20_000),
            10 ** rng.uniform(-18, 18, 50_000),
            [0.0, 1.0, np.sqrt(2) - 1, np.nextafter(np.sqrt(2) - 1, 0), 2.0**-53, 2.0**52, 2.0**53, 1e16],
        ]
    )
    found = np.empty_like(x)
    map_log1p(x, found)
    assert in_units(found, np.log1p(x.astype(np.longdouble)).astype(float)) <= 1.5


def test_exp():
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-700, 700, 50_000), rng.uniform(-1, 1, 50_000), [0.0, -1e-300]])
    found = np.empty_like(x)
    map_exp(x, found)
    assert in_units(found, np.exp(x.astype(np.longdouble)).astype(float)) <= 1.5
    low = np.array([-708.0, -1e4, -np.inf])
    found = np.empty_like(low)
    map_exp(low, found)
    assert (found == found[0]).all()
    assert 0 < found[0] < 1e-307
    nan = np.array([np.nan])
    map_exp(nan, found[:1])
    assert np.isnan(found[0])
