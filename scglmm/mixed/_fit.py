"""`scglmm.glmm`: one response, one mixed model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scanpy import logging as logg

from scglmm.formula import Design
from scglmm.inference.advice import WARNING, Advice, Layout, constant_slopes, few_levels
from scglmm.inference.frame import make_frame, strata_of
from scglmm.inference.gene import NOT_CONVERGED, SEPARATED
from scglmm.inference.quadrature import is_inexact
from scglmm.inference.response import fit_response
from scglmm.inference.response_fit import ResponseFit

from ._checks import few_points
from ._data import COUNTS, FAMILIES, ModelData, check_response, prepare
from ._result import GLMMResult
from ._wording import of_data_frame

if TYPE_CHECKING:
    from anndata import AnnData


def glmm(
    formula: str,
    data: pd.DataFrame | AnnData | Mapping[str, Any],
    *,
    family: str | None = None,
    ziformula: str | None = None,
    reml: bool | None = None,
    n_quad: int = 1,
    layer: str | None = None,
    use_raw: bool = False,
    na_action: str = "raise",
) -> GLMMResult:
    r"""Fit a linear or generalised linear mixed model to one response.

    What `lmer` (lme4, lmerTest) and `glmmTMB` do in R, to the same numbers. The conditional distribution of row i has
    mean :math:`\mu_i`, :math:`g(\mu_i) = o_i + x_i'\beta + z_i'u`, with normal random effects u. Gaussian models are
    exact (Bates et al. 2015, doi 10.18637/jss.v067.i01); those of counts are fitted by the Laplace approximation
    (Brooks et al. 2017, doi 10.32614/RJ-2017-066) or adaptive Gauss–Hermite quadrature.

    Parameters
    ----------
    formula
        lme4's grammar: ``"Reaction ~ Days + (Days|Subject)"``. Random terms `(1|g)`, `(x|g)`, `(x||g)`, `(0+x|g)`,
        `(1|a/b)`, `(1|a:b)`; fixed part by formulaic; `offset(...)`. Without a random term it is a linear or
        generalised linear model. Names with special characters stand in backticks.
    data
        One row per observation. With an AnnData the response is a gene (or a column of `obs`), everything else is in
        `obs`; the counts of the gene are read from `adata.X`, a layer or `adata.raw`.
    family
        `"gaussian"` (identity link), `"poisson"` or `"nbinom2"` (log link; variance :math:`\mu + \mu^2/\theta`). By
        default `"gaussian"`, and `"nbinom2"` for a gene.
    ziformula
        Zero inflation: fixed effects of the logit of the probability of a structural zero, ``"~ 1"`` or ``"~ x"``. None
        for none. Counts only.
    reml
        Restricted maximum likelihood. By default True for the gaussian family and False for counts, as in R.
    n_quad
        Points of adaptive Gauss–Hermite quadrature; 1 is Laplace. More than one needs a single random term with one
        effect, and `reml=False`.
    layer
        Layer of the AnnData with the counts.
    use_raw
        Take the counts from `adata.raw`.
    na_action
        `"raise"`, or `"drop"` to leave out rows with a missing value in a column of the formulas.

    Returns
    -------
    The fit; ``print(fit)`` shows a summary. Nothing is written to `data`.

    Raises
    ------
    ValueError, KeyError, TypeError
        Before any work: the formula cannot be read, a column is missing or has missing values, the response is no count
        where counts are needed, fixed effects are aliased, a random term has as many effects as there are rows.

    Warns
    -----
    UserWarning
        A grouping factor has two levels, a random slope is constant within every level, no maximum was found,
        coefficients have no finite estimate, the points of quadrature are too few.

    See Also
    --------
    scglmm.tl.nbmm : Every gene of an AnnData.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scglmm
    >>> rng = np.random.default_rng(1)
    >>> data = pd.DataFrame({"x": rng.normal(size=120), "g": np.repeat(np.arange(12), 10)})
    >>> data["y"] = 2 + data["x"] + rng.normal(size=12)[data["g"]] + rng.normal(size=120)
    >>> fit = scglmm.glmm("y ~ x + (1|g)", data)
    >>> fit.coef_table.loc["x", ["estimate", "se"]].round(2).to_list()
    [0.98, 0.11]
    """
    _check_arguments(formula, family, ziformula, reml, n_quad)
    model = prepare(formula, data, ziformula, layer=layer, use_raw=use_raw, na_action=na_action)
    if family is None:
        family = "nbinom2" if model.gene else "gaussian"
    reml = family == "gaussian" if reml is None else bool(reml)
    check_response(model.y, model.response, family)
    _check_options(model, family, reml, n_quad)
    _advise(model, family)
    return fit_model(model, family, reml, n_quad)


def fit_model(model: ModelData, family: str, reml: bool, n_quad: int) -> GLMMResult:
    """Fit a prepared model, and warn of what went wrong."""
    fit = _fit(model.design, model.y, model.zi_design, family, reml, n_quad)
    result = GLMMResult(model, family, reml, n_quad, fit)
    if fit.status == NOT_CONVERGED:
        _warn(
            "No maximum of the likelihood was found, so there are no estimates. Simplify the random effects, put "
            "covariates of very different size on a common scale, or look for rows that the family cannot explain."
        )
    elif fit.status == SEPARATED:
        lost = [name for name, gone in zip(model.design.columns, fit.lost, strict=True) if gone]
        _warn(
            f"No finite estimate exists for {', '.join(lost)}: {'their' if len(lost) > 1 else 'its'} maximum is at "
            "infinity, because all counts in a part of the data are 0 (separation). These coefficients are NaN."
        )
    if is_inexact(fit.quadrature_error):
        _warn(few_points(fit))
    return result


def refit(result: GLMMResult, **changes: Any) -> ResponseFit:
    """Fit again with another design, response or method, without warnings; for null models and profiles.

    Parameters
    ----------
    result
        The fit.
    changes
        `design`, `y`, `zi_design`, `reml` or `n_quad`, where they are to differ.
    """
    model = result.model
    return _fit(
        changes.get("design", model.design),
        changes.get("y", model.y),
        changes.get("zi_design", model.zi_design),
        result.family,
        changes.get("reml", result.reml),
        changes.get("n_quad", result.n_quad),
    )


def null_design(design: Design) -> Design:
    """Return the design with an intercept only, and the same random effects and offset."""
    return replace(design, X=np.ones((design.X.shape[0], 1)), columns=["(Intercept)"], terms=[])


def _fit(design: Design, y: np.ndarray, zi_design: Design | None, family: str, reml: bool, n_quad: int) -> ResponseFit:
    return fit_response(design, y, family=family, zi_design=zi_design, reml=reml, n_quad=n_quad)


def _check_arguments(formula: Any, family: Any, ziformula: Any, reml: Any, n_quad: Any) -> None:
    if not isinstance(formula, str):
        hint = " The formula is the first argument, the data the second." if hasattr(formula, "shape") else ""
        msg = f"The formula must be a string such as 'y ~ x + (1|g)', not {type(formula).__name__}.{hint}"
        raise TypeError(msg)
    if family is not None and family not in FAMILIES:
        near = {"nb": "nbinom2", "negbin": "nbinom2", "nb2": "nbinom2", "normal": "gaussian"}.get(str(family).lower())
        hint = f" {near!r} is probably meant." if near else ""
        msg = f"family={family!r} is not one of {', '.join(map(repr, FAMILIES))}.{hint}"
        raise ValueError(msg)
    if ziformula is not None and not isinstance(ziformula, str):
        msg = f"ziformula must be a string such as '~ 1', or None, not {type(ziformula).__name__}."
        raise TypeError(msg)
    if reml is not None and not isinstance(reml, bool | np.bool_):
        msg = f"reml must be True, False or None (the default of the family), not {reml!r}."
        raise TypeError(msg)
    if isinstance(n_quad, bool) or not isinstance(n_quad, int | np.integer) or n_quad < 1:
        msg = f"n_quad must be a whole number, 1 (Laplace) or more, not {n_quad!r}."
        raise ValueError(msg)


def _check_options(model: ModelData, family: str, reml: bool, n_quad: int) -> None:
    """Check what depends on the family and the random effects."""
    if model.zi_design is not None and family not in COUNTS:
        msg = (
            f"Zero inflation is for counts, and family={family!r}: leave ziformula out, or use 'poisson' or 'nbinom2'."
        )
        raise ValueError(msg)
    if n_quad == 1:
        return
    random = model.design.random
    if len(random) != 1 or len(random[0].columns) != 1:
        terms = " + ".join(map(str, model.formula.random)) or "none"
        msg = f"n_quad={n_quad} needs one random term with one effect, such as (1|g); the formula has {terms}."
        raise ValueError(msg)
    if family == "gaussian":
        msg = f"n_quad={n_quad} makes no difference: a Gaussian mixed model is fitted exactly. Leave n_quad out."
        raise ValueError(msg)
    if reml:
        msg = f"n_quad={n_quad} goes with maximum likelihood only: use reml=False."
        raise ValueError(msg)


def _advise(model: ModelData, family: str) -> None:
    """Say what the user should know about the design."""
    for design in (model.design, model.zi_design):
        for note in () if design is None else design.notes:
            note = note if model.gene else of_data_frame(note)
            if "ordered category" in note:
                logg.info(note)
            else:
                _warn(note)
    for advice in _judge(model):
        _warn(str(advice) if model.gene else of_data_frame(str(advice)))
    if model.gene and family in COUNTS and model.design.offset is None:
        _warn(
            f"The formula has no offset, so the library sizes of the cells count as an effect on {model.response!r}: "
            "add offset(log(libSize)), with the column of obs that holds them."
        )
    if model.dropped:
        logg.info(f"{model.dropped:,} rows with missing values are left out")


def _judge(model: ModelData) -> list[Advice]:
    """Find random effects that the data cannot tell; the other advice is on tests of genes between donors."""
    design = replace(model.design, kept=np.ones(model.n, bool))
    if not design.random:
        return []
    stratum, first = strata_of(design)
    layout = Layout(design, model.frame, make_frame(design, first, np.bincount(stratum)), first)
    return [advice for check in (constant_slopes, few_levels) for advice in check(layout) if advice.severity == WARNING]


def _warn(message: str) -> None:
    # the line that the user wrote: above _advise or fit_model stands glmm
    warnings.warn(message, UserWarning, stacklevel=4)
