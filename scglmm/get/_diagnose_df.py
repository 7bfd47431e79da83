"""`scglmm.get.diagnose_df`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from scglmm.get._select import find_groups
from scglmm.results import StoredResult, read_result
from scglmm.results.diagnosed import JOINED, REASONS, diagnosed_column
from scglmm.results.names import near_first

_EFFECT = ("name", "effect", "effect_without", "pval", "pval_without")


def diagnose_df(
    adata: AnnData, reason: str | Sequence[str] | None = None, *, key: str = "nbmm", group: str | None = None
) -> pd.DataFrame:
    """Suspicious genes of :func:`scglmm.tl.diagnose` as a tidy table, one row per gene, reason and effect.

    Parameters
    ----------
    adata
        Object with results. Only `adata.varm` is read, so genes may have been subset since.
    reason
        One reason or several, by default all.
    key
        Name of the result.
    group
        One group or several, for results with `groupby`. By default all, with a column `group`.

    Returns
    -------
    Table with the columns

    * `gene`: name of the gene,
    * `reason`: `one_cell`, `one_donor`, ...; see :func:`scglmm.tl.diagnose`,
    * `coef`: the coefficient, empty where the reason concerns the gene,
    * `name`: the cell or donor that drives the effect, or that has the counts,
    * `share`: its share of the counts of the gene, where these are the reason,
    * `effect`, `effect_without`: the effect with and without it (natural log), NaN where nothing is left to estimate
      it from,
    * `pval`, `pval_without`: p-values of both,
    * `status`: what became of the gene's fit,
    * `text`: all of it in words.

    In the order of reasons, within each the smallest p-value first.

    Raises
    ------
    KeyError
        There is no such result, group or reason, or :func:`scglmm.tl.diagnose` has not been run.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :20].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> scglmm.tl.diagnose(adata)
    >>> scglmm.get.diagnose_df(adata, "one_donor").empty
    True
    """
    result = read_result(adata, key)
    if f"{result.key}_diagnose" not in adata.varm:
        msg = f"The result {key!r} has not been looked at. Run `scglmm.tl.diagnose` first."
        raise KeyError(msg)
    reasons = list(REASONS) if reason is None else [reason] if isinstance(reason, str) else list(reason)
    if unknown := [name for name in reasons if name not in REASONS]:
        msg = f"There is no reason {unknown[0]!r}. Reasons: {near_first(unknown[0], REASONS)}."
        raise KeyError(msg)
    groups = find_groups(result, group)
    table = pd.DataFrame(adata.varm[f"{result.key}_diagnose"])
    blocks = [_rows(result, table, g) for g in groups]
    out = pd.concat([block for block in blocks if len(block)] or blocks[:1], ignore_index=True)
    out = out[out["reason"].isin(reasons)]
    order = {name: place for place, name in enumerate(REASONS)}
    out = out.assign(_order=out["reason"].map(order)).sort_values(["_order", "pval"], kind="stable")
    out = out.drop(columns=["_order"] + (["group"] if result.groups is None else [])).reset_index(drop=True)
    return out.assign(reason=pd.Categorical(out["reason"], categories=list(REASONS)))


def _rows(result: StoredResult, table: pd.DataFrame, group: str | None) -> pd.DataFrame:
    """Make the rows of one group."""

    def column(name: str, coef: str | None = None) -> np.ndarray:
        return table[diagnosed_column(group, coef, name)].to_numpy()

    genes = result.adata.var_names.to_numpy()
    status = result.table("fit", group)["status"].astype(str).to_numpy(object)
    looked = [c for c in result.coefficients_in(group) if diagnosed_column(group, c, "effect") in table]
    rows = []
    for gene in np.flatnonzero(column("reasons").astype(str) != ""):
        shared = {"group": group, "gene": genes[gene], "status": status[gene]}
        for reason in str(column("reasons")[gene]).split(JOINED):
            what = reason.removeprefix("one_")
            if reason in ("one_cell", "one_donor"):
                for coef in [c for c in looked if column(reason, c)[gene]]:
                    names = (what, "effect", f"effect_without_{what}", "pval", f"pval_without_{what}")
                    numbers = dict(zip(_EFFECT, (column(name, coef)[gene] for name in names), strict=True))
                    rows.append(shared | {"reason": reason, "coef": coef, "share": np.nan} | numbers)
            else:
                numbers = dict.fromkeys(_EFFECT, np.nan) | {"name": "", "share": np.nan}
                if reason.startswith("counts_in_one_"):
                    what = reason.removeprefix("counts_in_one_")
                    numbers |= {"name": column(what)[gene], "share": column(f"{what}_share")[gene]}
                rows.append(shared | {"reason": reason, "coef": ""} | numbers)
    columns = ["group", "gene", "reason", "coef", "name", "share", *_EFFECT[1:], "status"]
    out = pd.DataFrame(rows, columns=columns)
    out["text"] = [_in_words(row) for row in rows]
    return out


def _in_words(row: dict) -> str:
    """Say it."""
    text = REASONS[row["reason"]]
    if row["reason"] in ("one_cell", "one_donor"):
        what = row["reason"].removeprefix("one_")
        left = (
            "there is nothing to estimate it from"
            if np.isnan(row["effect_without"])
            else f"it is {row['effect_without']:.2f} (p = {row['pval_without']:.2g})"
        )
        return (
            f"{row['coef']} is {row['effect']:.2f} (p = {row['pval']:.2g}); without the {what} {row['name']!r} {left}"
        )
    if row["name"]:
        return f"{text}: {row['name']!r} has {row['share']:.0%}"
    return text
