"""The information behind `scglmm.power`, against matrices written out, known tables, and simulated data sets."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import integrate, stats

import scglmm
from scglmm.inference.power import Study, degrees_of_freedom, group_sizes, moments, power, variance

SIMULATED = Path(__file__).parents[1] / "reference" / "power_simulation.csv"


def study(**changes: float) -> Study:
    values = {"effect": 0.7, "mean": 0.5, "theta": 1.0, "var_donor": 0.2, "var_effect": 0.0, "n_cells": 100.0}
    values |= {"cells_cv": 0.0, "fraction": 0.5} | changes
    within = bool(values.pop("within", False))
    return Study(**{name: np.array([float(value)]) for name, value in values.items()}, within=within)


def written_out(s: Study, n: np.ndarray, rng: np.random.Generator) -> float:
    """Generalised least squares over all donors of one study with drawn effects: the variance of the estimate."""
    effect, mean, theta, sigma2, tau2, cells, cv, fraction = (
        float(getattr(s, name)[0])
        for name in ("effect", "mean", "theta", "var_donor", "var_effect", "n_cells", "cells_cv", "fraction")
    )
    spread = np.log1p(cv**2)
    base = np.log(mean) - (sigma2 + tau2 / 2) / 2
    information = np.zeros((2, 2))
    for arm, donors in enumerate(n.astype(int)):
        for _ in range(donors):
            m = cells * np.exp(rng.normal(-spread / 2, np.sqrt(spread)))
            u = rng.normal(0, np.sqrt(sigma2))
            if s.within:
                x = np.array([0.0, 1.0])
                size = np.array([m * (1 - fraction), m * fraction])
            else:
                x, size = np.array([float(arm)]), np.array([m])
            mu = np.exp(base + effect * x + u + rng.normal(0, np.sqrt(tau2 / 2), x.size))
            h = size * mu / (1 + mu / theta)
            V = sigma2 + np.diag(tau2 / 2 + 1 / h)
            X = np.column_stack([np.ones_like(x), x])
            information += X.T @ np.linalg.solve(V, X)
    return float(np.linalg.inv(information)[1, 1])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cells_cv": 0.7, "fraction": 0.25},
        {"mean": 0.02, "theta": 0.3, "var_donor": 0.6},
        {"mean": 20.0, "theta": 5.0, "effect": -1.5},
        {"theta": np.inf, "mean": 0.1},
        {"within": True, "var_effect": 0.1},
        {"within": True, "var_effect": 0.05, "var_donor": 0.02, "cells_cv": 0.6, "mean": 0.1},
        {"within": True, "var_effect": 0.3, "fraction": 0.2, "effect": 1.2},
        {"within": True, "var_effect": 0.0, "var_donor": 0.0, "theta": np.inf},
    ],
    ids=str,
)
def test_variance_is_that_of_generalised_least_squares(changes):
    s = study(**changes)
    n = group_sizes(s, np.array([20.0]))
    rng = np.random.default_rng(0)
    drawn = [written_out(s, n[0], rng) for _ in range(400)]
    expected, error = np.mean(drawn), np.std(drawn) / np.sqrt(400)
    assert abs(variance(moments(s), n)[0] - expected) < 3 * error + 0.01 * expected


@pytest.mark.parametrize("within", [False, True])
def test_equal_cells_add_up(within):
    """m cells of one donor are worth m / (1 + (m - 1) rho): exact where a cell tells the same in all donors."""
    many, one = (
        study(mean=1e9, theta=2.0, var_donor=0.3 * (not within), var_effect=0.2 * within, within=within, n_cells=m)
        for m in (400, 1)
    )
    w = 2.0  # theta: counts are so large that sampling adds nothing
    rho = 0.2 / (0.2 + 4 / w) if within else 0.3 / (0.3 + 1 / w)
    np.testing.assert_allclose(moments(many).rho, rho, rtol=1e-6)
    n = group_sizes(one, np.array([10.0]))
    ratio = variance(moments(one), n) / variance(moments(many), n)
    np.testing.assert_allclose(ratio, 400 / (1 + 399 * rho), rtol=0.02 if within else 1e-6)


def test_donors_without_variance_are_so_many_cells():
    """With neither donor variance nor effect: the variance of a log ratio of two means of NB2 counts."""
    s = study(effect=0.0, var_donor=0.0)
    n = np.array([[7.0, 7.0]])
    np.testing.assert_allclose(variance(moments(s), n), 2 * (1 / 0.5 + 1 / 1.0) / 700, rtol=1e-12)
    np.testing.assert_allclose(degrees_of_freedom(moments(s), n, np.zeros(1)), 12)


def test_degrees_of_freedom():
    same = moments(study(theta=np.inf, mean=1e4))
    np.testing.assert_allclose(degrees_of_freedom(same, np.array([[4.0, 4.0]]), np.zeros(1)), 6, rtol=1e-3)
    np.testing.assert_allclose(degrees_of_freedom(same, np.array([[4.0, 4.0]]), np.array([2.0])), 4, rtol=1e-3)
    assert degrees_of_freedom(same, np.array([[1.0, 1.0]]), np.zeros(1))[0] == 0
    unequal = moments(study(var_donor=0.0, cells_cv=1.0))  # information proportional to cells
    np.testing.assert_allclose(degrees_of_freedom(unequal, np.array([[10.0, 10.0]]), np.zeros(1)), 18 / 2, rtol=0.05)


def test_group_sizes():
    s = study(fraction=0.25)
    np.testing.assert_array_equal(group_sizes(s, np.array([8.0])), [[6, 2]])
    np.testing.assert_array_equal(group_sizes(s, np.array([2.0])), [[1, 1]])
    np.testing.assert_array_equal(group_sizes(study(), np.array([7.0])), [[3, 4]])
    np.testing.assert_array_equal(group_sizes(study(within=True), np.array([7.0])), [[7]])


@pytest.mark.parametrize(
    ("d", "n", "expected"), [(0.5, 64, 0.8014596), (0.8, 26, 0.8074866), (0.2, 394, 0.8005931), (2.0, 4, 0.6568769)]
)
def test_power_of_the_t_test(d, n, expected):
    """Values of R's ``power.t.test(n, delta, strict=TRUE)``; the first three are Cohen's (1988) designs."""
    found = power(np.array([d]), np.sqrt(2 / n), np.array([2.0 * n - 2]), np.array([0.05]))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("df", [1.5, 3.0, 18.0])
@pytest.mark.parametrize("alpha", [0.05, 1e-5])
@pytest.mark.parametrize("shift", [0.0, 1.0, 6.0])
def test_power_by_integration(df, alpha, shift):
    critical = stats.t.isf(alpha / 2, df)

    def beyond(z):
        v = np.exp(z)
        root = critical * np.sqrt(v / df)
        both = stats.norm.sf(root - shift) + stats.norm.sf(root + shift)
        return both * stats.chi2.pdf(v, df) * v

    expected = integrate.quad(beyond, -40, 8, limit=400, epsabs=1e-12)[0]
    np.testing.assert_allclose(power(np.array([shift]), 1.0, np.array([df]), alpha), expected, rtol=1e-5)


def test_power_at_the_ends():
    found = power(np.array([0.0, -50.0, 1.0, 1.96]), 1.0, np.array([5.0, 5.0, 0.0, 1e8]), 0.05)
    np.testing.assert_allclose(found, [0.05, 1.0, np.nan, 0.5], atol=1e-3)


# ------------------------------------------------------------------------------------------------------- simulated data


def simulated() -> pd.DataFrame:
    return pd.read_csv(SIMULATED)


@pytest.mark.parametrize("row", range(len(simulated())))
def test_simulated_studies(row):
    """5,000 genes of each study were simulated and fitted with `tests/reference/power_simulation.py`."""
    s = simulated().iloc[row]
    names = ["n_donors", "n_cells", "cells_cv", "fraction", "mean", "theta", "var_donor", "var_effect", "log_fc"]
    planned = scglmm.power(design=s["design"], **{name: s[name] for name in names}).iloc[0]
    np.testing.assert_allclose(planned["power"], s["planned_power"], atol=2e-4)
    np.testing.assert_allclose(planned["se"], s["planned_se"], atol=2e-4)
    # What is planned is what the estimates do ...
    assert planned["se"] == pytest.approx(s["sd_of_estimates"], rel=0.08)
    # ... and what the tests find.
    assert planned["power"] == pytest.approx(s["simulated_power"], abs=0.02 + 2 * s["mc_error"])


def test_a_small_simulation():
    loaded = importlib.util.spec_from_file_location("power_simulation", SIMULATED.with_suffix(".py"))
    script = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(script)
    before, sc.settings.verbosity = sc.settings.verbosity, 0
    try:
        first = dict(zip(script.NAMES, script.STUDIES[3], strict=True))
        found = script.run(first, n_genes=60, n_sets=2, seed=3)
    finally:
        sc.settings.verbosity = before
    assert found["median_se"] == pytest.approx(found["planned_se"], rel=0.1)
    assert found["median_df"] == pytest.approx(found["planned_df"], rel=0.1)
    assert found["simulated_power"] == pytest.approx(found["planned_power"], abs=0.15)
