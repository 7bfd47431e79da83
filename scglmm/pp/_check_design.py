"""`scglmm.pp.check_design`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scglmm.formula import build_design, formula_columns, parse_formula
from scglmm.formula.columns import in_memory
from scglmm.inference.advice import Advice, Layout, advise
from scglmm.inference.frame import make_frame, strata_of

if TYPE_CHECKING:
    from anndata import AnnData

TABLES = ("advice", "terms", "levels", "groups")


def check_design(
    adata: AnnData | pd.DataFrame, formula: str, *, table: str = "advice", na_action: str = "raise"
) -> pd.DataFrame:
    """Look at a design before the fit: what is unwise about it, and what to do.

    :func:`scglmm.tl.nbmm` gives the warnings of this table as `UserWarning`. Counts are not looked at, so it is as
    quick as `obs` is read.

    Parameters
    ----------
    adata
        Cells with their `obs`, or `obs` alone.
    formula
        As for :func:`scglmm.tl.nbmm`.
    table
        `"advice"`: one row for everything that is wrong or worth a look; none where the design is fine. `"terms"`: the
        fixed effects, within which grouping factors they vary, whose levels are the replicates of their test, and the
        containment degrees of freedom (those of a gene whose variance is 0; inf where cells are the replicates).
        `"levels"`: the levels of factors, and numbers with few values, with their numbers of cells and of levels of
        every grouping factor. `"groups"`: the grouping factors with their cells per level.
    na_action
        As for :func:`scglmm.tl.nbmm`.

    Returns
    -------
    The table. Advice has the columns `check`; `severity`, `"warning"` (p-values would be wrong, or an effect cannot be
    shown) or `"note"`; `what`; `what_to_do`.

    Raises
    ------
    ValueError, KeyError, TypeError
        The formula cannot be read, or these cells cannot answer it, as in :func:`scglmm.tl.nbmm`.

    Examples
    --------
    >>> adata = scglmm.datasets.psychad()
    >>> scglmm.pp.check_design(adata, "~ Dx + Age + Sex + (1|SubID)")
    Empty DataFrame
    Columns: [check, severity, what, what_to_do]
    Index: []
    >>> for row in scglmm.pp.check_design(adata, "~ Dx + (Dx|SubID)").itertuples():
    ...     print(f"{row.check} ({row.severity})")
    constant_slope (warning)
    >>> scglmm.pp.check_design(adata, "~ Dx + Age + (1|SubID)", table="terms")[["term", "replicates", "df"]]
      term replicates     df
    0   Dx      SubID  246.0
    1  Age      SubID  246.0
    """
    if table not in TABLES:
        msg = f"table={table!r} is not one of {', '.join(map(repr, TABLES))}."
        raise ValueError(msg)
    obs = adata if isinstance(adata, pd.DataFrame) else getattr(adata, "obs", None)
    if obs is None:
        msg = f"The first argument must be an AnnData or its obs, not {type(adata).__name__}."
        raise TypeError(msg)
    parsed = parse_formula(formula)
    obs = in_memory(obs, formula_columns(parsed))
    design = build_design(parsed, obs, na_action=na_action)
    stratum, first = strata_of(design)
    frame = make_frame(design, first, np.bincount(stratum, minlength=first.size))
    layout = Layout(design, obs, frame, first)
    if table == "advice":
        return pd.DataFrame([asdict(advice) for advice in advise(layout)], columns=list(Advice.__annotations__))
    return {"terms": layout.terms, "levels": layout.levels, "groups": layout.grouping}[table]()
