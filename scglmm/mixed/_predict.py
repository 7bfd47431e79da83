"""Predictions for the rows of the fit and for new data, with all, some or no random effects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scanpy import logging as logg

from scglmm.formula import NewRows, design_matrix, new_rows, parse_formula

from ._wording import worded

if TYPE_CHECKING:
    from ._result import GLMMResult

TYPES = ("link", "response", "conditional", "zprob")


def predict(
    result: GLMMResult,
    newdata: pd.DataFrame | Mapping[str, Any] | None,
    type: str,
    re_form: str | bool | None,
    se: bool,
) -> pd.Series | pd.DataFrame:
    """Predict; see `GLMMResult.predict`."""
    if type not in TYPES:
        msg = f"type={type!r} is not one of {', '.join(map(repr, TYPES))}."
        raise ValueError(msg)
    if se and type == "zprob":
        msg = "There are no standard errors for type='zprob': leave se out."
        raise ValueError(msg)
    terms = random_terms(result, re_form)
    if newdata is None:
        index = result.model.frame.index
        rows, zi_eta = _own_rows(result, terms), result.estimates.zi_eta
    else:
        table = as_frame(newdata)
        index = table.index
        with worded(plain=not result.model.gene):
            rows = new_rows(result.model.design, table, terms)
            zi_eta = _zi_eta(result, table)
        _say_unseen(result, rows)
    distribution = result.distribution(eta := linear_predictor(result, rows), zi_eta)
    values = {
        "link": eta,
        "response": distribution.mean,
        "conditional": distribution.mu,
        "zprob": distribution.pi,
    }[type]
    if not se:
        return pd.Series(values, index=index, name=result.model.response)
    slope = 1.0 if type == "link" or result.link == "identity" else values
    errors = slope * _standard_errors(result, rows, bool(terms))
    return pd.DataFrame({"fit": values, "se": errors}, index=index)


def as_frame(newdata: Any) -> pd.DataFrame:
    """Make new data a data frame."""
    if isinstance(newdata, pd.DataFrame):
        return newdata
    if isinstance(newdata, Mapping):
        return pd.DataFrame(dict(newdata))
    if hasattr(newdata, "obs"):
        return newdata.obs
    msg = f"newdata must be a pandas DataFrame or a dictionary of columns, not {type(newdata).__name__}."
    raise TypeError(msg)


def random_terms(result: GLMMResult, re_form: str | bool | None) -> list[int]:
    """Positions of the random terms that `re_form` asks for."""
    own = result.model.formula.random
    if re_form is None or re_form is True:
        return list(range(len(own)))
    if re_form is False:
        return []
    if not isinstance(re_form, str):
        msg = (
            f"re_form must be None (all random effects), False (none) or the terms that are wanted, such as "
            f"'~ (1|Subject)', not {re_form!r}."
        )
        raise TypeError(msg)
    text = re_form if "~" in re_form else f"~ {re_form}"
    if text.replace(" ", "") in {"~0", "~-1"}:
        return []
    asked = parse_formula(text)
    if asked.response is not None or asked.offsets or asked.fixed.strip() not in {"1", "0"} or not asked.random:
        msg = f"re_form={re_form!r} holds more than random terms: write those that are wanted, such as '~ (1|Subject)'."
        raise ValueError(msg)
    keys = [(str(term.effects).replace(" ", ""), term.columns) for term in own]
    places = []
    for term in asked.random:
        key = (str(term.effects).replace(" ", ""), term.columns)
        if key not in keys:
            listed = " + ".join(map(str, own)) or "none"
            msg = f"re_form names {term}, which the model does not have; its random terms are {listed}."
            raise ValueError(msg)
        places.append(keys.index(key))
    return places


def linear_predictor(result: GLMMResult, rows: NewRows) -> np.ndarray:
    """Offset, fixed effects, and the random effects that the rows hold; 0 for levels that the model has not seen."""
    fit = result.estimates
    kept = ~fit.lost
    eta = rows.offset + rows.X[:, kept] @ fit.beta[kept]
    # where a coefficient is at infinity nothing can be predicted
    eta[(rows.X[:, fit.lost] != 0).any(axis=1)] = np.nan
    for group, effects in zip(rows.random, fit.ranef, strict=True):
        if group is not None:
            known = group.codes >= 0
            eta[known] += np.einsum("ij,ij->i", group.covariates[known], effects[group.codes[known]])
    return eta


def _own_rows(result: GLMMResult, terms: list[int]) -> NewRows:
    """Rows of the fit itself."""
    design = result.model.design
    offset = np.zeros(result.nobs) if design.offset is None else design.offset
    random: list[Any] = [term if i in terms else None for i, term in enumerate(design.random)]
    return NewRows(design.X, offset, random)


def _zi_eta(result: GLMMResult, newdata: pd.DataFrame) -> np.ndarray:
    zi = result.model.zi_design
    if zi is None:
        return np.full(len(newdata), -np.inf)
    return design_matrix(zi, newdata) @ result.estimates.zi_beta


def _say_unseen(result: GLMMResult, rows: NewRows) -> None:
    for term, group in zip(result.model.design.random, rows.random, strict=True):
        if group is not None and group.unseen:
            names = ", ".join(map(repr, group.unseen[:5])) + (" and more" if len(group.unseen) > 5 else "")
            logg.warning(
                f"{len(group.unseen)} level(s) of {term.group!r} in the new data are new to the model ({names}): their "
                "random effects are taken as 0, so these predictions are for the population"
            )


def _standard_errors(result: GLMMResult, rows: NewRows, random: bool) -> np.ndarray:
    """Compute standard errors of the linear predictor; the variance of an unseen level is not in them."""
    kept = ~result.estimates.lost
    if not random:
        X = rows.X[:, kept]
        return np.sqrt(np.einsum("ij,jk,ik->i", X, result.estimates.vcov[np.ix_(kept, kept)], X))
    joint = result.joint
    groups = [None if group is None else (group.codes, group.covariates) for group in rows.random]
    return np.sqrt(joint.variances(joint.rows(rows.X, groups)))
