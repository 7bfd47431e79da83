"""`tl.nbmm` gives the same numbers on every supported stack of packages: those of `tests/reference/stacks.csv`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd

FROZEN = Path(__file__).parents[1] / "reference" / "stacks.csv"


def test_frozen_results():
    spec = importlib.util.spec_from_file_location("stacks", FROZEN.with_suffix(".py"))
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found, expected = script.results(), pd.read_csv(FROZEN)
    names = ["method", "table", "gene", "column"]
    assert found[names].astype(str).to_numpy().tolist() == expected[names].to_numpy().tolist()
    # A p-value of 1e-50 changes a hundred times as much as its statistic.
    loose = (expected["table"] == "pval").to_numpy()
    np.testing.assert_allclose(found["value"][~loose], expected["value"][~loose], rtol=1e-8)
    np.testing.assert_allclose(found["value"][loose], expected["value"][loose], rtol=1e-8, atol=1e-12)
