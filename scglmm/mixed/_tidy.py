"""Estimates in the columns of R's broom.mixed (`tidy` and `glance`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from ._effects import ranef, varcorr

if TYPE_CHECKING:
    from ._result import GLMMResult

EFFECTS = ("fixed", "ran_pars", "ran_vals")
COLUMNS = ["effect", "component", "group", "level", "term", "estimate", "std.error", "statistic", "df", "p.value"]
_NAMES = {"se": "std.error", "p": "p.value"}


def to_frame(result: GLMMResult, effects: str | Sequence[str], conf_int: bool) -> pd.DataFrame:
    """Put estimates into one table; see `GLMMResult.to_frame`."""
    wanted = [effects] if isinstance(effects, str) else list(effects)
    for name in wanted:
        if name not in EFFECTS:
            msg = f"effects={name!r} is not one of {', '.join(map(repr, EFFECTS))}."
            raise ValueError(msg)
    tables = []
    if "fixed" in wanted:
        tables.append(_fixed(result, conf_int))
        if len(result.zi_table):
            tables.append(_zero_inflation(result, conf_int))
    if "ran_pars" in wanted:
        tables.append(_parameters(result))
    if "ran_vals" in wanted:
        values = ranef(result).rename(columns={"sd": "std.error"}).drop(columns="pred_sd")
        tables.append(values.assign(effect="ran_vals", component="cond"))
    tables = [table for table in tables if len(table)]
    columns = [c for c in COLUMNS if c != "level" or "ran_vals" in wanted]
    columns += ["conf.low", "conf.high"] if conf_int else []
    if not tables:
        return pd.DataFrame(columns=columns)
    rows = [row for table in tables for row in table.to_dict("records")]
    return pd.DataFrame(rows, columns=columns)


def _fixed(result: GLMMResult, conf_int: bool) -> pd.DataFrame:
    table = result.coef_table.rename(columns=_NAMES)
    if conf_int:
        limits = result.confint()
        table = table.assign(**{"conf.low": limits["low"], "conf.high": limits["high"]})
    return table.rename_axis("term").reset_index().assign(effect="fixed", component="cond")


def _zero_inflation(result: GLMMResult, conf_int: bool) -> pd.DataFrame:
    table = result.zi_table.rename(columns=_NAMES)
    if conf_int:
        half = 1.959963984540054 * table["std.error"]
        table = table.assign(**{"conf.low": table["estimate"] - half, "conf.high": table["estimate"] + half})
    return table.rename_axis("term").reset_index().assign(effect="fixed", component="zi")


def _parameters(result: GLMMResult) -> pd.DataFrame:
    rows = []
    for row in varcorr(result).to_dict("records"):
        if pd.isna(row["var1"]):
            term = "sd__Observation"
        elif pd.isna(row["var2"]):
            term = f"sd__{row['var1']}"
        else:
            term = f"cor__{row['var1']}.{row['var2']}"
        rows.append({"group": row["grp"], "term": term, "estimate": row["sdcor"]})
    return pd.DataFrame(rows, columns=["group", "term", "estimate"]).assign(effect="ran_pars", component="cond")


def glance(result: GLMMResult) -> pd.Series:
    """One line about the whole fit."""
    return pd.Series(
        {
            "nobs": result.nobs,
            "sigma": result.theta if result.family == "nbinom2" else result.sigma,
            "logLik": result.loglik,
            "AIC": result.aic,
            "BIC": result.bic,
            "df": result.n_params,
            "df.residual": result.df_residual,
        }
    )
