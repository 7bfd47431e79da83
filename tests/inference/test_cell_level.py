"""Models with covariates that differ between cells: on nodes in these covariates against the cells themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scglmm.compression.tables import accumulate
from scglmm.engine.responses import Responses
from scglmm.formula import build_design, parse_formula
from scglmm.inference.cell_level import BOUNDS, Placed, place_models
from scglmm.inference.containment import find_carrier
from scglmm.inference.frame import Frame, make_frame, strata_of
from scglmm.inference.gene import GeneFit, fit_gene
from scglmm.inference.genes import GeneFits, Options, fit_genes

N_DONORS, N_CELLS = 6, 4_500
SMALL_BOUNDS = (0.1, 0.4, 5.0)  # so that nodes in two covariates cost less than this few cells
GENES = {"null": (0.3, 0.0), "rare": (0.02, 0.2), "frequent": (4.0, -0.25), "steep": (1.0, 0.8), "steeper": (1.0, 2.5)}


@pytest.fixture(scope="module")
def study() -> tuple[pd.DataFrame, sp.csr_matrix]:
    """Cells and counts: genes of different means and effects of x."""
    rng = np.random.default_rng(0)
    donor = rng.integers(0, N_DONORS, N_CELLS)
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical([f"d{k}" for k in donor]),
            "Dx": pd.Categorical(np.where(donor % 2, "case", "control"), categories=["control", "case"]),
            "lib": np.exp(rng.normal(8, 0.5, N_CELLS)),
            "x": rng.normal(size=N_CELLS),
            "z": rng.gamma(2, 2, N_CELLS),
            "tailed": rng.standard_t(2, N_CELLS),
        }
    )
    obs["squared"] = obs["x"] ** 2
    counts = []
    for mean, effect in GENES.values():
        slope = effect + 0.1 * rng.normal(size=N_DONORS)[donor]
        eta = 0.3 * rng.normal(size=N_DONORS)[donor] + slope * obs["x"] - 0.1 * obs["z"]
        mu = mean * obs["lib"] / obs["lib"].mean() * np.exp(eta.clip(-8, 4))
        counts.append(rng.poisson(rng.gamma(1.5, mu / 1.5)))
    separated = np.where(obs["Dx"] == "case", rng.poisson(0.05, N_CELLS), 0)
    return obs, sp.csr_matrix(np.stack([*counts, separated], axis=1).astype(np.float32))


def place(obs: pd.DataFrame, formula: str, bounds: tuple[float, ...] | None = BOUNDS) -> Placed:
    """Place nodes; no bounds for the cells."""
    design = build_design(parse_formula(formula), obs)
    stratum, first = strata_of(design)
    frame = make_frame(design, first, np.bincount(stratum))
    how = {"tolerance": 1e-11, "interpolate": bounds is not None, "bounds": bounds or ()}
    return place_models([design], [frame], stratum, design.offset, **how)[0]


def fit(study, placed: Placed, options: Options, genes: np.ndarray | None = None) -> GeneFits:
    _, X = study
    genes = np.arange(len(GENES)) if genes is None else genes
    return fit_genes(
        X, np.arange(N_CELLS), placed.nodes, placed.frame, genes, options, n_jobs=1, max_bytes=1e9, finer=placed.finer
    )


def assert_same(one: GeneFit, two: GeneFit) -> None:
    """Log-likelihoods to 1e-6, coefficients to 1e-6 standard errors, the rest to what differences allow."""
    assert one.status == two.status
    assert one.loglik == pytest.approx(two.loglik, abs=1e-6)
    np.testing.assert_allclose((one.beta - two.beta) / two.se, 0.0, atol=1e-6)
    np.testing.assert_allclose(one.se, two.se, rtol=1e-5)
    np.testing.assert_allclose(one.df, two.df, rtol=1e-3)
    np.testing.assert_allclose(one.theta, two.theta, rtol=1e-6)
    for a, b in zip(one.sigma, two.sigma, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.var_linpred, two.var_linpred, rtol=1e-6)
    np.testing.assert_allclose(one.null_intercept, two.null_intercept, rtol=1e-4)


@pytest.mark.parametrize(
    ("right", "method", "names", "bounds"),
    [
        ("Dx + x + (1|donor)", "ml", ("x",), BOUNDS),
        ("Dx*x + (x|donor)", "reml", ("x", "Dx[T.case]:x"), BOUNDS),
        ("Dx + x + (x||donor)", "ml", ("x",), BOUNDS),
        ("Dx + x + z + (1|donor)", "ml", ("x", "z"), SMALL_BOUNDS),
        ("Dx + tailed + (1|donor)", "reml", ("tailed",), BOUNDS),
        ("x + squared + (1|donor)", "ml", ("x", "squared"), SMALL_BOUNDS),
    ],
)
def test_like_the_cells(study, right, method, names, bounds):
    obs, _ = study
    formula = f"~ offset(log(lib)) + {right}"
    placed, cells = place(obs, formula, bounds), place(obs, formula, None)
    assert placed.covariates == names
    assert cells.covariates == ()
    assert placed.bound == bounds[0]
    assert placed.nodes.n_strata < 0.8 * N_CELLS
    assert placed.frame.n_total == cells.frame.n_total == N_CELLS
    assert placed.frame.has_constant
    options = Options(method=method)
    found, expected = (fit(study, each, options, np.arange(4)) for each in (placed, cells))
    for one, two in zip(found.fits, expected.fits, strict=True):
        assert_same(one, two)
    assert (found.donors == expected.donors).all()
    assert (found.totals == expected.totals).all()


def test_larger_effects_get_other_nodes(study):
    """The nodes for small effects would be wrong for a steep gene, and are seen to be."""
    obs, _ = study
    formula = "~ offset(log(lib)) + Dx + x + (1|donor)"
    placed, cells = place(obs, formula), place(obs, formula, None)
    alone = fit(study, Placed(placed.nodes, placed.frame), Options(method="ml"))
    assert [one.status == "beyond" for one in alone.fits] == [False, False, False, True, True]
    assert np.isnan(alone.fits[3].beta).all()
    second = placed.finer()
    assert second.bound == BOUNDS[1]
    assert second.nodes.size > placed.nodes.size
    alone = fit(study, Placed(second.nodes, second.frame), Options(method="ml"))
    assert [one.status == "beyond" for one in alone.fits] == [False, False, False, False, True]
    exact = fit(study, cells, Options(method="ml"))
    assert_same(alone.fits[3], exact.fits[3])
    # and the bound is worth something: without it the log-likelihood is off
    blind = Placed(placed.nodes, pretend(placed))
    assert abs(fit(study, blind, Options(method="ml")).fits[4].loglik - exact.fits[4].loglik) > 1e-6


def pretend(placed: Placed) -> Frame:
    """Take away the limits of a frame, not what they are for."""
    limits = replace(placed.frame.limits, limit=np.full(placed.frame.limits.limit.size, np.inf))
    return replace(placed.frame, limits=limits)


def test_separation_is_left_to_the_cells(study):
    obs, _ = study
    formula = "~ offset(log(lib)) + Dx + x + (1|donor)"
    placed, cells = place(obs, formula), place(obs, formula, None)
    gene = np.array([len(GENES)])
    (one,), (two,) = fit(study, placed, Options(), gene).fits, fit(study, cells, Options(), gene).fits
    assert one.status == two.status == "separated"
    np.testing.assert_array_equal(one.beta, two.beta)


def test_poisson(study):
    obs, _ = study
    formula = "~ offset(log(lib)) + Dx + x + (0 + x|donor)"
    options = Options(method="ml", family="poisson")
    found, expected = (fit(study, place(obs, formula, b), options, np.arange(4)) for b in (BOUNDS, None))
    for one, two in zip(found.fits, expected.fits, strict=True):
        assert_same(one, two)


def test_two_models_on_the_same_nodes(study):
    obs, _ = study
    designs = [
        build_design(parse_formula(f"~ offset(log(lib)) + Dx + {right}"), obs)
        for right in ("x + (x|donor)", "(1|donor)")
    ]
    stratum, first = strata_of(designs[0])
    frames = [make_frame(design, first, np.bincount(stratum)) for design in designs]
    larger, smaller = place_models(designs, frames, stratum, designs[0].offset, tolerance=1e-11)
    assert larger.nodes is smaller.nodes
    assert larger.finer().nodes.size == smaller.finer().nodes.size > larger.nodes.size
    alone = place(obs, "~ offset(log(lib)) + Dx + (1|donor)")
    assert alone.covariates == ()
    one, two = (fit(study, each, Options(method="ml"), np.arange(3)) for each in (smaller, alone))
    for a, b in zip(one.fits, two.fits, strict=True):
        assert_same(a, b)


def test_profile_for_moderation(study):
    """What moderation integrates over is that of the cells too."""
    obs, X = study
    formula = "~ offset(log(lib)) + Dx + x + (1|donor)"
    profiles = []
    for bounds in (BOUNDS, None):
        placed = place(obs, formula, bounds)
        tables = accumulate(X, np.arange(N_CELLS), placed.nodes, np.arange(1))
        shift = float(placed.nodes.offset.max())
        data = Responses(placed.nodes.grid, tables, shift)[0]
        carriers = [find_carrier(placed.frame, contrast) for contrast in np.eye(placed.frame.X.shape[1])]
        profiles.append(fit_gene(data, placed.frame, carriers, shift, "reml", with_profile=True).profile)
        assert [c.df if c else None for c in carriers] == [N_DONORS - 2, N_DONORS - 2, None]
    one, two = profiles
    np.testing.assert_allclose(one.value, two.value, atol=1e-5)
    np.testing.assert_allclose(one.beta, two.beta, atol=1e-6)
    np.testing.assert_allclose(one.vcov, two.vcov, rtol=1e-4, atol=1e-10)


def test_when_the_cells_are_cheaper(study):
    obs, _ = study
    few = obs.iloc[: N_DONORS * 30]
    placed = place(few, "~ offset(log(lib)) + Dx + x + z + (1|donor)")
    assert placed.covariates == ()
    assert placed.finer is None
    assert placed.frame.limits is None
    steps = place(obs.assign(x=np.floor(obs["x"])), "~ offset(log(lib)) + Dx + x + (1|donor)")
    assert steps.covariates == ()
