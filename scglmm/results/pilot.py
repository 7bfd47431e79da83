"""Parameters of genes in a stored result, from which a study can be planned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from anndata import AnnData
from scanpy import logging as logg

from scglmm.formula.columns import in_memory

from .names import near_first
from .read import has_inflation, read_result


def gene_parameters(
    adata: AnnData | None, gene: Any, key: str, group: str | None, donor: str | None, within: bool
) -> pd.DataFrame | None:
    """Take the parameters of genes from a stored result: arguments as those of :func:`scglmm.power`.

    Returns
    -------
    `mean`, `theta`, `var_donor`, and where they are known `var_effect` and `cells_cv`, one row per gene; None without
    `adata`.
    """
    if adata is None:
        if gene is not None:
            msg = "`gene` needs an AnnData with results of scglmm.tl.nbmm as the first argument."
            raise ValueError(msg)
        return None
    if not isinstance(adata, AnnData):
        msg = f"The first argument must be an AnnData, not {type(adata).__name__}; parameters are given by name."
        raise TypeError(msg)
    result = read_result(adata, key)
    if has_inflation(adata, result.key):
        msg = (
            f"The result {result.key!r} has zero inflation, of which power calculations know nothing: take a result "
            "without it."
        )
        raise ValueError(msg)
    group = result.only_group() if group is None else result.find_group(group)
    fit = result.table("fit", group)
    donor = _donor(adata, result.key, fit, donor)
    table = pd.DataFrame({"mean": fit["mean"].astype(float), "theta": fit["theta"].astype(float)})
    for name, values in _variances(fit, donor, within).items():
        table[name] = values
    status = fit["status"].astype(str)
    if gene is None:
        table = table[table.notna().all(axis=1)]
        if table.empty:
            msg = f"No gene of the result {key!r} was fitted."
            raise ValueError(msg)
    else:
        names = [gene] if isinstance(gene, str) else list(gene)
        for name in names:
            if name not in table.index:
                msg = f"No gene {name!r} in `adata`. Near names: {near_first(name, adata.var_names, limit=5)}."
                raise KeyError(msg)
            if table.loc[[name]].isna().any(axis=None):
                msg = f"The gene {name!r} has no estimates (status {status.loc[[name]].iloc[0]})."
                raise ValueError(msg)
        table = table.loc[names]
    if (zero := int((table["var_donor"] == 0).sum())) > 0:
        logg.warning(
            f"{zero} of {len(table)} genes have a donor variance estimated at 0, from which power is too high: think "
            "of var_donor=..., for instance the median of the others."
        )
    if donor in adata.obs and group is None:
        cells = in_memory(adata.obs, [donor])[donor].value_counts()
        cells = cells[cells > 0]
        table["cells_cv"] = float(cells.std(ddof=1) / cells.mean()) if len(cells) > 1 else 0.0
    return table.rename_axis("gene")


def _donor(adata: AnnData, key: str, fit: pd.DataFrame, donor: str | None) -> str:
    """Find the grouping factor that is the donor."""
    entry = adata.uns.get(key)
    levels = dict(entry["n_levels"]) if isinstance(entry, Mapping) and "n_levels" in entry else {}
    if not levels:  # `uns` is gone, as after anndata.concat: names of variances tell the groups
        names = [c.removeprefix("var[").removesuffix("]") for c in fit.columns if c.startswith("var[")]
        levels = dict.fromkeys([name.split(":")[0] for name in names], 0)
    levels = {str(name): int(n) for name, n in levels.items()}
    if donor is not None:
        if donor not in levels:
            msg = f"donor={donor!r} is not a grouping factor of the result {key!r}: {near_first(donor, levels)}."
            raise KeyError(msg)
        return donor
    simple = {name: n for name, n in levels.items() if ":" not in name} or levels
    if not simple:
        msg = f"The result {key!r} has no random effect, so there is no donor variance to take from it."
        raise ValueError(msg)
    return max(simple, key=simple.__getitem__)


def _variances(fit: pd.DataFrame, donor: str, within: bool) -> dict[str, pd.Series]:
    """Variance between donors, and of the effect between them where the model has it."""
    names = {
        c.removeprefix("var[").removesuffix("]"): fit[c].astype(float) for c in fit.columns if c.startswith("var[")
    }
    intercept = names.get(donor, names.get(f"{donor}:(Intercept)"))
    if intercept is None:
        msg = f"The stored model has no random intercept of {donor!r}, so no donor variance."
        raise ValueError(msg)
    slopes = [n for n in names if n.startswith(f"{donor}:") and n.endswith("]") and "[" in n]
    nested = [n for n in names if ":" in n and donor in n.split(":") and n not in slopes and "(Intercept)" not in n]
    if not within:
        # a donor in one condition has the variance of its level and that of the combination
        return {"var_donor": intercept + sum(names[n] for n in nested)}
    if nested:
        return {"var_donor": intercept, "var_effect": 2 * names[nested[0]]}
    if slopes:
        covariance = fit.get(f"cov[{donor}:(Intercept),{slopes[0].removeprefix(f'{donor}:')}]", 0.0)
        return {"var_donor": (intercept + covariance).clip(lower=0), "var_effect": names[slopes[0]]}
    return {"var_donor": intercept}
