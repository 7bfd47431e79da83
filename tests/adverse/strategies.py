"""Hypothesis strategies for what a user may hand in: AnnData of every make, formulas, options.

An example is made of a few drawn choices and of bulk numbers from a seed, so that it shrinks to what matters. Most
choices are sane most of the time: an example with ten things wrong shows only the first.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from hypothesis import strategies as st
from scipy import sparse

COLUMNS = ("donor", "group", "stim", "x", "z", "size", "a/b", "naïve µ", "batch")
"""Columns of `obs` that formulas are made of."""

ODD_COLUMNS = ("mixed", "when", "log", "nothing", "Donor", "constant", "missing", "twice", "complex")
"""Columns that are no good, or do not exist."""

LEVELS = (
    ("a", "b", "c"),
    ("b", "a", "c"),
    ("T/NK", "B|naïve", "µ-glia:1"),
    ("1", "01", "1.0"),
    ("x y", "", " "),
    ("[T.b]", "Intercept", "(Intercept)"),
    ("a∕b", "a-b", "a∶b"),
    ("None", "nan", "True"),
    ("`", "'", '"'),
)


def rarely(*odd: Any, sane: Any, share: int = 16) -> st.SearchStrategy[Any]:
    """Draw the first, sane choice most of the time; `share` times as often as all others together."""
    sane_ones = sane if isinstance(sane, list) else [sane]
    if not odd:
        return st.sampled_from(sane_ones)
    return st.integers(0, share).flatmap(lambda k: st.sampled_from(odd) if k == share else st.sampled_from(sane_ones))


# ------------------------------------------------------------------------------------------------------- obs columns


def factor(codes: np.ndarray, levels: tuple[str, ...], kind: str) -> Any:
    """Make a column of text, in one of the ways in which pandas holds it."""
    names = np.array(levels, dtype=object)[codes]
    if kind == "category":
        return pd.Categorical(names, categories=list(levels))
    if kind == "unused":
        return pd.Categorical(names, categories=["nobody", *levels, "never/ever"])
    if kind == "ordered":
        return pd.Categorical(names, categories=list(levels)[::-1], ordered=True)
    if kind == "string":
        return pd.array(names, dtype="string")
    if kind == "integers":
        return codes.astype(np.int64)
    if kind == "Int64":
        return pd.array(codes, dtype="Int64")
    if kind == "number categories":
        return pd.Categorical(codes)
    if kind == "bool":
        return codes % 2 == 0
    if kind == "boolean":
        return pd.array(codes % 2 == 0, dtype="boolean")
    if kind == "mixed":
        return pd.Series([int(c) if c % 2 else str(c) for c in codes], dtype=object).to_numpy()
    if kind == "missing":
        return pd.Categorical(np.where(np.arange(codes.size) % 7 == 3, None, names), categories=list(levels))
    return names


FACTORS = ["category", "unused", "ordered", "object", "string", "boolean", "bool", "number categories"]
ODD_FACTORS = ["integers", "Int64", "mixed", "missing"]


def number(values: np.ndarray, kind: str) -> Any:
    """Make a column of numbers, in one of the ways in which pandas holds it."""
    if kind == "float32":
        return values.astype(np.float32)
    if kind == "Float64":
        return pd.array(values, dtype="Float64")
    if kind == "int":
        return np.round(values * 10).astype(np.int64)
    if kind == "uint8":
        return np.abs(np.round(values * 10)).astype(np.uint8)
    if kind == "Int64":
        return pd.array(np.round(values * 10).astype(np.int64), dtype="Int64")
    if kind == "sparse":
        return pd.arrays.SparseArray(np.round(values), fill_value=0.0)
    if kind == "object":
        return values.astype(object)
    if kind == "text":
        return np.array([f"{v:.1f}" for v in values], dtype=object)
    if kind == "missing":
        return np.where(np.arange(values.size) % 5 == 2, np.nan, values)
    if kind == "missing Int64":
        return pd.array([None if i % 5 == 2 else int(v * 10) for i, v in enumerate(values)], dtype="Int64")
    if kind == "infinite":
        return np.where(np.arange(values.size) % 5 == 2, -np.inf, values)
    if kind == "enormous":
        return values * 1e300
    if kind == "tiny":
        return values * 1e-300
    if kind == "far":
        return values + 1e9
    if kind == "constant":
        return np.full(values.size, 3.0)
    return values


NUMBERS = ["float64", "float32", "Float64", "int", "uint8", "Int64", "sparse", "object"]
ODD_NUMBERS = ["text", "missing", "missing Int64", "infinite", "enormous", "tiny", "far", "constant"]


def sizes(values: np.ndarray, kind: str) -> Any:
    """Make a column of library sizes."""
    out = np.exp(values) * 1000
    at = np.arange(values.size) % 6 == 1
    changed = {"zero": 0.0, "negative": -1.0, "infinite": np.inf, "nan": np.nan, "enormous": 1e300, "tiny": 1e-300}
    if kind in changed:
        out[at] = changed[kind]
    elif kind == "wide":
        out = np.exp(12 * values)
    elif kind == "all enormous":
        out = out * 1e200
    elif kind == "all tiny":
        out = out * 1e-200
    elif kind == "one":
        out = np.full(values.size, 1.0)
    elif kind == "int":
        out = np.ceil(out).astype(np.int64)
    elif kind == "float32":
        out = out.astype(np.float32)
    return out


ODD_SIZES = ["zero", "negative", "infinite", "nan", "enormous", "tiny", "wide", "all enormous", "all tiny", "one"]

# ------------------------------------------------------------------------------------------------------------ counts

FORMATS = ["csr", "csc", "dense", "fortran", "csr_array", "csc_array"]
DISORDER = ["none", "zeros", "unsorted", "duplicates", "int64 indices", "all of it"]
DTYPES = ["float32", "float64", "int64", "uint16", "bool"]


def stored(counts: np.ndarray, kind: str, dtype: str, disorder: str, rng: np.random.Generator) -> Any:
    """Store the same counts in another way."""
    with np.errstate(over="ignore"):  # 1e300 in float32 is infinite, which is no count either
        counts = counts.astype(dtype)
    if kind == "dense":
        return counts
    if kind == "fortran":
        return np.asfortranarray(counts)
    make = {"csr": "csr_matrix", "csc": "csc_matrix"}.get(kind, kind)
    X = getattr(sparse, make)(counts)
    everything = disorder == "all of it"
    if everything or disorder in {"zeros", "duplicates"}:
        X = _with_entries(X, disorder, dtype)
    if (everything or disorder == "unsorted") and X.nnz:
        order = np.concatenate([rng.permutation(np.arange(a, b)) for a, b in zip(X.indptr, X.indptr[1:], strict=False)])
        X = type(X)((X.data[order], X.indices[order], X.indptr), shape=X.shape)
    if everything or disorder == "int64 indices":
        X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    return X


def _with_entries(X: Any, disorder: str, dtype: str) -> Any:
    """Write counts above 1 as two entries, and zeros as well."""
    data, indices, indptr = [], [], [0]
    for a, b in zip(X.indptr, X.indptr[1:], strict=False):
        for value, index in zip(X.data[a:b].tolist(), X.indices[a:b].tolist(), strict=True):
            split = disorder != "zeros" and dtype != "bool" and value > 1
            data += [value - 1, 1] if split else [value]
            indices += [index, index] if split else [index]
            if disorder != "duplicates" and dtype != "bool":
                data.append(0)
                indices.append(index)
        indptr.append(len(data))
    arrays = np.array(data, dtype=X.dtype), np.array(indices, np.int32), np.array(indptr, np.int32)
    return type(X)(arrays, shape=X.shape)


@dataclass(frozen=True)
class Bulk:
    """The numbers behind an example."""

    counts: np.ndarray
    donor: np.ndarray
    obs: dict[str, np.ndarray]
    rng: np.random.Generator = field(repr=False)


def simulate(seed: int, n_cells: int, n_genes: int, n_donors: int, *, share: float = 0.0, level: float = 0.0) -> Bulk:
    """Draw counts of a negative binomial mixed model; one donor may have a large share of the cells."""
    rng = np.random.default_rng(seed)
    donor = rng.integers(0, max(n_donors, 1), n_cells)
    donor[rng.random(n_cells) < share] = 0
    group = np.arange(max(n_donors, 1)) % 2
    if n_donors > 6:
        group = np.arange(n_donors) % 3
    stim = rng.integers(0, 2, n_cells)
    x, z, size = (np.round(rng.normal(size=n_cells), 2) for _ in range(3))
    eta = rng.normal(level, 1.0, n_genes) + 0.5 * size[:, None] + rng.normal(0, 0.4, (max(n_donors, 1), n_genes))[donor]
    eta = eta + 0.5 * stim[:, None] * rng.normal(size=n_genes)
    counts = rng.poisson(np.exp(eta) * rng.gamma(2.0, 0.5, eta.shape))
    return Bulk(counts, donor, {"group": group[donor], "stim": stim, "x": x, "z": z, "size": size * 0.5}, rng)


TROUBLE = ("none", "empty gene", "one cell", "one donor", "huge", "huge cell", "empty cells", "all zero", "separated")
NO_COUNTS = ("negative", "fractional", "nan", "infinite", "enormous")


def troubled(bulk: Bulk, trouble: str) -> np.ndarray:
    """Counts with something wrong, or nothing, in the first gene."""
    counts = bulk.counts.astype(np.float64)
    if not counts.size:
        return counts
    if trouble == "empty gene":
        counts[:, 0] = 0
    elif trouble == "one cell":
        counts[:, 0] = 0
        counts[0, 0] = 50
    elif trouble == "one donor":
        counts[bulk.donor != bulk.donor[0], 0] = 0
    elif trouble == "huge":
        counts[:, 0] = np.floor(counts[:, 0] * 1e7)
    elif trouble == "huge cell":
        counts[0, 0] = 1e7
    elif trouble == "empty cells":
        counts[::5] = 0
    elif trouble == "all zero":
        counts[:] = 0
    elif trouble == "separated":
        counts[bulk.obs["group"] == 0, 0] = 0
    elif trouble in NO_COUNTS:
        value = {"negative": -1, "fractional": 0.5, "nan": np.nan, "infinite": np.inf, "enormous": 1e300}[trouble]
        counts[-1, -1] = value
    return counts


# ----------------------------------------------------------------------------------------------------------- AnnData


@st.composite
def adatas(draw: st.DrawFn) -> AnnData:
    """AnnData of every make; most of them can be fitted."""
    n_cells = draw(rarely(0, 1, 2, 5, sane=[24, 40, 60]))
    n_genes = draw(rarely(0, 1, sane=[2, 3]))
    n_donors = draw(rarely(1, 2, sane=[5, 8]))
    bulk = simulate(draw(st.integers(0, 2**16)), n_cells, n_genes, n_donors, share=draw(rarely(0.9, sane=0.0)))
    counts = troubled(bulk, draw(rarely(*TROUBLE[1:], *NO_COUNTS, sane="none", share=2)))
    dtype = draw(st.sampled_from(DTYPES))
    if (
        not np.isfinite(counts).all()
        or (counts % 1).any()
        or counts.min(initial=0) < 0
        or counts.max(initial=0) > 60_000
    ):
        dtype = draw(st.sampled_from(["float32", "float64"]))
    if dtype == "bool":
        counts = np.minimum(counts, 1)
    X = stored(counts, draw(st.sampled_from(FORMATS)), dtype, draw(st.sampled_from(DISORDER)), bulk.rng)
    levels = draw(rarely(*LEVELS[1:], sane=LEVELS[0], share=1))
    slash = "D/" * draw(st.booleans())
    donors = tuple(f"{slash}{i}µ" for i in range(max(n_donors, 1)))
    columns = {
        "donor": factor(bulk.donor, donors, draw(rarely(*ODD_FACTORS, sane=FACTORS[:5]))),
        "group": factor(bulk.obs["group"], levels, draw(rarely(*ODD_FACTORS, sane=FACTORS))),
        "stim": factor(bulk.obs["stim"], levels, draw(rarely(*ODD_FACTORS, sane=FACTORS))),
        "x": number(bulk.obs["x"], draw(rarely(*ODD_NUMBERS, sane=NUMBERS))),
        "z": number(bulk.obs["z"], draw(rarely(*ODD_NUMBERS, sane=NUMBERS))),
        "size": sizes(bulk.obs["size"], draw(rarely(*ODD_SIZES, sane=["float", "int", "float32"]))),
        "a/b": bulk.obs["z"] > 0,
        "naïve µ": bulk.obs["x"] ** 2,
        "batch": factor(bulk.rng.integers(0, 3, n_cells), levels, draw(rarely(*ODD_FACTORS, sane=FACTORS))),
        "mixed": pd.Series([(1, "a", None, 2.5)[i % 4] for i in range(n_cells)], dtype=object).to_numpy(),
        "when": pd.date_range("2020-01-01", periods=n_cells),
        "complex": bulk.obs["x"] + 1j,
        "constant": np.full(n_cells, "same", dtype=object),
        "missing": np.full(n_cells, np.nan),
    }
    if draw(rarely(True, sane=False)):
        columns["log"] = bulk.obs["x"]
    obs = pd.DataFrame(columns, index=[f"c{i}" for i in range(n_cells)])
    view = draw(rarely(True, sane=False))
    if not view and draw(rarely(True, sane=False)):  # anndata cannot take views of such
        obs["twice"] = 1.0
        obs = pd.concat([obs, obs[["twice"]]], axis=1)
    cells, genes = obs.index.to_numpy(dtype=object), np.array([f"g/{i}|µ" for i in range(n_genes)], dtype=object)
    if draw(rarely(True, sane=False)):
        cells[:] = "c"
    if draw(rarely(True, sane=False)):
        genes[:] = "g"
    obs.index = pd.Index(cells, dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = AnnData(
            X, obs=obs, var=pd.DataFrame({"some": np.arange(n_genes) % 2 == 0}, index=pd.Index(genes, dtype=object))
        )
        adata.uns["note"] = {"kept": np.arange(3)}
        if draw(rarely(True, sane=False)):
            adata.layers["counts"] = adata.X.copy()
        if draw(rarely(True, sane=False)):
            adata.raw = adata.copy()
        if view and n_cells and n_genes:
            adata = adata[::-1, ::-1]
    return adata


# ---------------------------------------------------------------------------------------------------------- formulas


def spell(column: str) -> str:
    """Spelling of a column in a formula."""
    return column if column.isidentifier() and column.isascii() else f"`{column}`"


numbers_of = st.sampled_from(["x", "z", "naïve µ", "size"]).map(spell)
factors_of = st.sampled_from(["group", "stim", "a/b", "batch"]).map(spell)
anything = rarely(*ODD_COLUMNS, sane=list(COLUMNS), share=6).map(spell)
groups_of = rarely(*COLUMNS[1:], *ODD_COLUMNS, sane="donor", share=5).map(spell)

_WRAPPED = [
    "log({n})", "np.log1p(size)", "sqrt(size)", "exp({n})", "I({n}**2)", "I({n} > 0)", "I({n} / 3 - 1)", "scale({n})",
    "center({n})", "standardize({n})", "poly({n}, 2)", "bs({n}, df=4)", "cs({n}, df=3)", "cr({n}, df=3)",
    "cc({n}, df=3)", "C({f})", "C({f}, Sum)", "C({f}, Helmert)", "C({f}, Poly)", "C({f}, Diff)",
    "C({f}, contr.treatment('b'))",
    "C({f}, Treatment('b'))", "C({f}, Treatment(1))", "C({f}, levels=['b', 'a', 'c'])", "Q('x')", 'I({f} == "a")',
    "I(({n} > 0) * ({n} < 1))", "log({f})", "I({n} // 0)", "I({n} % 0.3)", "I({n} ** {n})", "exp(exp(exp({n})))",
    "bs({n}, df=40)", "poly({n}, 30)", "scale({f})", "C({n})", "C(donor, Poly)",
]  # fmt: skip


@st.composite
def terms(draw: st.DrawFn) -> str:
    """One fixed term."""
    kind = draw(st.integers(0, 9))
    if kind < 3:
        return draw(factors_of)
    if kind < 5:
        return draw(numbers_of)
    if kind < 7:
        return draw(st.sampled_from(_WRAPPED)).format(n=draw(numbers_of), f=draw(factors_of))
    if kind == 7:
        return draw(anything)
    operator = draw(st.sampled_from([":", "*", "/"]))
    return f"{draw(terms())} {operator} {draw(terms())}"


@st.composite
def random_terms(draw: st.DrawFn) -> str:
    """One random term."""
    effect = draw(rarely("{x}", "0 + {x}", "{x} + {y}", "0", "", "1 + log(size)", sane="1", share=3))
    effect = effect.format(x=draw(st.one_of(factors_of, numbers_of)), y=draw(anything))
    bar = draw(rarely("||", sane="|"))
    group = draw(groups_of)
    group += draw(rarely(":", "/", "*", sane="").map(lambda op: op and f"{op}{draw(anything)}"))
    return f"({effect}{bar}{group})"


@st.composite
def formulas(draw: st.DrawFn) -> str:
    """Formulas of the grammar; columns may be bad, or not there."""
    pieces = draw(st.lists(terms(), max_size=3))
    pieces += draw(rarely([], ["offset(log(`naïve µ`))"], ["offset({})"], sane=[["offset(log(size))"]], share=3))
    pieces = [piece.format(draw(anything)) if piece == "offset({})" else piece for piece in pieces]
    pieces += [draw(random_terms()) for _ in range(draw(rarely(0, 2, 3, sane=1, share=4)))]
    head = draw(rarely("0", "-1", "1", "y", ".", sane=""))
    left = draw(rarely("y", "log(x)", "", sane=None, share=20))
    body = " + ".join([head, *pieces] if head else pieces) or "1"
    return f"{'' if left is None else left} ~ {body}".strip()


PIECES = [*"ab01~+-*/:^|()., '\"`\\[]{}=<>µ∕", "offset(", "log(", "**", "||", "(1|donor)", "~", "x", "group", "donor",
          "np.", "C(", "bs(", "I(", "1e999", "0x1", "\n", "\x00", "lambda", "__", "%", "size"]  # fmt: skip
garbage = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=25).map(lambda pieces: "~ " + "".join(pieces)),
    st.text(max_size=20),
    st.text(max_size=20).map(lambda text: f"~ group + {text} + (1|donor)"),
)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A formula of the grammar with some characters changed."""
    text = list(draw(formulas()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        how = draw(st.integers(0, 2))
        if how < 2 and at < len(text):
            del text[at]
        if how > 0:
            text.insert(at, draw(st.sampled_from(PIECES)))
    return "".join(text)


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `scglmm.tl.nbmm`."""
    found = {
        "method": draw(rarely("REML", None, sane=["reml", "ml"], share=20)),
        "min_cells": draw(rarely(-1, 10, 1.5, 10**9, sane=[0, 1, 3], share=20)),
        "na_action": draw(rarely("ignore", sane=["raise", "drop"], share=20)),
        "family": draw(rarely("gaussian", "poisson", sane="nbinom2", share=5)),
        "ziformula": draw(rarely("~ 1", "~ x", "~ group", "~ (1|donor)", "nonsense", sane=None, share=8)),
        "groupby": draw(rarely("batch", "group", "a/b", "x", "when", "nothing", "mixed", "donor", sane=None, share=5)),
        "min_donors": draw(rarely(0, 100, sane=2, share=20)),
        "moderate": draw(rarely(True, "yes", sane=[None, False], share=10)),
        "layer": draw(rarely("counts", "Counts", sane=None, share=12)),
        "use_raw": draw(rarely(True, sane=False, share=20)),
        "mask_var": draw(rarely("some", "none", [True], sane=None, share=15)),
        "varpart_method": draw(rarely("delta", "lognormal", "best", sane="trigamma", share=10)),
        "key_added": draw(rarely("a/b", "µ", "", ".", "nbmm_fit", sane="nbmm", share=15)),
        "n_quad": draw(rarely(3, 0, 2.5, sane=1, share=15)),
        "padj_across": draw(rarely(True, sane=False, share=10)),
    }
    defaults = {"na_action": "raise", "family": "nbinom2", "method": "reml", "moderate": None}
    return {name: value for name, value in found.items() if name not in defaults or defaults[name] != value}


# ------------------------------------------------------------------------------------------------------- sane models

MODELS = (
    "~ offset(log(size)) + group + (1|donor)",
    "~ offset(log(size)) + group + stim + x + (1|donor)",
    "~ offset(log(size)) + group * stim + (1|donor)",
    "~ offset(log(size)) + stim + (1|donor) + (1|donor:stim)",
    "~ offset(log(size)) + stim + (stim|donor)",
    "~ offset(log(size)) + group + (1|donor) + (1|batch)",
    "~ offset(log(size)) + group + x",
)


@dataclass(frozen=True)
class Sane:
    """Data that can be fitted, and a model."""

    bulk: Bulk
    formula: str
    how: dict[str, Any]

    def adata(self, X: Any = None) -> AnnData:
        """Plain AnnData: CSR, float32, categories."""
        bulk, n = self.bulk, self.bulk.counts.shape[0]
        levels = ("a", "b", "c")
        obs = pd.DataFrame(
            {
                "donor": pd.Categorical([f"D{i}" for i in bulk.donor]),
                "group": factor(bulk.obs["group"], levels[: 1 + bulk.obs["group"].max()], "category"),
                "stim": factor(bulk.obs["stim"], levels[:2], "category"),
                "x": bulk.obs["x"],
                "size": sizes(bulk.obs["size"], "float"),
                "batch": factor(np.arange(n) * 7 % 3, levels, "category"),
            },
            index=[f"c{i}" for i in range(n)],
        )
        n_genes = bulk.counts.shape[1]
        var = pd.DataFrame({"some": np.arange(n_genes) % 2 == 0}, index=[f"g{i}" for i in range(n_genes)])
        X = sparse.csr_matrix(bulk.counts.astype(np.float32)) if X is None else X
        return AnnData(X, obs=obs, var=var)


@st.composite
def sane(draw: st.DrawFn, models: tuple[str, ...] = MODELS) -> Sane:
    """Data that can be fitted, and a model."""
    bulk = simulate(
        draw(st.integers(0, 2**16)),
        draw(st.sampled_from([80, 120, 200])),
        draw(st.sampled_from([1, 3])),
        draw(st.sampled_from([6, 8, 12])),
        share=draw(rarely(0.5, sane=0.0)),
        level=draw(st.sampled_from([-1.0, 0.0, 1.5])),
    )
    how = {"method": draw(st.sampled_from(["reml", "ml"])), "family": draw(rarely("poisson", sane="nbinom2"))}
    return Sane(bulk, draw(st.sampled_from(models)), how | {"min_cells": 1})
