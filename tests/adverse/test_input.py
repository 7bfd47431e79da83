"""Whatever comes in: an answer, or an error of ours that leaves `adata` as it was."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from conduct import assert_same_fingerprint, attempt, few_or_many, fingerprint
from hypothesis import event, given
from hypothesis import strategies as st
from strategies import adatas, damaged, formulas, garbage, options, rarely

import scglmm
from scglmm.formula import build_design, parse_formula
from scglmm.results.table import STATUSES

FEW = 24
MANY = pytest.param(2_000, marks=pytest.mark.long)
AGAIN = pytest.param(500, marks=pytest.mark.long)  # of strategies that `test_any_data` has 2,000 examples of


def check_result(adata: AnnData, key: str) -> None:
    """Whether what was written is what is promised."""
    table = adata.varm[f"{key}_fit"]
    for name in [c for c in table.columns if c.split("|")[-1] == "status"]:
        assert set(table[name].astype(str)) <= set(STATUSES)
    for suffix in ("pval", "padj"):
        values = adata.varm[f"{key}_{suffix}"].to_numpy()
        assert ((values >= 0) & (values <= 1) | np.isnan(values)).all()
    se, coef = (adata.varm[f"{key}_{suffix}"].to_numpy() for suffix in ("se", "coef"))
    assert not (se <= 0).any()
    assert not np.isinf(coef).any()
    assert not np.isinf(se).any()
    shares = adata.varm[f"{key}_varpart"]
    if shares.shape[1]:
        known = shares.to_numpy()
        assert ((known >= -1e-12) & (known <= 1 + 1e-12) | np.isnan(known)).all()
    assert len(scglmm.get.nbmm_df(adata, key=key, wide=True)) == adata.n_vars


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_any_data(examples: int):
    """`tl.nbmm` on any AnnData, with any formula of the grammar and any arguments."""

    @few_or_many(examples)
    @given(adatas(), formulas(), options())
    def check(adata: AnnData, formula: str, how: dict[str, Any]) -> None:
        how = dict(how)
        if isinstance(how["mask_var"], str) and how["mask_var"] == "none":
            how["mask_var"] = np.zeros(adata.n_vars, bool)
        with warnings.catch_warnings():
            # The copy is made here, and anndata says again what the strategy has heard.
            warnings.filterwarnings("ignore", message=r"\w+ names are not unique", category=UserWarning)
            before = fingerprint(adata.copy() if adata.is_view else adata)  # a view becomes an object of its own
        _, error = attempt(lambda: scglmm.tl.nbmm(adata, formula, **how), adata)
        if error is not None:
            event(f"refused: {type(error).__name__}")
            return
        event("fitted")
        key = how["key_added"].replace("/", "∕")
        check_result(adata, key)
        after = fingerprint(adata)
        kept = {place: value for place, value in after.items() if f"{key}_" not in place and f"[{key!r}]" not in place}
        for place in ("adata", "adata.varm", "adata.uns"):  # they hold more now
            kept.pop(place), before.pop(place)
        assert_same_fingerprint(kept, before)

    check()


@pytest.mark.parametrize("examples", [FEW, AGAIN])
def test_any_design(examples: int):
    """`pp.check_design` on the same; it never writes."""

    @few_or_many(examples)
    @given(adatas(), formulas(), st.sampled_from(["advice", "terms", "levels", "groups"]))
    def check(adata: AnnData, formula: str, table: str) -> None:
        before = fingerprint(adata)
        attempt(lambda: scglmm.pp.check_design(adata, formula, table=table))
        assert_same_fingerprint(fingerprint(adata), before)

    check()


@pytest.mark.parametrize("examples", [3 * FEW, MANY])
@pytest.mark.parametrize("strategy", [garbage, damaged()], ids=["garbage", "damaged"])
def test_any_text(strategy: st.SearchStrategy[str], examples: int):
    """Text that is no formula, or nearly one."""
    obs = simple().obs

    @few_or_many(examples)
    @given(strategy)
    def check(text: str) -> None:
        design, error = attempt(lambda: build_design(parse_formula(text), obs))
        event("refused" if error is not None else "read")
        if error is None:
            assert np.isfinite(design.X).all()
            assert np.linalg.matrix_rank(design.X / np.abs(design.X).max(axis=0)) <= len(design.columns)

    check()


@pytest.mark.parametrize("examples", [FEW, AGAIN])
def test_any_gene_as_one_response(examples: int):
    """`scglmm.glmm` on a gene of any AnnData."""

    @few_or_many(examples)
    @given(adatas(), formulas(), st.sampled_from(["nbinom2", "poisson", "gaussian"]), st.booleans())
    def check(adata: AnnData, formula: str, family: str, first: bool) -> None:
        gene = str(adata.var_names[0 if first else -1]) if adata.n_vars else "g"
        text = f"`{gene}` {formula[formula.index('~') :]}"
        before = fingerprint(adata)
        fit, error = attempt(lambda: scglmm.glmm(text, adata, family=family))
        assert_same_fingerprint(fingerprint(adata), before)
        event("refused" if error is not None else fit.status)
        if error is None:
            attempt(lambda: str(fit))

    check()


# ------------------------------------------------------------------------------------------------- what follows a fit


def simple() -> AnnData:
    """Data that can be fitted."""
    from strategies import Sane, simulate

    return Sane(simulate(3, 120, 4, 8), "", {}).adata()


@pytest.fixture(scope="module")
def fitted() -> AnnData:
    """A result, and one by groups."""
    adata = simple()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        scglmm.tl.nbmm(adata, "~ offset(log(size)) + group * stim + x + (1|donor)", min_cells=1)
        scglmm.tl.nbmm(adata, "~ offset(log(size)) + stim + (1|donor)", groupby="batch", key_added="by", min_cells=1)
    return adata


WORDS = ["group", "group[T.b]", "group[T.c]", "stim[T.b]", "x", "(Intercept)", "group[T.b]:stim[T.b]", "nothing", "`x`"]
WORDS += [*"+-*/()=,", "2", "0.5", "1e999", " ", "−", "µ", "`", "(1|donor)", "0"]
GOOD = ["group[T.b]", "group[T.c]", "stim[T.b]", "x", "group[T.b]:stim[T.b]", "group[T.c]:stim[T.b]"]
linear = st.lists(
    st.tuples(st.sampled_from(["+", "-", "+ 2 *", "- 0.5 *", "+ (", "- -"]), st.sampled_from(GOOD)),
    min_size=1,
    max_size=4,
).map(lambda parts: " ".join(f"{sign} {name}{')' if '(' in sign else ''}" for sign, name in parts))
combinations = st.one_of(
    linear,
    linear,
    st.sampled_from(["group", "stim", *GOOD]),
    st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join),
)
single = st.one_of(
    combinations,
    st.text(max_size=10),
    st.lists(st.one_of(st.integers(-2, 2), st.floats(), st.booleans()), max_size=9),
    st.dictionaries(
        st.sampled_from(WORDS), st.one_of(st.integers(-3, 3), st.floats(), st.text(max_size=2)), max_size=3
    ),
    st.one_of(st.none(), st.integers(), st.booleans()),
)
contrasts = st.one_of(
    combinations,
    st.dictionaries(
        st.one_of(st.text(max_size=5), st.just("(Intercept)")),
        st.one_of(single, st.lists(single, max_size=3)),
        max_size=3,
    ),
    single,
)
names = st.one_of(st.sampled_from(WORDS), st.text(max_size=5), st.none(), st.lists(st.sampled_from(WORDS), max_size=3))
keys = rarely("by", "nothing", "", "nbmm_contrast", sane="nbmm", share=3)


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_any_contrast(fitted: AnnData, examples: int):
    @few_or_many(examples)
    @given(contrasts, keys, st.sampled_from([None, "nbmm", "c/d", "."]))
    def check(wanted: Any, key: str, key_added: str | None) -> None:
        adata = fitted.copy()
        _, error = attempt(lambda: scglmm.tl.contrast(adata, wanted, key=key, key_added=key_added), adata)
        event("refused" if error is not None else "tested")

    check()


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_any_arguments_after_a_fit(fitted: AnnData, examples: int):
    """`tl.shrink`, `lrt`, `varpart`, `refresh`, `diagnose` and the getters."""

    @few_or_many(examples)
    @given(
        st.sampled_from(
            ["shrink", "lrt", "varpart", "refresh", "diagnose", "nbmm_df", "joint_df", "shrunken_df", "stat_matrix"]
        ),
        keys,
        names,
        names,
        st.one_of(formulas(), damaged()),
        st.one_of(st.floats(), st.integers(-2, 20), st.none(), st.booleans()),
    )
    def check(what: str, key: str, coef: Any, group: Any, formula: str, weight: Any) -> None:
        adata = fitted.copy()
        calls = {
            "shrink": lambda: scglmm.tl.shrink(adata, coef, key=key, group=group, null_weight=weight),
            "lrt": lambda: scglmm.tl.lrt(adata, formula, key=key),
            "varpart": lambda: scglmm.tl.varpart(adata, key=key, method=coef),
            "diagnose": lambda: scglmm.tl.diagnose(
                adata, key=key, coef=coef, alpha=0.3 if weight is None else weight, mask_var=group and "some"
            ),
            "refresh": lambda: scglmm.tl.refresh(adata, key=key),
            "nbmm_df": lambda: scglmm.get.nbmm_df(adata, coef, key=key, group=group, sort_by="pval"),
            "joint_df": lambda: scglmm.get.joint_df(adata, coef, key=key, group=group),
            "shrunken_df": lambda: scglmm.get.shrunken_df(adata, coef, key=key, group=group),
            "stat_matrix": lambda: scglmm.get.stat_matrix(adata, key=key),
        }
        _, error = attempt(calls[what], adata)
        event(f"{what}: {'refused' if error is not None else 'done'}")

    check()
