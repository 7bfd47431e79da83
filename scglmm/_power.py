"""`scglmm.power`: planning a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scglmm.inference.power import (
    BETWEEN,
    WITHIN,
    Study,
    degrees_of_freedom,
    group_sizes,
    moments,
    variance,
)
from scglmm.inference.power import power as power_of_t
from scglmm.results.pilot import gene_parameters

if TYPE_CHECKING:
    from anndata import AnnData

Values = float | Sequence[float] | np.ndarray

MAX_DONORS = 2**17
MAX_CELLS = 1e9
MAX_EFFECT = 20.0


def power(
    adata: AnnData | None = None,
    gene: str | Sequence[str] | None = None,
    *,
    log_fc: Values | None = None,
    log2_fc: Values | None = None,
    n_donors: Values | None = None,
    n_cells: Values | None = None,
    power: Values | None = None,
    design: str = BETWEEN,
    mean: Values | None = None,
    theta: Values | None = None,
    var_donor: Values | None = None,
    var_effect: Values | None = None,
    cells_cv: Values | None = None,
    fraction: Values = 0.5,
    n_covariates: Values = 0,
    prior_df: Values = 0.0,
    alpha: Values = 0.05,
    key: str = "nbmm",
    group: str | None = None,
    donor: str | None = None,
) -> pd.DataFrame:
    r"""Power of a study, or the donors, cells or effect that it needs.

    Of the effect (`log_fc` or `log2_fc`), `n_donors`, `n_cells` and `power` the one that is left out is computed from
    the other three. Every parameter may be one number or several; all combinations are computed, one row each.

    The variance of the estimate follows from the information of the negative binomial mixed model: a donor with m
    cells, each of which tells :math:`w = \mu / (1 + \mu/\theta)`, counts for

    .. math:: \frac{1}{\sigma^2 + 1/(mw)} = \frac{1}{\sigma^2 + 1/w} \cdot \frac{m}{1 + (m-1)\rho},
              \qquad \rho = \frac{\sigma^2}{\sigma^2 + 1/w},

    averaged over donors, who differ in their mean and number of cells. The test is the two-sided t test of
    :func:`scglmm.tl.nbmm` with REML. The offset is taken to be the same in all cells.

    Parameters
    ----------
    adata
        Results of :func:`scglmm.tl.nbmm` from which `mean` (over all its cells), `theta`, `var_donor` and `var_effect`
        are taken where they are not given, and `cells_cv` from its cells.
    gene
        Gene or genes of `adata`; by default all that were fitted.
    log_fc
        Effect, natural log, as the coefficients of the model.
    log2_fc
        The same as log2 fold change; give one of both.
    n_donors
        Donors in all: 8 are 4 against 4 with `design="between"`, and 8 pairs with `design="within"`.
    n_cells
        Mean number of cells per donor, in both conditions together with `design="within"`.
    power
        Probability of a p-value below `alpha`.
    design
        `"between"`: each donor is in one of two groups (`~ x + (1|donor)`). `"within"`: each donor has cells in both
        conditions (`~ x + (1|donor) + (1|donor:x)`).
    mean
        Mean count per cell in the reference condition, averaged over donors.
    theta
        Size of the negative binomial, inf for Poisson.
    var_donor
        Variance between donors, natural log.
    var_effect
        Variance between donors of the effect (`design="within"`), natural log: the variance of the slope in
        `(x|donor)`, twice that of `(1|donor:x)`.
    cells_cv
        Coefficient of variation of the number of cells between donors (log-normal); 0 if all have the same.
    fraction
        Share of the donors (between) or of each donor's cells (within) with the effect.
    n_covariates
        Further coefficients of the formula that do not vary within donors.
    prior_df
        Degrees of freedom that moderation across genes adds.
    alpha
        Level of the test of one gene.
    key, group
        Which result of `adata`.
    donor
        Grouping factor of that result that is the donor; by default the one with the most levels that is a single
        column of `obs`.

    Returns
    -------
    Table with the parameters and `rho`, `n_cells_effective` (m / (1 + (m − 1) rho)), `se` (natural log), `df`, `power`.
    Computed numbers of donors and cells are the smallest sufficient ones, inf where no number is enough; a computed
    effect is the smallest increase. What was asked for is then in `target_power`, and `power` is what is reached.
    ``table.attrs["solved_for"]`` says what was computed.

    Raises
    ------
    ValueError, KeyError, TypeError
        Not exactly one of the four was left out, a parameter is missing or out of range, or `adata` has no such gene or
        result.

    Examples
    --------
    >>> gene = dict(mean=0.5, theta=1.0, var_donor=0.2)
    >>> scglmm.power(log2_fc=1, n_donors=[6, 12], n_cells=200, **gene)[["n_donors", "df", "power"]].round(2)
       n_donors    df  power
    0         6   4.0   0.29
    1        12  10.0   0.65
    >>> int(scglmm.power(log2_fc=1, power=0.8, n_cells=200, **gene).loc[0, "n_donors"])
    17
    """
    if design not in (BETWEEN, WITHIN):
        msg = f"design={design!r} is neither 'between' nor 'within'."
        raise ValueError(msg)
    if log_fc is not None and log2_fc is not None:
        msg = "log_fc and log2_fc are the same effect, natural log and log2: give one of them."
        raise ValueError(msg)
    if log2_fc is not None:
        log_fc = _values("log2_fc", log2_fc, *LIMITS["log_fc"]) * np.log(2)
    asked = {"log_fc": log_fc, "n_donors": n_donors, "n_cells": n_cells, "power": power}
    solve_for = _left_out(asked)
    genes = gene_parameters(adata, gene, key, group, donor, design == WITHIN)
    given = {"mean": mean, "theta": theta, "var_donor": var_donor, "var_effect": var_effect, "cells_cv": cells_cv}
    given |= {"fraction": fraction, "n_covariates": n_covariates, "prior_df": prior_df, "alpha": alpha}
    given = {name: value for name, value in given.items() if value is not None}
    _check_complete(given, genes, design)
    wanted = {name: _values(name, value, *LIMITS[name]) for name, value in (asked | given).items() if value is not None}
    grid = _combinations({name: values for name, values in wanted.items() if name != solve_for}, genes)
    if solve_for != "power" and (grid["power"] <= grid["alpha"]).any():
        msg = f"power={grid['power'].min():g} is not above alpha={grid['alpha'].max():g}: any study has it."
        raise ValueError(msg)
    study = _study(grid, design)
    solve = {"power": _nothing, "log_fc": _solve_effect, "n_donors": _solve_donors, "n_cells": _solve_cells}[solve_for]
    return _table(solve(grid, study), grid, design, solve_for)


LIMITS: dict[str, tuple[float, float, bool, bool]] = {
    # least, largest, whether these themselves are allowed, whether only whole numbers are
    "log_fc": (-MAX_EFFECT, MAX_EFFECT, True, False),
    "n_donors": (2, MAX_DONORS, True, True),
    "n_cells": (1, MAX_CELLS, True, False),
    "power": (0, 1, False, False),
    "mean": (0, np.inf, False, False),
    "theta": (0, np.inf, False, False),
    "var_donor": (0, 100, True, False),
    "var_effect": (0, 100, True, False),
    "cells_cv": (0, 10, True, False),
    "fraction": (0, 1, False, False),
    "n_covariates": (0, 1000, True, True),
    "prior_df": (0, np.inf, True, False),
    "alpha": (0, 1, False, False),
}


def _values(name: str, value: Any, least: float, largest: float, closed: bool, whole: bool) -> np.ndarray:
    """Check the values of one parameter."""
    try:
        values = np.atleast_1d(np.asarray(value, dtype=float))
    except (TypeError, ValueError):
        msg = f"{name} must be a number or several, not {value!r}."
        raise TypeError(msg) from None
    if values.ndim != 1 or values.size == 0:
        msg = f"{name} must be a number or a sequence of numbers, and has the shape {values.shape}."
        raise ValueError(msg)
    inside = (values >= least) & (values <= largest) if closed else (values > least) & (values < largest)
    if name == "theta":
        inside |= np.isposinf(values)
    bad = values[~inside | (whole & (values != np.round(values)))]
    if bad.size:
        kind = "a whole number" if whole else "a number"
        interval = f"from {least:g} to {largest:g}" if closed else f"between {least:g} and {largest:g}"
        if np.isinf(largest):
            interval = f"of {least:g} or more" if closed else f"above {least:g}"
        msg = f"{name} must be {kind} {interval}, not {bad[0]:g}."
        raise ValueError(msg)
    return values


def _left_out(asked: Mapping[str, Any]) -> str:
    missing = [name for name, value in asked.items() if value is None]
    if len(missing) != 1:
        names = "the effect (log_fc or log2_fc), n_donors, n_cells and power"
        what = f"{' and '.join(missing)} are missing" if missing else "all four are given"
        msg = f"Of {names} exactly one is left out, and computed from the others; {what}."
        raise ValueError(msg)
    return missing[0]


def _check_complete(given: dict[str, Any], genes: pd.DataFrame | None, design: str) -> None:
    """Check that every parameter of a gene is known."""
    if design == BETWEEN:
        if given.get("var_effect") is not None and np.any(np.asarray(given["var_effect"], float) != 0):
            msg = "var_effect is the variance of an effect within donors: with design='between' there is none."
            raise ValueError(msg)
        given["var_effect"] = 0.0
    known = {*given, *(() if genes is None else genes.columns)}
    missing = [name for name in ("mean", "theta", "var_donor", "var_effect") if name not in known]
    if missing:
        msg = (
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed: give numbers, or an AnnData with "
            "results of scglmm.tl.nbmm to take them from."
        )
        if missing == ["var_effect"] and genes is not None:
            msg = (
                "The stored model has no variance of the effect between donors, which a study within donors needs: "
                "give var_effect, or fit ~ x + (1|donor) + (1|donor:x)."
            )
        raise ValueError(msg)
    if "cells_cv" not in known:
        given["cells_cv"] = 0.0


# ---------------------------------------------------------------------------------------------------------- computing


def _combinations(given: Mapping[str, np.ndarray], genes: pd.DataFrame | None) -> dict[str, np.ndarray]:
    """All combinations; the parameters of a gene stay together, unless they were given."""
    axes: dict[str, np.ndarray] = {} if genes is None else {"gene": np.arange(len(genes))}
    axes |= given
    mesh = np.meshgrid(*axes.values(), indexing="ij")
    grid = {name: values.ravel() for name, values in zip(axes, mesh, strict=True)}
    if genes is not None:
        row = grid["gene"]
        for name in genes.columns:
            grid.setdefault(name, genes[name].to_numpy()[row])
        grid["gene"] = genes.index.to_numpy(dtype=object)[row]
    return grid


def _study(grid: Mapping[str, np.ndarray], design: str) -> Study:
    nothing = np.ones(grid["alpha"].size)
    names = ("mean", "theta", "var_donor", "var_effect", "cells_cv", "fraction")
    return Study(
        effect=grid.get("log_fc", nothing),
        n_cells=grid.get("n_cells", nothing),
        within=design == WITHIN,
        **{name: grid[name] for name in names},
    )


def _evaluate(grid: Mapping[str, np.ndarray], study: Study, n_donors: np.ndarray, found: Any = None) -> dict[str, Any]:
    """Compute standard error, degrees of freedom and power."""
    found = moments(study) if found is None else found
    n = group_sizes(study, n_donors)
    df = degrees_of_freedom(found, n, grid["n_covariates"])
    df = np.where(df > 0, df + grid["prior_df"], 0.0)
    se = np.sqrt(variance(found, n))
    effective = study.n_cells / (1 + (study.n_cells - 1) * found.rho)
    value = power_of_t(study.effect, se, df, grid["alpha"])
    return {
        "log_fc": study.effect,
        "n_donors": n_donors,
        "n_cells": study.n_cells,
        "rho": found.rho,
        "n_cells_effective": effective,
        "se": se,
        "df": df,
        "power": np.where(df > 0, value, 0.0),
    }


def _nothing(grid: Mapping[str, np.ndarray], study: Study) -> dict[str, Any]:
    return _evaluate(grid, study, grid["n_donors"])


def _solve_donors(grid: Mapping[str, np.ndarray], study: Study) -> dict[str, Any]:
    found = moments(study)

    def enough(n: np.ndarray) -> np.ndarray:
        return _evaluate(grid, study, n, found)["power"] >= grid["power"]

    low, high = np.full(study.mean.size, 1.0), np.full(study.mean.size, float(MAX_DONORS))
    reached = enough(high)
    while (high - low > 1).any():
        middle = np.floor(np.sqrt(low * high) + 0.5)
        middle = np.clip(middle, low + 1, np.maximum(high - 1, low + 1))
        good = enough(middle)
        open_ = high - low > 1
        high, low = np.where(open_ & good, middle, high), np.where(open_ & ~good, middle, low)
    return _beyond(_evaluate(grid, study, high, found), "n_donors", reached)


def _solve_cells(grid: Mapping[str, np.ndarray], study: Study) -> dict[str, Any]:
    def at(n: np.ndarray) -> dict[str, Any]:
        return _evaluate(grid, replace(study, n_cells=n), grid["n_donors"])

    high, reached = _bisect(lambda x: at(np.exp(x))["power"] >= grid["power"], 0.0, np.log(MAX_CELLS), study.mean.size)
    cells = np.ceil(np.exp(high) * (1 - 1e-9))
    return _beyond(at(np.where(reached, cells, MAX_CELLS)), "n_cells", reached)


def _solve_effect(grid: Mapping[str, np.ndarray], study: Study) -> dict[str, Any]:
    def at(effect: np.ndarray) -> dict[str, Any]:
        return _evaluate(grid, replace(study, effect=effect), grid["n_donors"])

    high, reached = _bisect(lambda x: at(x)["power"] >= grid["power"], 0.0, MAX_EFFECT, study.mean.size)
    return _beyond(at(high), "log_fc", reached)


def _bisect(
    enough: Callable[[np.ndarray], np.ndarray], least: float, most: float, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the least value that is enough, and whether there is one."""
    low, high = np.full(n, least), np.full(n, most)
    reached = enough(high)
    high = np.where(enough(low), low, high)
    for _ in range(40):
        middle = (low + high) / 2
        good = enough(middle)
        high, low = np.where(good, middle, high), np.where(good, low, middle)
    return high, reached


def _beyond(found: dict[str, Any], name: str, reached: np.ndarray) -> dict[str, Any]:
    """Put inf where no value is enough; what follows from the value is that of the largest tried."""
    return found | {name: np.where(reached, found[name], np.inf)}


def _table(found: dict[str, Any], grid: Mapping[str, np.ndarray], design: str, solve_for: str) -> pd.DataFrame:
    values = {name: value for name, value in grid.items() if name != "power"} | found
    columns = {"gene": values["gene"]} if "gene" in values else {}
    columns |= {"design": design, "log_fc": values["log_fc"], "log2_fc": values["log_fc"] / np.log(2)}
    names = ["mean", "theta", "var_donor", "var_effect", "n_donors", "n_cells", "cells_cv", "fraction", "n_covariates"]
    names += ["prior_df", "alpha", "rho", "n_cells_effective", "se", "df", "power"]
    if solve_for != "power":
        values["target_power"] = grid["power"]
        names.append("target_power")
    table = pd.DataFrame(columns | {name: values[name] for name in names})
    for name in ("n_donors", "n_covariates"):
        if np.isfinite(table[name]).all():
            table[name] = table[name].astype(np.int64)
    table.attrs["solved_for"] = solve_for
    return table
