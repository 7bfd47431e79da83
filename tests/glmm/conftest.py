"""Published data and results, and those frozen in `tests/reference`; each model is fitted once."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scanpy as sc
from matplotlib import pyplot as plt

import scglmm

FROZEN = Path(__file__).resolve().parents[1] / "reference"


@pytest.fixture(autouse=True)
def _quiet():
    before = sc.settings.verbosity
    sc.settings.verbosity = 0
    plt.switch_backend("agg")
    yield
    plt.close("all")
    sc.settings.verbosity = before


@pytest.fixture(scope="session")
def published(reference: Path) -> Callable[[str], Any]:
    """Published table ("sleepstudy") or result ("sleepstudy_lmer_reml")."""

    @functools.cache
    def load(name: str) -> Any:
        table = reference / "published" / f"{name}.csv"
        if table.exists():
            return pd.read_csv(table)
        return json.loads((reference / "published" / f"{name}.json").read_text())

    return load


@pytest.fixture(scope="session")
def fitted(published: Callable[[str], Any]) -> Callable[..., scglmm.GLMMResult]:
    """Fit a model to published data, once for all tests."""

    @functools.cache
    def fit(data: str, formula: str, **options: Any) -> scglmm.GLMMResult:
        return scglmm.glmm(formula, published(data), **options)

    return fit


@functools.cache
def frozen_results() -> dict[str, Any]:
    return json.loads((FROZEN / "glmm_designs.json").read_text())


@pytest.fixture(scope="session")
def designs() -> dict[str, Any]:
    """Results of `tests/reference/glmm_designs.R`."""
    return frozen_results()


@pytest.fixture(scope="session")
def design_data() -> Callable[[str], pd.DataFrame]:
    """Data simulated there; the first level of every factor is the reference, as there."""

    @functools.cache
    def load(name: str) -> pd.DataFrame:
        data = pd.read_csv(FROZEN / f"glmm_{name}.csv")
        if name == "strains":
            data["drug"] = pd.Categorical(data["drug"], ["vehicle", "drug"])
        return data

    return load


@pytest.fixture(scope="session")
def plots(design_data: Callable[[str], pd.DataFrame]) -> scglmm.GLMMResult:
    """The unbalanced crossed design, Gaussian."""
    return scglmm.glmm("y ~ soil * light + ph + (1|plot)", design_data("plots"))


@pytest.fixture(scope="session")
def plot_counts(design_data: Callable[[str], pd.DataFrame]) -> scglmm.GLMMResult:
    """The same design, counts."""
    return scglmm.glmm("count ~ soil * light + ph + (1|plot)", design_data("plots"), family="nbinom2")
