"""What bad input gets: an error before any work that says what to do, and an `adata` that is as it was."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scglmm

FORMULA = "~ offset(log(libSize)) + Dx + Age + stim + (1|SubID)"


@pytest.fixture
def refused(
    adata: ad.AnnData, assert_untouched: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Call `tl.nbmm` on an `adata` that already has a result, check that nothing was done, return the message."""

    def work(*args: object, **kwargs: object) -> None:
        pytest.fail("work has begun")

    def call(
        formula: object = FORMULA,
        *,
        error: type[Exception] = ValueError,
        change: Callable[[ad.AnnData], ad.AnnData | None] = lambda adata: None,
        **arguments: object,
    ) -> str:
        scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)", mask_var=np.arange(adata.n_vars) < 2)
        changed = change(adata)
        target = adata if changed is None else changed
        before = target.copy()
        entry, tables = target.uns["nbmm"], {name: target.varm[name] for name in target.varm}
        monkeypatch.setattr("scglmm.tl._prepare.place_models", work)
        monkeypatch.setattr("scglmm.tl._nbmm.fit_parts", work)
        with pytest.raises(error) as caught:
            scglmm.tl.nbmm(target, formula, **arguments)
        assert_untouched(target, before)
        assert target.uns["nbmm"] is entry
        assert set(target.varm) == set(tables)
        return str(caught.value.args[0])

    return call


def in_obs(column: str, values: object) -> Callable[[ad.AnnData], None]:
    """Put values into a column of obs."""

    def change(adata: ad.AnnData) -> None:
        adata.obs[column] = values(adata) if callable(values) else values

    return change


def missing(column: str, n: int) -> Callable[[ad.AnnData], None]:
    """Take the first n values of a column of obs away."""

    def change(adata: ad.AnnData) -> None:
        adata.obs[column] = adata.obs[column].where(np.arange(adata.n_obs) >= n)

    return change


def in_counts(value: float) -> Callable[[ad.AnnData], None]:
    """Put one number into X, and keep X as it was in a layer."""

    def change(adata: ad.AnnData) -> None:
        adata.layers["umi"] = adata.X.copy()
        X = adata.X.toarray()
        X[7, 2] = value
        adata.X = sparse.csr_matrix(X)

    return change


# -------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("value", "said"),
    [(-1, "the negative value -1"), (1.5, "the fractional value 1.5"), (np.nan, "NaN"), (np.inf, "inf")],
)
def test_not_counts(refused, value, said):
    message = refused(change=in_counts(value))
    assert message.startswith(f"adata.X contains {said} (gene 'g2', cell 'c7'): ")
    assert "this looks like them: layer='umi'" in message


def test_log_normalised(refused):
    def change(adata: ad.AnnData) -> None:
        adata.raw = adata.copy()
        adata.X = adata.X.multiply(1e4 / adata.X.sum(axis=1)).tocsr().log1p()

    message = refused(change=change)
    assert "not raw counts (normalised or log-transformed?)" in message
    assert "use_raw=True" in message


def test_an_unknown_layer(refused):
    message = refused(change=in_counts(1), layer="UMI", error=KeyError)
    assert "the layers are 'umi'" in message


def test_no_counts_in_a_cell(refused):
    def change(adata: ad.AnnData) -> None:
        X = adata.X.toarray()
        X[:3] = 0
        adata.X = sparse.csr_matrix(X)

    message = refused("~ Dx + (1|SubID)", change=change)
    assert message.startswith("3 cells have no counts at all")
    assert "sc.pp.filter_cells(adata, min_counts=1)" in message


def test_genes_of_raw(refused):
    def change(adata: ad.AnnData) -> None:
        adata.raw = ad.AnnData(adata.X, obs=adata.obs, var=pd.DataFrame(index=[f"ENSG{i}" for i in range(30)]))

    message = refused(change=change, use_raw=True)
    assert message.startswith("None of the 30 genes to fit is in adata.raw.X")


# ---------------------------------------------------------------------------------------------------------- obs columns


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        (FORMULA.replace("Age", "age"), ["no column 'age'", "Did you mean 'Age'?"]),
        (FORMULA.replace("SubID", "subid"), ["no column 'subid'", "Did you mean 'SubID'?"]),
        (FORMULA.replace("libSize", "lib_size"), ["no column 'lib_size'", "Did you mean 'libSize'?"]),
        ("~ nothing + (1|SubID)", ["no column 'nothing'", "'Dx', 'stim', 'Age'"]),
    ],
)
def test_an_unknown_column(refused, formula, said):
    message = refused(formula, error=KeyError)
    assert all(part in message for part in said)


@pytest.mark.parametrize("column", ["Age", "libSize", "SubID", "Dx"])
def test_missing_values(refused, column):
    message = refused(change=missing(column, 17))
    assert f"'{column}' in 17 of 480 cells" in message
    assert "leave these 17 cells out with na_action='drop'" in message


def test_all_missing(refused):
    message = refused(change=missing("Age", 480), na_action="drop")
    assert "No cell is left" in message


def test_na_action(refused):
    assert "na_action is 'raise' or 'drop', not 'omit'" in refused(na_action="omit")


def test_an_empty_library(refused):
    message = refused(change=in_obs("libSize", lambda adata: np.arange(adata.n_obs) // 4 * 1.0))
    assert "'log(libSize)' is infinite in 4 of 480 cells, because 'libSize' is 0 there" in message
    assert "adata = adata[adata.obs['libSize'] > 0]" in message


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("SubID", "D01", ["'SubID' has one level ('D01')", "Leave (1|SubID) out"]),
        ("SubID", lambda adata: adata.obs_names, ["'SubID' has as many levels as there are cells (480)", "donor"]),
        ("Age", 70.0, ["'Age' is constant", "480 cells have the value 70", "Take it out"]),
        ("Dx", pd.Categorical(["AD"] * 480, ["Control", "AD"]), ["'Dx' is constant", "the level 'AD'", "Take it out"]),
    ],
)
def test_nothing_to_estimate(refused, column, values, said):
    message = refused(change=in_obs(column, values))
    assert all(part in message for part in said)


def test_a_term_that_is_constant_in_the_cells_that_are_left(refused):
    def change(adata: ad.AnnData) -> None:
        adata.obs["Age"] = adata.obs["Age"].where(adata.obs["Dx"] == "AD")

    assert "'Dx' is constant: all" in refused(change=change, na_action="drop")


@pytest.mark.parametrize("method", ["reml", "ml"])
def test_no_donor_to_spare(refused, method):
    """As many coefficients of donors as there are donors: no variance between them can be seen."""

    def change(adata: ad.AnnData) -> ad.AnnData:
        return adata[adata.obs["SubID"].isin(["D00", "D01"])].copy()

    message = refused("~ offset(log(libSize)) + Dx + stim + (1|SubID)", change=change, method=method)
    assert message == (
        "No replicate is left to estimate the variance of (1|SubID) from: 'SubID' has 2 levels, and 2 coefficients are "
        "constant within levels ((Intercept), Dx[T.AD]). More levels (donors) are needed, or fewer terms in the "
        "formula."
    )


def test_the_donor_as_a_fixed_and_a_random_effect(refused):
    message = refused("~ offset(log(libSize)) + SubID + (1|SubID)")
    assert "'SubID' has 12 levels, and 12 coefficients are constant within levels" in message


def test_aliased_columns(refused):
    message = refused(FORMULA + " + Age2", change=in_obs("Age2", lambda adata: 2 * adata.obs["Age"] + 1))
    assert "Age2 = (Intercept) + 2 Age" in message
    assert "Take one of Age, Age2 out" in message


# -------------------------------------------------------------------------------------------------------------- formula


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        ("~ Dx + (1|SubID", ["never closed", "~ Dx + (1|SubID\n", "           ^"]),
        ("~ Dx + 1|SubID", ["needs parentheses, as in (1|donor)", "^"]),
        ("~ Dx | SubID", ["needs parentheses", "^"]),
        ("~ Dx + (1|)", ["grouping factor is missing", "^"]),
        ("~ Dx +", ["^"]),
        ("Dx + (1|SubID)", ["begins with '~'", "^"]),
        ("", ["begins with '~'"]),
        ("counts ~ Dx + (1|SubID)", ["left side ('counts')", "start it with '~'"]),
        ("~ libSize**2 + (1|SubID)", ["I(libSize**2)", "^"]),
    ],
)
def test_a_formula_that_cannot_be_read(refused, formula, said):
    message = refused(formula)
    assert all(part in message for part in said)


def test_a_formula_of_another_type(refused):
    assert "must be a string such as '~ Dx + (1|SubID)', not list" in refused(["Dx"], error=TypeError)


# ------------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"mask_var": np.zeros(30, bool)}, ValueError, "mask_var selects no gene"),
        ({"mask_var": np.ones(29, bool)}, ValueError, "each of the 30 genes, and has 29 entries of type bool"),
        (
            {"mask_var": np.arange(30)},
            ValueError,
            "True or False for each of the 30 genes, and has 30 entries of type int",
        ),
        ({"mask_var": ["g1", "g2"]}, ValueError, "mask_var=adata.var_names.isin(names)"),
        ({"mask_var": "test"}, KeyError, "'test' is not a column of `adata.var`; the columns are 'tested'"),
        ({"method": "REML"}, ValueError, "method='REML' is not one of 'reml', 'ml'"),
        ({"varpart_method": "log"}, ValueError, "varpart_method='log' is not one of 'trigamma', 'lognormal', 'delta'"),
        ({"min_cells": -1}, ValueError, "min_cells must be a whole number, 0 or more, not -1"),
        ({"min_cells": 0.5}, ValueError, "not 0.5"),
        ({"n_jobs": 0}, ValueError, "n_jobs must be a whole number other than 0"),
        ({"n_jobs": "2"}, ValueError, "not '2'"),
        ({"key_added": ""}, ValueError, "cannot be ''"),
        ({"key_added": 1}, TypeError, "must be a string, not 1 (int)"),
    ],
)
@pytest.mark.parametrize("copy", [False, True])
def test_arguments(refused, arguments, error, said, copy):
    assert said in refused(error=error, copy=copy, **arguments)


def test_missing_values_in_the_mask(refused):
    def change(adata: ad.AnnData) -> None:
        adata.var["mask"] = pd.array([True] * 28 + [None] * 2, dtype="boolean")

    assert "adata.var['mask'] is missing (NaN) for 2 genes" in refused(change=change, mask_var="mask")


def test_nothing_to_fit(adata, formula):
    with pytest.raises(ValueError, match="0 cells and 30 genes"):
        scglmm.tl.nbmm(adata[:0].copy(), formula)
    with pytest.raises(ValueError, match="480 cells and 0 genes"):
        scglmm.tl.nbmm(adata[:, :0].copy(), formula)
    with pytest.raises(TypeError, match="must be an AnnData, not DataFrame"):
        scglmm.tl.nbmm(adata.obs, formula)


def test_backed(adata, formula, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    try:
        with pytest.raises(ValueError, match=r"copy=True would read a backed AnnData.*adata\.to_memory\(\)"):
            scglmm.tl.nbmm(backed, formula, copy=True)
        with pytest.raises(ValueError, match=r"view of a backed AnnData.*adata\.to_memory\(\)"):
            scglmm.tl.nbmm(backed[:100], formula)
    finally:
        backed.file.close()


# ------------------------------------------------------------------------------------------------ trouble in the middle


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("again", [False, True])
def test_interrupted(adata, fitted, formula, error, n_jobs, again, assert_untouched, monkeypatch):
    """Whatever stops the fits, or the writing at its last step, `adata` is as it was: all tables or none."""
    from scglmm.inference import genes

    target = fitted if again else adata
    before = target.copy()
    fit_gene, calls = genes.fit_gene, []

    def stop(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) > 20:
            raise error
        return fit_gene(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(genes, "fit_gene", stop)
        with pytest.raises(error):
            scglmm.tl.nbmm(target, formula + " + (1|stim:SubID)", n_jobs=n_jobs)
    assert len(calls) > 20
    assert_untouched(target, before)
    scglmm.tl.nbmm(target, formula, n_jobs=n_jobs)
    assert target.uns["nbmm"]["formula"] == formula


def test_interrupted_at_the_end(fitted, assert_untouched, monkeypatch):
    """The tables are complete, but the arrays for scanpy are not."""

    def stop(*args: object, **kwargs: object) -> None:
        raise MemoryError

    before = fitted.copy()
    monkeypatch.setattr("scglmm.results.write.rank_arrays", stop)
    with pytest.raises(MemoryError):
        scglmm.tl.nbmm(fitted, "~ offset(log(libSize)) + Dx + (1|SubID)")
    assert_untouched(fitted, before)


FORMULAIC = {
    "a factor, whose error formulaic wraps": ("PandasMaterializer._lookup", "Age"),
    "a column": ("PandasMaterializer._encode_numerical", "Age"),
    "a coding": ("PandasMaterializer._encode_categorical", "Dx"),
    "the matrix": ("PandasMaterializer._combine_columns", "Age"),
    "a stateful function": ("poly", "poly(Age, 2)"),
    "the arguments of C()": ("Treatment", "C(Dx, Treatment('AD'))"),
}


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, MemoryError, np._core._exceptions._ArrayMemoryError((9,), np.dtype("f8"))]
)
@pytest.mark.parametrize("where", FORMULAIC)
def test_stopped_inside_formulaic(fitted, where, error, assert_untouched, monkeypatch):
    """What stops it is told from a formula that it cannot code, also where formulaic turns it into its own error."""
    from formulaic.materializers import PandasMaterializer

    from scglmm.formula import evaluate

    calls = []

    def stop(*args: object, **kwargs: object) -> None:
        calls.append(1)
        raise error

    place, term = FORMULAIC[where]
    if "." in place:
        monkeypatch.setattr(PandasMaterializer, place.partition(".")[2], stop)
    else:
        monkeypatch.setitem(evaluate._STATEFUL if place == "poly" else evaluate._CODINGS, place, stop)
    before = fitted.copy()
    kind = KeyboardInterrupt if error is KeyboardInterrupt else MemoryError
    for work in (scglmm.tl.nbmm, scglmm.pp.check_design):
        with pytest.raises(kind) as found:
            work(fitted, f"~ offset(log(libSize)) + {term} + (1|SubID)")
        if isinstance(error, MemoryError):
            assert "Unable to allocate" in str(found.value)
    with pytest.raises(kind):
        scglmm.tl.lrt(fitted, f"~ {term} + (1|SubID)")
    assert len(calls) == 3
    assert_untouched(fitted, before)


def test_one_bad_gene_does_not_stop_the_others(adata, formula, fitted, assert_same):
    """A count of 1e12 in one cell, in the middle of the others."""
    X = adata.X.toarray().astype(np.float64)
    X[3, 11] = 1e12
    adata.X = sparse.csr_matrix(X)
    scglmm.tl.nbmm(adata, formula)
    others = [name for name in adata.var_names if name != "g11"]
    assert_same(adata, fitted, genes=others, padj=False, rtol=1e-7)
    assert adata.varm["nbmm_fit"].loc["g11", "status"] in {"ok", "singular", "not_converged"}
