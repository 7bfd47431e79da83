"""The rows of a model: one response, its design and that of the zero inflation, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scglmm.formula import (
    Design,
    DesignError,
    Formula,
    build_design,
    evaluate_response,
    formula_columns,
    parse_formula,
    parse_inflation,
)
from scglmm.formula.columns import get_column, in_memory, rows_without_missing
from scglmm.formula.lexer import quoted
from scglmm.formula.safety import parse_expression
from scglmm.results.names import near_first

from ._wording import worded

if TYPE_CHECKING:
    from anndata import AnnData

FAMILIES = ("gaussian", "poisson", "nbinom2")
COUNTS = ("poisson", "nbinom2")


@dataclass(frozen=True, eq=False)
class ModelData:
    """One response with its designs, on the rows in use.

    Attributes
    ----------
    frame
        The columns that the formulas use, one row per observation, with the user's index.
    response
        The left side of the formula.
    y
        (n,) float64.
    design
        Of the conditional mean.
    zi_design
        Of the probability of a structural zero (logit link), None without zero inflation.
    dropped
        Rows that were left out because of missing values.
    gene
        Whether the response is a gene of an AnnData.
    """

    frame: pd.DataFrame
    response: str
    y: np.ndarray
    design: Design
    zi_design: Design | None
    dropped: int
    gene: bool

    @property
    def formula(self) -> Formula:
        """The formula of the conditional mean."""
        return self.design.formula

    @property
    def n(self) -> int:
        """Number of observations."""
        return self.y.size


def prepare(
    formula: str,
    data: pd.DataFrame | AnnData | Mapping[str, Any],
    ziformula: str | None,
    *,
    layer: str | None = None,
    use_raw: bool = False,
    na_action: str = "raise",
) -> ModelData:
    """Read the formulas and code them on the data.

    Raises
    ------
    ValueError, KeyError, TypeError
        See :func:`scglmm.glmm`.
    """
    frame, genes = _frame_and_genes(data, layer, use_raw)
    with worded(plain=genes is None):
        names = [str(name) for name in frame.columns] + ([] if genes is None else list(genes.names))
        parsed = parse_formula(_with_quoted_response(formula, names))
        if parsed.response is None:
            msg = f"The formula {formula!r} has no left side: name the response, as in 'y {formula.strip()}'."
            raise ValueError(msg)
        frame, is_gene = _add_gene(frame, parsed.response, genes)
        zi = parse_inflation(ziformula)
        response_columns = parse_expression(parsed.response).columns
        needed = dict.fromkeys([*response_columns, *formula_columns(parsed), *(formula_columns(zi) if zi else ())])
        raw = {name: get_column(frame, name) for name in needed}
        if len(frame) == 0:
            msg = "The data have no rows: there is nothing to fit."
            raise DesignError(msg)
        kept = rows_without_missing(raw, len(frame), na_action)
        used = pd.DataFrame({name: column[kept] for name, column in raw.items()}, index=frame.index[kept])
        y = evaluate_response(parsed.response, used)
        _check_finite(y, parsed.response)
        design = build_design(parsed, used)
        _check_response_not_used(parsed.response, response_columns, formula_columns(parsed))
        zi_design = None if zi is None else build_design(zi, used)
        _check_sizes(design)
    return ModelData(used, parsed.response, y, design, zi_design, int((~kept).sum()), is_gene)


def check_response(y: np.ndarray, response: str, family: str) -> None:
    """Check that the family can have made the response.

    Raises
    ------
    ValueError
        It is the same everywhere, or no counts where counts are needed.
    """
    if family in COUNTS:
        negative, fractional = y < 0, y != np.round(y)
        if negative.any():
            msg = (
                f"The response {response!r} is negative in {int(negative.sum()):,} of {y.size:,} rows (smallest "
                f"{y.min():g}), and family={family!r} is for counts: 0, 1, 2, ... Use family='gaussian' for "
                "measurements."
            )
            raise ValueError(msg)
        if fractional.any():
            msg = (
                f"The response {response!r} is fractional in {int(fractional.sum()):,} of {y.size:,} rows (for "
                f"instance {y[fractional][0]:g}), and family={family!r} is for counts: 0, 1, 2, ... Use the raw counts "
                "and put what they were divided by into the formula as offset(log(...)); use family='gaussian' for "
                "measurements."
            )
            raise ValueError(msg)
        if not y.any():
            msg = f"The response {response!r} is 0 in all {y.size:,} rows: there is nothing to fit."
            raise ValueError(msg)
    elif y.min() == y.max():
        msg = f"The response {response!r} is {y[0]:g} in all {y.size:,} rows: there is no variance to explain."
        raise ValueError(msg)


@dataclass(frozen=True, eq=False)
class _Genes:
    """Where the counts of a gene are."""

    adata: AnnData
    layer: str | None
    use_raw: bool

    @property
    def names(self) -> pd.Index:
        return self.adata.raw.var_names if self.use_raw else self.adata.var_names

    def counts(self, name: str) -> np.ndarray:
        """Column of the matrix, dense."""
        places = np.flatnonzero(self.names == name)
        if places.size > 1:
            msg = f"{places.size} genes are named {name!r}: make the names unique (adata.var_names_make_unique())."
            raise ValueError(msg)
        if self.use_raw:
            matrix = self.adata.raw.X
        else:
            matrix = self.adata.X if self.layer is None else self.adata.layers[self.layer]
        column = matrix[:, [int(places[0])]]
        if hasattr(column, "compute"):
            column = column.compute()
        column = column.toarray() if hasattr(column, "toarray") else np.asarray(column)
        return np.ravel(column).astype(np.float64)


def _frame_and_genes(data: Any, layer: str | None, use_raw: bool) -> tuple[pd.DataFrame, _Genes | None]:
    from anndata import AnnData

    if isinstance(data, AnnData):
        if use_raw and layer is not None:
            msg = f"layer={layer!r} and use_raw=True name two places for the counts: choose one."
            raise ValueError(msg)
        if use_raw and data.raw is None:
            msg = "use_raw=True, and `adata.raw` is not set."
            raise ValueError(msg)
        if layer is not None and layer not in data.layers:
            listed = near_first(layer, [name for name in data.layers if name is not None]) or "(none)"
            msg = f"layer={layer!r} is not a layer of `adata`; the layers are {listed}."
            raise KeyError(msg)
        if layer is None and not use_raw and data.X is None:
            msg = "`adata.X` is not set: say where the counts are with layer= or use_raw=True."
            raise ValueError(msg)
        return in_memory(data.obs), _Genes(data, layer, use_raw)
    if layer is not None or use_raw:
        msg = "layer= and use_raw= say where an AnnData keeps the counts; the data are a data frame."
        raise ValueError(msg)
    if isinstance(data, pd.DataFrame):
        return data, None
    if isinstance(data, Mapping):
        return pd.DataFrame(dict(data)), None
    hint = " Convert it with data.to_pandas()." if hasattr(data, "to_pandas") else ""
    msg = f"data must be a pandas DataFrame or an AnnData, not {type(data).__name__}.{hint}"
    raise TypeError(msg)


def _with_quoted_response(formula: Any, names: list[str]) -> Any:
    """Put a response such as HLA-DRA into backticks, if it is the name of a column or gene as it stands."""
    if not isinstance(formula, str):
        return formula
    left, tilde, right = formula.partition("~")
    name = left.strip()
    if not tilde or name not in names or "`" in name or quoted(name) == name:
        return formula
    return f"`{name}` ~{right}"


def _add_gene(frame: pd.DataFrame, response: str, genes: _Genes | None) -> tuple[pd.DataFrame, bool]:
    """Add the counts of the genes in the response to obs."""
    if genes is None:
        return frame, False
    columns = parse_expression(response).columns
    found = [name for name in columns if name in genes.names]
    both = [name for name in found if name in frame.columns]
    if both:
        msg = f"{both[0]!r} is a gene and a column of `adata.obs` as well: rename the column of obs."
        raise ValueError(msg)
    for name in columns:
        if name not in frame.columns and name not in genes.names:
            near = near_first(name, [*map(str, frame.columns), *map(str, genes.names)], 5)
            msg = f"The response {name!r} is neither a gene nor a column of `adata.obs`; near names are {near}."
            raise KeyError(msg)
    if not found:
        return frame, False
    return frame.assign(**{name: genes.counts(name) for name in found}), True


def _check_finite(y: np.ndarray, response: str) -> None:
    bad = ~np.isfinite(y)
    if bad.any():
        msg = (
            f"The response {response!r} is infinite or undefined in {int(bad.sum()):,} of {y.size:,} rows. Correct "
            "these values or leave the rows out."
        )
        raise ValueError(msg)


def _check_response_not_used(response: str, columns: tuple[str, ...], used: tuple[str, ...]) -> None:
    both = [name for name in columns if name in used]
    if both:
        msg = f"{both[0]!r} stands on both sides of '~': the response {response!r} cannot explain itself."
        raise ValueError(msg)


def _check_sizes(design: Design) -> None:
    """Check that no random term has as many effects as there are observations."""
    n = design.X.shape[0]
    for term, random in zip(design.formula.random, design.random, strict=True):
        effects = len(random.levels) * len(random.columns)
        if effects >= n:
            msg = (
                f"{term} stands for {effects:,} random effects ({len(random.levels):,} levels of {random.group!r}, "
                f"{len(random.columns)} effects each), and there are only {n:,} observations: they cannot be told from "
                f"the residual. Take effects out of the term, as in (1|{term.group}), or group by another column."
            )
            raise DesignError(msg)
