"""Choosing groups and coefficients of a result."""

from __future__ import annotations

from collections.abc import Sequence

from anndata import AnnData

from scglmm.results import StoredResult
from scglmm.results.names import SEPARATOR, near_first, readable


def find_groups(result: StoredResult, group: str | Sequence[str] | None) -> list[str | None]:
    """Find the groups asked for, by default all that were fitted; [None] where the cells were not grouped.

    Raises
    ------
    KeyError
        No such group.
    ValueError
        A group was skipped, `group` is empty, or the cells were not grouped.
    """
    if group is None:
        return result.fitted_groups
    asked = [group] if isinstance(group, str) else list(group)
    if not asked:
        msg = f"`group` is empty. Groups: {', '.join(repr(g) for g in result.fitted_groups)}."
        raise ValueError(msg)
    return list(dict.fromkeys(result.find_group(g) for g in asked))


def find_coefficients(result: StoredResult, coef: str | Sequence[str] | None, groups: list[str | None]) -> list[str]:
    """Find the coefficients asked for, by default all but the intercept.

    Raises
    ------
    KeyError
        No such coefficient.
    ValueError
        `coef` is empty.
    """
    if coef is None:
        if not result.coefficients:
            msg = f"The result {result.key!r} has joint tests only: `scglmm.get.joint_df` reads them."
            raise ValueError(msg)
        return result.tested or result.coefficients
    asked = [coef] if isinstance(coef, str) else list(coef)
    if not asked:
        msg = f"`coef` is empty. Coefficients: {', '.join(repr(c) for c in result.tested)}."
        raise ValueError(msg)
    # a single group is searched on its own, so that the error lists what that group has
    within = groups[0] if len(groups) == 1 else None
    return list(dict.fromkeys(result.find_coefficient(c, within) for c in asked))


def find_contrasts(
    result: StoredResult, coef: str | Sequence[str] | None, group: str | Sequence[str] | None
) -> dict[str, tuple[str | None, str]]:
    """Find every pair of group and coefficient asked for.

    Returns
    -------
    Name -> group and coefficient. Names are those of what differs: the coefficient, the group where there are several
    groups and one coefficient, or "{group}|{coef}"; "/" is written as it is.

    Raises
    ------
    KeyError, ValueError
        As in :func:`find_groups` and :func:`find_coefficients`.
    """
    groups = find_groups(result, group)
    coefs = find_coefficients(result, coef, groups)
    names: dict[str, tuple[str | None, str]] = {}
    for g in groups:
        for c in coefs:
            if c not in result.coefficients_in(g):
                continue
            parts = [str(g)] * (len(groups) > 1) + [c] * (len(coefs) > 1 or len(groups) == 1)
            names[readable(SEPARATOR.join(parts))] = (g, c)
    return names


def check_symbols(adata: AnnData, gene_symbols: str | None) -> None:
    """Check that a column of gene names exists.

    Raises
    ------
    KeyError
        It does not.
    """
    if gene_symbols is not None and gene_symbols not in adata.var.columns:
        listed = near_first(gene_symbols, adata.var.columns)
        msg = f"No column {gene_symbols!r} in `adata.var`. Columns: {listed}."
        raise KeyError(msg)
