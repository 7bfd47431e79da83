"""What results do not depend on, and what they depend on as algebra says, for data drawn at random."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from conduct import few_or_many
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISORDER, FORMATS, Sane, sane, stored

import scglmm

FEW = 6
MANY = pytest.param(500, marks=pytest.mark.long)  # of each of four properties, 2,000 of their strategy
examples_of = pytest.mark.parametrize("examples", [FEW, MANY])

SEARCH = ("n_eval", "grad", "quadrature_error")  # the record of the search, not a result
OF_RESULTS = ("coef", "se", "stat", "dof", "pval", "padj", "vcov", "dvcov", "varpart", "fit")


def fit(adata: AnnData, case: Sane, **changes: Any) -> AnnData:
    """Run on a copy; advice on designs that are drawn at random is of no interest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return scglmm.tl.nbmm(adata, copy=True, **({"formula": case.formula} | case.how | changes))


def tables(adata: AnnData, columns: dict[str, str] | None = None) -> dict[str, np.ndarray]:
    """Every table as an array of numbers."""
    found = {}
    for name in OF_RESULTS:
        if f"nbmm_{name}" in adata.varm:
            table = adata.varm[f"nbmm_{name}"]
            if name == "fit":
                table = table.drop(columns=["status", *(c for c in SEARCH if c in table)])
            found[name] = np.asarray(table, float)
    found["status"] = adata.varm["nbmm_fit"]["status"].astype(str).to_numpy(object)
    return found


def assert_same(one: AnnData, two: AnnData, rtol: float | None) -> None:
    """Compare all tables, to the last bit or entry by entry to `rtol`."""
    for name, a in tables(one).items():
        b = tables(two)[name]
        if rtol is None or name == "status":
            np.testing.assert_array_equal(a, b, err_msg=name)
            continue
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * 1e-3, err_msg=name)


@examples_of
def test_storage_and_genes(examples: int):
    """To the last bit: type, order and number of the entries, order of the genes, columns that nobody uses.

    To 1e-8: dense arrays, which are summed on finer nodes in the pass that checks them.
    """

    @few_or_many(examples)
    @given(
        sane(),
        st.sampled_from(FORMATS),
        st.sampled_from(["float32", "float64", "int64", "uint16"]),
        st.sampled_from(DISORDER),
        st.booleans(),
    )
    def check(case: Sane, kind: str, dtype: str, disorder: str, view: bool) -> None:
        rng = np.random.default_rng(1)
        other = case.adata(stored(case.bulk.counts, kind, dtype, disorder, rng))
        order = rng.permutation(other.n_vars)
        other.obs = other.obs.assign(again=other.obs["group"], more=other.obs["x"])
        other = other[:, order] if view else other[:, order].copy()
        tolerance = 1e-8 if kind in ("dense", "fortran") else None
        assert_same(fit(other, case), fit(case.adata(), case)[:, order].copy(), tolerance)

    check()


@examples_of
def test_cells_and_names(examples: int):
    """To 1e-8, since sums are taken in another order: cells and donors in another order, and under other names."""

    @few_or_many(examples)
    @given(sane(), st.integers(0, 100))
    def check(case: Sane, seed: int) -> None:
        adata, rng = case.adata(), np.random.default_rng(seed)
        other = case.adata()[rng.permutation(adata.n_obs)].copy()
        for column, gone in (("donor", "nobody"), ("batch", "none/at all")):
            names = list(other.obs[column].cat.categories)
            new = [f"x/{i}" for i in rng.permutation(len(names))]
            renamed = other.obs[column].cat.rename_categories(dict(zip(names, new, strict=True)))
            other.obs[column] = renamed.cat.reorder_categories(sorted(new)).cat.add_categories(gone)
        assert_same(fit(other, case), fit(adata, case), 1e-8)

    check()


def close(a: np.ndarray, b: np.ndarray, unit: np.ndarray, tolerance: float) -> None:
    """Compare in units of the standard error."""
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    known = ~np.isnan(a)
    assert (np.abs(a - b)[known] <= tolerance * unit[known]).all()


SAME = 1e-6
"""Where the search takes another path, estimates agree to this many standard errors, and these relatively. The search
ends when another step would change the log-likelihood by less than rounding does, which leaves the parameters known to
the root of it: about 1e-7 standard errors."""


def assert_same_fit(one: AnnData, two: AnnData) -> None:
    """Compare what the coding of the fixed effects does not change."""
    a, b = one.varm["nbmm_fit"], two.varm["nbmm_fit"]
    assert list(a["status"].astype(str)) == list(b["status"].astype(str))
    np.testing.assert_allclose(a["loglik"], b["loglik"], rtol=1e-9, atol=1e-7)
    for name in [c for c in a if c.startswith("var[")]:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6)


@examples_of
def test_scale_of_the_offset(examples: int):
    """Size factors times a constant: the intercept moves by its logarithm, and nothing else."""

    @few_or_many(examples)
    @given(sane(), st.sampled_from([3.7, 1e-3, 1e6, 1e-30, 1e30]))
    def check(case: Sane, factor: float) -> None:
        one, adata = fit(case.adata(), case), case.adata()
        adata.obs["size"] = adata.obs["size"] * factor
        two = fit(adata, case)
        assert_same_fit(one, two)
        unit = one.varm["nbmm_se"].to_numpy()
        np.testing.assert_allclose(two.varm["nbmm_se"], unit, rtol=SAME)
        moved = two.varm["nbmm_coef"].to_numpy() + np.log(factor) * (one.varm["nbmm_coef"].columns == "(Intercept)")
        # the difference of two logarithms of this size is itself rounded
        close(moved, one.varm["nbmm_coef"].to_numpy(), np.maximum(unit, 1e-7 * np.abs(np.log(factor))), SAME)

    check()


CODED = tuple(f"~ offset(log(size)) + {term} + x + (1|donor)" for term in ("group", "stim", "group + stim"))


@examples_of
def test_reference_level(examples: int):
    """Another reference: coefficients are the same linear function of one another as the columns of the designs."""

    @few_or_many(examples)
    @given(sane(CODED), st.sampled_from(["group", "stim"]), st.integers(0, 2))
    def check(case: Sane, column: str, first: int) -> None:
        adata = case.adata()
        one = fit(adata, case)
        levels = list(adata.obs[column].cat.categories)
        reference = levels[first % len(levels)]
        adata.obs[column] = adata.obs[column].cat.reorder_categories(
            [reference, *(v for v in levels if v != reference)]
        )
        two = fit(adata, case)
        assert_same_fit(one, two)
        before, after = (
            x.varm["nbmm_coef"].rename(columns=lambda c: c.replace("(Intercept)", "0")) for x in (one, two)
        )
        if column not in case.formula:
            np.testing.assert_array_equal(before, after)
            return
        # mean of a level minus that of the reference, from the old coefficients
        zero = pd.Series(0.0, index=before.index)
        old = {v: before.get(f"{column}[T.{v}]", zero) for v in levels}
        unit = two.varm["nbmm_se"]
        for v in levels:
            if v != reference and not before.isna().any(axis=None):
                name = f"{column}[T.{v}]"
                close(after[name].to_numpy(), (old[v] - old[reference]).to_numpy(), unit[name].to_numpy(), SAME)

    check()
