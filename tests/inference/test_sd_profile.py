"""Profiles of genes over their standard deviations: the interpolation against direct evaluation."""

from __future__ import annotations

import models
import numpy as np
import pytest
from fitting import fit_cells, frame_of
from scipy.optimize import minimize_scalar

from scglmm.inference.moderation import place_points
from scglmm.inference.prior import log_sd_grid
from scglmm.inference.sd_profile import DROP, MAX_SD, NODES, barycentric, can_profile, chebyshev


@pytest.mark.parametrize(
    ("kind", "possible"), [("one", True), ("nested", True), ("crossed", True), ("slope", False), ("none", False)]
)
def test_which_models_can_be_profiled(kind, possible):
    cells = models.simulate(kind)
    frame, _ = frame_of(cells.X, cells.terms)
    assert can_profile(frame) is possible


def profile_of(cells):
    from scglmm.inference import genes

    original = genes.moderate
    kept = []
    genes.moderate = lambda profiles, log_mean, frame: (kept.extend(profiles) or [None] * len(profiles), None)
    try:
        fit_cells(cells, moderate=True)
    finally:
        genes.moderate = original
    return kept[0]


@pytest.fixture(autouse=True)
def _few_genes(monkeypatch):
    monkeypatch.setattr("scglmm.inference.moderation.FEWEST_GENES", 1)


def dense_profile(cells, psi) -> float:
    """REML criterion with dense matrices, maximised over theta."""
    dense = models.Dense(cells)
    found = minimize_scalar(
        lambda t: -dense.criterion(np.array([*psi, t]), joint=True), bounds=(-5, 8), method="bounded",
        options={"xatol": 1e-6},
    )  # fmt: skip
    return -found.fun


@pytest.mark.parametrize(
    ("n_donors", "sd", "seed"), [(6, 0.5, 0), (8, 0.0, 1), (12, 1.5, 2), (60, 0.6, 3)], ids=["6", "8", "12", "60"]
)
def test_one_term_against_dense_matrices(n_donors, sd, seed):
    cells = models.simulate("one", seed, n_donors=n_donors, per_donor=3, cells=4, intercept=1.0, psi=[sd])
    profile = profile_of(cells)
    points = place_points([profile], log_sd_grid(1))
    likely = points.likelihood[0] > np.exp(-8)
    at = np.flatnonzero(likely)[:: max(1, likely.sum() // 5)]
    direct = np.array([dense_profile(cells, [points.sd[0][0, k]]) for k in at])
    found = np.log(points.likelihood[0, at])
    np.testing.assert_allclose(found - found[0], direct - direct[0], atol=0.02)


def test_two_terms_against_dense_matrices():
    cells = models.simulate("nested", 2, n_donors=8, per_donor=4, cells=4, intercept=1.0)
    points = place_points([profile_of(cells)], log_sd_grid(2))
    likelihood = points.likelihood[0]
    likely = np.argwhere(likelihood > np.exp(-5))
    at = likely[:: max(1, len(likely) // 8)]
    direct = np.array([dense_profile(cells, [points.sd[0][0, i], points.sd[1][0, j]]) for i, j in at])
    found = np.log(likelihood[tuple(at.T)])
    np.testing.assert_allclose(found - found[0], direct - direct[0], atol=0.05)


def test_range_reaches_to_where_nothing_is_left():
    cells = models.simulate("one", 1, n_donors=40, psi=[0.8])
    profile = profile_of(cells)
    assert not profile.begins_at_zero[0]
    points = place_points([profile], log_sd_grid(1))
    assert points.likelihood[0, 0] == 0.0
    assert np.log(points.likelihood[0, [1, -1]]).max() < -0.3 * DROP
    few = models.simulate("one", 1, n_donors=6, psi=[0.0])
    profile = profile_of(few)
    assert profile.begins_at_zero[0]
    assert place_points([profile], log_sd_grid(1)).sd[0].max() <= MAX_SD * (1 + 1e-9)


@pytest.mark.parametrize("n", sorted(set(NODES.values())))
def test_barycentric_reproduces_polynomials(n):
    x = np.linspace(-1, 1, 31)
    coefficients = np.arange(1.0, n + 1)
    basis = barycentric(np.concatenate([x, chebyshev(n)]), n)
    at = np.concatenate([x, chebyshev(n)])
    np.testing.assert_allclose(basis @ np.polyval(coefficients, chebyshev(n)), np.polyval(coefficients, at), rtol=1e-10)
