"""Arguments of `scglmm.tl.nbmm`, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scglmm.formula import Design, Formula, parse_formula, parse_inflation
from scglmm.formula.columns import in_memory
from scglmm.inference.quadrature import MAX_QUAD
from scglmm.inference.varpart import METHODS as VARPART_METHODS
from scglmm.results.names import near_first

from ._memory import parse_memory

if TYPE_CHECKING:
    from anndata import AnnData

    from ._counts import Source

METHODS = ("reml", "ml")
FAMILIES = ("nbinom2", "poisson")


@dataclass(frozen=True)
class RunOptions:
    """What a run was asked for, besides the formula and the cells."""

    layer: str | None = None
    use_raw: bool = False
    groupby: str | None = None
    padj_across: bool = False
    min_donors: int = 3
    method: str = "reml"
    min_cells: int = 10
    na_action: str = "raise"
    varpart_method: str = "trigamma"
    moderate: bool | None = None
    family: str = "nbinom2"
    ziformula: str | None = None
    n_quad: int = 1
    max_memory: float | str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the model is the negative binomial by Laplace's approximation, without zero inflation."""
        return self.family == "nbinom2" and self.inflation is None and self.n_quad == 1

    @property
    def inflation(self) -> Formula | None:
        """The formula of the zero inflation, parsed."""
        return parse_inflation(self.ziformula)


def check_arguments(adata: Any, formula: Any, options: RunOptions, n_jobs: int | None, copy: bool) -> None:
    """Check what can be checked without looking at the data.

    Raises
    ------
    TypeError
        `adata` is no AnnData or `formula` no string.
    ValueError
        An argument has a value that it cannot have, or `adata` is empty.
    """
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        msg = f"The first argument must be an AnnData, not {type(adata).__name__}."
        raise TypeError(msg)
    if not isinstance(formula, str):
        msg = f"The formula must be a string such as '~ Dx + (1|SubID)', not {type(formula).__name__}."
        raise TypeError(msg)
    if options.family == "gaussian":
        msg = (
            "family='gaussian' is no model of counts, which is what genes have here: use 'nbinom2' or 'poisson'. "
            "`scglmm.glmm` fits Gaussian models to one response."
        )
        raise ValueError(msg)
    for name, value, valid in (
        ("family", options.family, FAMILIES),
        ("method", options.method, METHODS),
        ("varpart_method", options.varpart_method, VARPART_METHODS),
    ):
        if value not in valid:
            msg = f"{name}={value!r} is not one of {', '.join(map(repr, valid))}."
            raise ValueError(msg)
    _check_inflation_and_quadrature(options)
    parse_memory(options.max_memory)
    for name, number in (("min_cells", options.min_cells), ("min_donors", options.min_donors)):
        if not isinstance(number, int | np.integer) or number < 0:
            msg = f"{name} must be a whole number, 0 or more, not {number!r}."
            raise ValueError(msg)
    if options.moderate not in (True, False, None):
        msg = f"moderate must be True, False or None (wherever it can be done), not {options.moderate!r}."
        raise ValueError(msg)
    if options.moderate and options.method == "ml":
        msg = "method='ml' is never moderated: use method='reml' (the default), or leave moderate out."
        raise ValueError(msg)
    if options.padj_across and options.groupby is None:
        msg = "padj_across=True adjusts p-values across groups of cells: name their column with groupby=."
        raise ValueError(msg)
    if n_jobs is not None and (not isinstance(n_jobs, int | np.integer) or n_jobs == 0):
        msg = f"n_jobs must be a whole number other than 0 (-1 for all processors) or None, not {n_jobs!r}."
        raise ValueError(msg)
    if adata.n_obs == 0 or adata.n_vars == 0:
        msg = f"`adata` has {adata.n_obs} cells and {adata.n_vars} genes: there is nothing to fit."
        raise ValueError(msg)
    if copy and adata.isbacked:
        msg = (
            "copy=True would read a backed AnnData into memory: write into it (copy=False), or use `adata.to_memory()`."
        )
        raise ValueError(msg)


def _check_inflation_and_quadrature(options: RunOptions) -> None:
    if options.ziformula is not None and not isinstance(options.ziformula, str):
        msg = f"ziformula must be a string such as '~ 1', or None, not {type(options.ziformula).__name__}."
        raise TypeError(msg)
    parse_inflation(options.ziformula)
    n_quad = options.n_quad
    if isinstance(n_quad, bool) or not isinstance(n_quad, int | np.integer) or not 1 <= n_quad <= MAX_QUAD:
        msg = f"n_quad must be a whole number from 1 (Laplace) to {MAX_QUAD}, not {n_quad!r}."
        raise ValueError(msg)
    if n_quad > 1 and options.method != "ml":
        msg = (
            f"n_quad={n_quad} goes with maximum likelihood only: use method='ml', or n_quad=1 (Laplace, the default) "
            "with method='reml'."
        )
        raise ValueError(msg)


def check_quadrature(design: Design, n_quad: int) -> None:
    """Check that the random effects are such that quadrature can be done.

    Raises
    ------
    ValueError
        There is not one random term with one column.
    """
    random = design.random
    if n_quad == 1 or (len(random) == 1 and len(random[0].columns) == 1):
        return
    terms = " + ".join(map(str, design.formula.random)) or "none"
    msg = (
        f"n_quad={n_quad} needs one random term with one effect, such as (1|donor); the formula has {terms}. Use "
        "n_quad=1 (Laplace)."
    )
    raise ValueError(msg)


def parse_right_side(formula: str) -> Formula:
    """Parse a formula that has no left side.

    Raises
    ------
    FormulaError
        It cannot be read.
    ValueError
        It has a left side.
    """
    parsed = parse_formula(formula)
    if parsed.response is not None:
        msg = (
            f"The formula {formula!r} has a left side ({parsed.response!r}), but every gene is a response in turn: "
            "start it with '~'."
        )
        raise ValueError(msg)
    return parsed


def selected_genes(adata: AnnData, mask_var: Any) -> np.ndarray:
    """(n_vars,) bool: the genes that `mask_var` selects."""
    if mask_var is None:
        return np.ones(adata.n_vars, bool)
    name = "mask_var"
    if isinstance(mask_var, str):
        var = in_memory(adata.var)
        if mask_var not in var:
            listed = near_first(mask_var, var.columns) or "(none)"
            msg = f"mask_var={mask_var!r} is not a column of `adata.var`; the columns are {listed}."
            raise KeyError(msg)
        name = f"adata.var[{mask_var!r}]"
        mask_var = var[mask_var]
    column = pd.Series(np.asarray(mask_var) if not hasattr(mask_var, "dtype") else mask_var)
    if column.isna().any():
        msg = f"{name} is missing (NaN) for {column.isna().sum()} genes: fill them in with True or False."
        raise ValueError(msg)
    mask = column.to_numpy(dtype=bool) if pd.api.types.is_bool_dtype(column.dtype) else column.to_numpy()
    if mask.dtype != bool or mask.shape != (adata.n_vars,):
        found = f"{mask.size} entries of type {column.dtype}"
        hint = " For names of genes: mask_var=adata.var_names.isin(names)." if mask.dtype.kind in "OUT" else ""
        msg = f"{name} must be True or False for each of the {adata.n_vars} genes, and has {found}.{hint}"
        raise ValueError(msg)
    if not mask.any():
        msg = f"{name} selects no gene: there is nothing to fit."
        raise ValueError(msg)
    return mask


def genes_in_matrix(selected: np.ndarray, source: Source) -> np.ndarray:
    """Find the genes that are selected and have a column in the matrix of counts."""
    found = selected & (source.columns >= 0)
    if not found.any():
        msg = (
            f"None of the {selected.sum()} genes to fit is in {source.name}: gene names there and in `adata` differ "
            "(symbols and identifiers?)."
        )
        raise ValueError(msg)
    return found
