"""Reading a stored result: one gene per row of `varm`, whatever genes were subset since it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as field_of
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scglmm.results.names import (
    INTERCEPTS,
    SEPARATOR,
    coefficients_of,
    compose,
    field,
    near_first,
    split_columns,
    storable,
)
from scglmm.results.table import triangle_positions


@dataclass(frozen=True)
class StoredResult:
    """A result found in an AnnData.

    Attributes
    ----------
    adata
        Object that holds it.
    key
        Its name, as stored.
    groups
        Groups -> status, or None where the cells were not grouped.
    coefficients, sources, fit_columns
        Names that the columns of the tables are made of, as stored.
    factors
        Levels of every factor of the formula.
    terms
        Term of every coefficient, as stored: "Dx[T.AD]" -> "Dx". Empty where it is not known.
    """

    adata: AnnData
    key: str
    groups: dict[str, str] | None
    coefficients: list[str]
    sources: list[str]
    fit_columns: list[str]
    factors: dict[str, list[str]]
    terms: dict[str, str] = field_of(default_factory=dict)

    @property
    def tested(self) -> list[str]:
        """Coefficients without the intercept."""
        return [c for c in self.coefficients if c not in INTERCEPTS]

    @property
    def joint_tests(self) -> list[str]:
        """Names of the joint tests of a result of :func:`scglmm.tl.contrast`."""
        entry = self.adata.uns.get(self.key)
        return _names(entry["joint"]) if isinstance(entry, Mapping) and "joint" in entry else []

    @property
    def fitted_groups(self) -> list[str | None]:
        """Groups that have results; [None] where the cells were not grouped."""
        if self.groups is None:
            return [None]
        columns = self.adata.varm[f"{self.key}_coef"].columns
        have = {group for group, _ in split_columns(columns, list(self.groups), self.coefficients).values()}
        return [group for group in self.groups if group in have]

    def coefficients_in(self, group: str | None) -> list[str]:
        """Coefficients that the fit of a group has."""
        columns = set(self.adata.varm[f"{self.key}_coef"].columns)
        return [c for c in self.coefficients if compose(group, c) in columns]

    def column(self, table: str, name: str, group: str | None = None) -> pd.Series:
        """Column of ``varm["{key}_{table}"]`` for one coefficient, source or fit column; index: genes."""
        return self.adata.varm[f"{self.key}_{table}"][compose(group, name)]

    def table(self, table: str, group: str | None = None) -> pd.DataFrame:
        """Columns of one group in ``varm["{key}_{table}"]``, under their plain names; index: the genes.

        Raises
        ------
        KeyError
            The result has no such table, as contrasts have no variance fractions.
        """
        if f"{self.key}_{table}" not in self.adata.varm:
            what = "variance fractions" if table == "varpart" else f"table {table!r}"
            msg = f"The result {self.key!r} has no {what}: there is no {self.key + '_' + table!r} in `adata.varm`."
            raise KeyError(msg)
        frame = pd.DataFrame(self.adata.varm[f"{self.key}_{table}"])
        names = {"varpart": self.sources, "fit": self.fit_columns}.get(table, self.coefficients)
        columns = [name for name in names if compose(group, name) in frame.columns]
        out = frame[[compose(group, name) for name in columns]]
        out.columns = pd.Index(columns, dtype=object)
        return out

    def gene_rows(self, coef: str, group: str | None = None) -> pd.DataFrame:
        """Results of one coefficient in one group, one row per gene in the order of `adata.var`.

        Returns
        -------
        Table with the columns of :func:`scglmm.get.nbmm_df`.
        """
        log_fc = self.column("coef", coef, group).to_numpy()
        fit = self.table("fit", group)
        return pd.DataFrame(
            {
                "gene": self.adata.var_names.to_numpy(),
                "log_fc": log_fc,
                "log2_fc": log_fc / np.log(2),
                "se": self.column("se", coef, group).to_numpy(),
                "statistic": self.column("stat", coef, group).to_numpy(),
                "df": self.column("dof", coef, group).to_numpy(),
                "pval": self.column("pval", coef, group).to_numpy(),
                "padj": self.column("padj", coef, group).to_numpy(),
                "mean": fit["mean"].to_numpy() if "mean" in fit else np.nan,
                "status": fit["status"].astype(str).to_numpy(dtype=object),
            }
        )

    def vcov(self, group: str | None = None) -> NDArray[np.float64]:
        """Covariances of the coefficients in one group: genes × p(p+1)/2, lower triangle by rows.

        Raises
        ------
        ValueError
            The list of groups is lost, and there were skipped ones.
        """
        return self._triangles("vcov", group)

    def dvcov(self, group: str | None = None) -> NDArray[np.float64] | None:
        """Give what degrees of freedom of contrasts need, genes × m × p(p+1)/2; None where it was not stored.

        Raises
        ------
        ValueError
            The list of groups is lost, and there were skipped ones.
        """
        return self._triangles("dvcov", group) if f"{self.key}_dvcov" in self.adata.varm else None

    def _triangles(self, table: str, group: str | None) -> NDArray[np.float64]:
        stored = np.asarray(self.adata.varm[f"{self.key}_{table}"])
        if self.groups is not None:
            if stored.shape[1] != len(self.groups):
                msg = f"`adata.uns[{self.key!r}]` is gone, and with it the order of groups in the covariances."
                raise ValueError(msg)
            stored = stored[:, list(self.groups).index(group)]
        subset = [self.coefficients.index(c) for c in self.coefficients_in(group)]
        return stored[..., triangle_positions(subset)]

    def find_group(self, group: str) -> str:
        """Give the stored spelling of a group.

        Raises
        ------
        KeyError
            There is no such group.
        ValueError
            The cells were not grouped, or the group was skipped.
        """
        if self.groups is None:
            msg = f"The result {self.key!r} was not fitted with `groupby`: leave out `group`."
            raise ValueError(msg)
        found = storable(group)
        if found not in self.groups:
            msg = f"No group {group!r} in the result {self.key!r}. Groups: {near_first(found, self.groups)}."
            raise KeyError(msg)
        if found not in self.fitted_groups:
            msg = f"The group {group!r} was not fitted: {self.groups[found]}."
            raise ValueError(msg)
        return found

    def find_coefficient(self, coef: str, group: str | None = None) -> str:
        """Give the stored spelling of a coefficient.

        Parameters
        ----------
        coef
            Name of a coefficient, with "/" or "∕".
        group
            Look only among the coefficients of this group.

        Raises
        ------
        KeyError
            There is no such coefficient; a factor's name is answered with the factor's coefficients.
        """
        valid = self.coefficients if group is None else self.coefficients_in(group)
        found = storable(coef)
        if found in valid:
            return found
        spelled = {field(c): c for c in valid}
        if field(coef) in spelled:
            return spelled[field(coef)]
        where = f"the result {self.key!r}" if group is None else f"group {group!r} of the result {self.key!r}"
        if own := coefficients_of(found, valid):
            listed = ", ".join(repr(c) for c in own)
            msg = f"{coef!r} is a factor, not a coefficient: ask for its coefficients, {listed}."
        elif found in self.joint_tests:
            msg = f"{coef!r} is a joint test, not a coefficient: `scglmm.get.joint_df` reads it."
        else:
            msg = f"No coefficient {coef!r} in {where}. Coefficients: {near_first(found, valid) or 'none'}."
        raise KeyError(msg)

    def only_group(self) -> str | None:
        """Give the group that needs no choice: None without groups, or the only one that was fitted.

        Raises
        ------
        ValueError
            Several groups were fitted.
        """
        if len(self.fitted_groups) != 1:
            listed = ", ".join(repr(g) for g in self.fitted_groups)
            msg = f"The result {self.key!r} has more than one group: choose one with `group`, {listed}."
            raise ValueError(msg)
        return self.fitted_groups[0]

    def only_coefficient(self, group: str | None = None) -> str:
        """Give the coefficient that needs no choice: the only one besides the intercept.

        Raises
        ------
        ValueError
            There are several, or none.
        """
        tested = [c for c in self.coefficients_in(group) if c in self.tested]
        if len(tested) != 1:
            listed = ", ".join(repr(c) for c in tested) or "none besides the intercept"
            msg = f"The result {self.key!r} has no single coefficient: choose one with `coef`, {listed}."
            raise ValueError(msg)
        return tested[0]

    def find_source(self, source: str) -> str:
        """Give the stored spelling of a source of variance; KeyError where there is none of that name."""
        found = storable(source)
        if found not in self.sources:
            listed = near_first(found, self.sources)
            msg = f"No source of variance {source!r} in the result {self.key!r}. Sources: {listed}."
            raise KeyError(msg)
        return found


def read_result(adata: AnnData, key: str = "nbmm") -> StoredResult:
    """Find a result in an AnnData.

    Parameters
    ----------
    adata
        Object with results.
    key
        Name of the result, with "/" or "∕".

    Raises
    ------
    KeyError
        There is no such result; those that exist are listed.
    """
    found = storable(key)
    if not {f"{found}_coef", f"{found}_pval", f"{found}_fit"} <= set(adata.varm.keys()):
        keys = [k.removesuffix("_coef") for k in adata.varm if k.endswith("_coef")]
        keys = [k for k in keys if f"{k}_pval" in adata.varm]
        listed = f"Results in it: {near_first(found, keys)}." if keys else "Run `scglmm.tl.nbmm` first."
        msg = f"No result {key!r} in `adata.varm`. {listed}"
        raise KeyError(msg)
    entry = adata.uns.get(found)
    entry = entry if isinstance(entry, Mapping) else {}
    if "coefficients" not in entry:
        return _from_columns(adata, found)
    groups = entry.get("groups")
    return StoredResult(
        adata=adata,
        key=found,
        groups=None if groups is None else {str(g): str(s) for g, s in groups["status"].items()},
        coefficients=_names(entry["coefficients"]),
        sources=_names(entry["sources"]),
        fit_columns=_names(entry["fit_columns"]),
        factors={str(f): _names(levels) for f, levels in dict(entry.get("factors", {})).items()},
        terms=dict(zip(_names(entry["coefficients"]), _names(entry["terms"]), strict=True)) if "terms" in entry else {},
    )


def _names(stored: Any) -> list[str]:
    return [str(name) for name in np.atleast_1d(stored)]


def _from_columns(adata: AnnData, key: str) -> StoredResult:
    """Read a result whose entry in `uns` is gone (``anndata.concat`` drops it) as far as columns tell."""
    tables = {name: adata.varm.get(f"{key}_{name}", pd.DataFrame()) for name in ("coef", "varpart", "fit")}
    columns = {name: [str(c) for c in table.columns] for name, table in tables.items()}
    groups: dict[str, str] | None = None
    if "status" not in columns["fit"]:
        # every group has this column, and nothing but a group comes before it
        ending = f"{SEPARATOR}status"
        groups = {c.removesuffix(ending): "ok" for c in columns["fit"] if c.endswith(ending)}
        longest_first = sorted(groups, key=len, reverse=True)
        for name, listed in columns.items():
            names = [
                next((c.removeprefix(f"{g}{SEPARATOR}") for g in longest_first if c.startswith(f"{g}{SEPARATOR}")), c)
                for c in listed
            ]
            columns[name] = list(dict.fromkeys(names))
    return StoredResult(adata, key, groups, columns["coef"], columns["varpart"], columns["fit"], {})


def has_inflation(adata: AnnData, key: str) -> bool:
    """Whether the run behind a result had zero inflation, as far as `adata.uns` knows."""
    entry = adata.uns.get(key)
    return isinstance(entry, Mapping) and entry.get("ziformula") is not None
