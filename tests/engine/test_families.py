"""Poisson, Gaussian and zero-inflated families: the Laplace criterion against dense matrices, gradients."""

from __future__ import annotations

import numpy as np
import pytest
from models import CASES, KINDS, case, richardson


def point(kind: str, joint: bool, zi: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    psi = np.array(KINDS[kind]) * rng.choice([-1, 1], len(KINDS[kind])) * rng.uniform(0.3, 2, len(KINDS[kind]))
    beta = np.array([0.7, 0.4, -0.2]) + rng.normal(0, 0.3, 3)
    return np.r_[[] if joint else beta, zi, psi, rng.uniform(-1, 2)]


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
@pytest.mark.parametrize("kind", ["none", "one", "several"])
@pytest.mark.parametrize("name", CASES)
def test_value_against_dense(name, kind, joint):
    model, dense, zi = case(name, kind)
    for seed in range(2):
        par = point(kind, joint, zi, seed)
        value = model.evaluate(par, joint=joint)[0]
        assert value == pytest.approx(dense.criterion(par, joint=joint), rel=1e-8)


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
@pytest.mark.parametrize("kind", ["none", "one", "crossed", "slope", "several"])
@pytest.mark.parametrize("name", CASES)
def test_gradient_against_differences(name, kind, joint):
    model, _, zi = case(name, kind)
    for seed in range(2):
        par = point(kind, joint, zi, seed)
        _, gradient, beta, v = model.evaluate(par, joint=joint)
        expected = richardson(lambda x, b=beta, v=v: model.evaluate(x, joint=joint, beta=b, v=v)[0], par)
        assert np.abs(gradient - expected).max() <= 1e-6 * (1 + np.abs(gradient).max())
