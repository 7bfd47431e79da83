"""`scglmm.get.joint_df`."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from scglmm.results import StoredResult, read_result
from scglmm.results.joint import JOINT, joint_column
from scglmm.results.names import near_first, storable


def joint_df(
    adata: AnnData, name: str | None = None, *, key: str = "nbmm_contrast", group: str | None = None
) -> pd.DataFrame:
    """Joint tests of :func:`scglmm.tl.contrast` as a tidy table, one row per gene, smallest p-value first.

    Parameters
    ----------
    adata
        Object with results. Only `adata.varm` is read per gene, so genes may have been subset since.
    name
        Name of the test. Needed where there are several.
    key
        Name of the result, the `key_added` of :func:`scglmm.tl.contrast`.
    group
        Group, for results with `groupby`. Needed where the test was done in several.

    Returns
    -------
    Table with the columns

    * `gene`: name of the gene,
    * `statistic`: F, or chi-square after maximum likelihood,
    * `df1`, `df2`: degrees of freedom, those of the denominator inf for chi-square,
    * `pval`, `padj`: p-value, and the one adjusted over all genes that were tested,
    * `mean`: mean count of the gene per cell,
    * `status`: what became of the gene's fit.

    Genes without a p-value come last.

    Raises
    ------
    KeyError
        There is no such result, joint test or group; the valid ones are listed.
    ValueError
        `name` or `group` is needed and was not given.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Sex + (1|SubID)")
    >>> scglmm.tl.contrast(adata, {"either": ["Dx[T.AD]", "Sex[T.M]"]})
    >>> list(scglmm.get.joint_df(adata, "either").columns[:4])
    ['gene', 'statistic', 'df1', 'df2']
    """
    result = read_result(adata, key)
    table = adata.varm.get(f"{result.key}_joint", pd.DataFrame())
    have = _tests(result, [str(column) for column in table.columns])
    names = list(dict.fromkeys(test for _, test in have))
    if not names:
        msg = f"The result {key!r} has no joint tests."
        raise KeyError(msg)
    if name is None and len(names) > 1:
        msg = f"The result {key!r} has several joint tests: choose one with `name`, {near_first('', names)}."
        raise ValueError(msg)
    found = names[0] if name is None else storable(name)
    if found not in names:
        msg = f"No joint test {name!r} in the result {key!r}. Joint tests: {near_first(found, names)}."
        raise KeyError(msg)
    groups = [g for g, test in have if test == found]
    group = _choose(result, group, groups, found)
    out = pd.DataFrame({"gene": adata.var_names.to_numpy()})
    for number in JOINT:
        out[number] = table[joint_column(group, found, number)].to_numpy()
    fit = result.table("fit", group)
    if "mean" in fit:
        out["mean"] = fit["mean"].to_numpy()
    out["status"] = fit["status"].astype(str).to_numpy(dtype=object)
    order = pd.DataFrame({"pval": out["pval"], "strength": -out["statistic"]})
    return out.loc[order.sort_values(["pval", "strength"], kind="stable").index].reset_index(drop=True)


def _tests(result: StoredResult, columns: list[str]) -> list[tuple[str | None, str]]:
    """Group and name of every joint test."""
    ending = joint_column(None, "", "pval")
    tests = [column.removesuffix(ending) for column in columns if column.endswith(ending)]
    if result.groups is None:
        return [(None, test) for test in tests]
    pairs = []
    for test in tests:
        # the longest group that the column begins with: a group's name may contain the separator
        at = [g for g in result.groups if test.startswith(joint_column(None, g, ""))]
        if at:
            group = max(at, key=len)
            pairs.append((group, test.removeprefix(joint_column(None, group, ""))))
    return pairs


def _choose(result: StoredResult, group: str | None, groups: list[str | None], name: str) -> str | None:
    if result.groups is None:
        if group is not None:
            msg = f"The result {result.key!r} was not fitted with `groupby`: leave out `group`."
            raise ValueError(msg)
        return None
    if group is None:
        if len(groups) > 1:
            listed = ", ".join(repr(g) for g in groups)
            msg = f"{name!r} was tested in more than one group: choose one with `group`, {listed}."
            raise ValueError(msg)
        return groups[0]
    found = storable(group)
    if found not in groups:
        msg = f"{name!r} was not tested in a group {group!r}. Groups: {near_first(found, [str(g) for g in groups])}."
        raise KeyError(msg)
    return found
