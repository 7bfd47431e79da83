"""Contrasts and joint tests of the coefficients of a result, without fitting anything again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scanpy import logging as logg

from scglmm.inference.contrasts import contrast as contrast_of
from scglmm.inference.contrasts import f_test, joint
from scglmm.inference.wald import benjamini_hochberg, two_sided
from scglmm.results.joint import JOINT, joint_column
from scglmm.results.names import storable
from scglmm.results.read import StoredResult, read_result
from scglmm.results.table import GeneTable
from scglmm.results.write import check_target, write_results

from ._hypotheses import Hypothesis, find_hypotheses

if TYPE_CHECKING:
    from anndata import AnnData

_KEPT = ("mean", "n_cells", "n_donors", "status")
"""What is copied of the fits."""


def contrast(
    adata: AnnData,
    contrasts: str | Mapping[str, Any],
    *,
    key: str = "nbmm",
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Test contrasts of the coefficients, one at a time or several jointly.

    A contrast :math:`c'\beta` of a REML fit gets a t test with its own degrees of freedom by Satterthwaite's formula,
    of a maximum likelihood fit a z test. Several contrasts jointly get an F test with the denominator degrees of
    freedom of Fai and Cornelius (1996, doi 10.1080/00949659608811740), as in lmerTest (Kuznetsova et al. 2017, doi
    10.18637/jss.v082.i13), or a chi-square test. Nothing is fitted again.

    Parameters
    ----------
    adata
        With a result of :func:`scglmm.tl.nbmm`.
    contrasts
        Name -> contrast, or a single text, which is its own name. A contrast is

        * a text: a linear combination of coefficients, ``"Dx[T.AD] - Dx[T.MCI]"``,
          ``"0.5 * (Dx[T.AD] + Dx[T.MCI])"``, with + - * / and parentheses,
        * a mapping of coefficients to weights,
        * p numbers, one for each coefficient of the result, the intercept included,
        * the name of a term of the formula, ``"Dx"``: all of its coefficients jointly,
        * a list of such contrasts, or a matrix with p columns: all of them jointly. Those that follow from the others
          are left out.
    key
        Name of the result.
    key_added
        Prefix of what is written, `"{key}_contrast"` by default.
    copy
        Return a copy with the results instead of writing to `adata`.

    Returns
    -------
    None, or the copy. Written under `key_added` as a result of its own, in which the contrasts stand for the
    coefficients, so that :func:`scglmm.get.nbmm_df`, :func:`scglmm.pl.volcano` and
    :func:`scanpy.get.rank_genes_groups_df` read it:

    ``adata.varm["nbmm_contrast_coef"]``, ``_se``, ``_stat``, ``_dof``, ``_pval``, ``_padj``
        DataFrames, genes × contrasts: estimate and standard error (natural log), statistic, degrees of freedom
        (inf for z), p-value, p-value adjusted over the genes tested (Benjamini and Hochberg 1995).
    ``adata.varm["nbmm_contrast_joint"]``
        DataFrame, where there are joint tests: columns ``"{name}|statistic"`` (F; for maximum likelihood chi-square),
        ``|df1``, ``|df2`` (inf for chi-square), ``|pval``, ``|padj``. :func:`scglmm.get.joint_df` reads them.
    ``adata.varm["nbmm_contrast_fit"]``, ``_vcov``, ``_dvcov``
        What is known of the genes' fits, and the covariance of the contrasts.
    ``adata.uns["nbmm_contrast"]``
        The model, the weights, and the arrays of `scanpy.tl.rank_genes_groups` (log2).

    Raises
    ------
    KeyError
        No such result or coefficient, or the result has no derivatives of the covariance (``varm["nbmm_dvcov"]``).
    ValueError
        A contrast cannot be read, is 0, has a constant, or has not as many weights as there are coefficients.
    TypeError
        A contrast is none of these.

    Notes
    -----
    The genes tested, over which p-values are adjusted, are those with estimates of all coefficients of the contrast.
    With results by groups every group that has the coefficients is tested; a term is tested with those that the group
    has.

    Where the variance that carries a coefficient is estimated at 0, its degrees of freedom are those of containment.
    A contrast with such a coefficient gets the fewest degrees of freedom among its coefficients, which is
    conservative.

    What is written does not follow when `key` is fitted again: run this again, too.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Sex + (1|SubID)")
    >>> scglmm.tl.contrast(adata, {"difference": "Dx[T.AD] - Sex[T.M]", "both": ["Dx[T.AD]", "Sex[T.M]"]})
    >>> scglmm.get.nbmm_df(adata, "difference", key="nbmm_contrast").shape
    (5, 10)
    >>> scglmm.get.joint_df(adata, "both").shape
    (5, 8)
    """
    result = read_result(adata, key)
    key_added = f"{result.key}_contrast" if key_added is None else key_added
    check_target(adata, key_added)
    if storable(key_added) == result.key:
        msg = f"key_added={key_added!r} would replace the result that the contrasts are taken of: choose another name."
        raise ValueError(msg)
    if copy and adata.isbacked:
        msg = "copy=True would read a backed AnnData into memory: use copy=False, or `adata.to_memory()`."
        raise ValueError(msg)
    hypotheses = find_hypotheses(contrasts, result)
    tested = _Tested(result, hypotheses)
    if copy:
        adata = adata.copy()
    tables = {group: tested.table(group) for group in result.fitted_groups}
    further = tested.joint_tests()

    def finish() -> None:
        logg.info(
            f"tested {len(hypotheses)} contrasts of {result.key!r}",
            deep=f"added\n    .varm['{key_added}_*'] and .uns['{key_added}']",
        )

    write_results(adata, key_added, tables, tested.info(), further, finish=finish)
    return adata if copy else None


class _Tested:
    """Tests of all hypotheses in all groups."""

    def __init__(self, result: StoredResult, hypotheses: Sequence[Hypothesis]) -> None:
        self.result = result
        self.single = [h for h in hypotheses if not h.joint]
        self.joint = [h for h in hypotheses if h.joint]
        if f"{result.key}_dvcov" not in result.adata.varm:
            df = np.asarray(result.adata.varm[f"{result.key}_dof"], float)
            if np.isfinite(df).any():
                msg = (
                    f"`adata.varm` has no {result.key + '_dvcov'!r}, which the degrees of freedom of contrasts need: "
                    "run `scglmm.tl.nbmm` again."
                )
                raise KeyError(msg)

    def parts(self, group: str | None, names: Sequence[str]) -> tuple[np.ndarray, ...]:
        """Estimates, covariance, its derivatives and degrees of freedom of some coefficients in one group."""
        have = self.result.coefficients_in(group)
        at = np.array([have.index(name) for name in names], int)
        row, column = np.maximum.outer(at, at), np.minimum.outer(at, at)
        place = row * (row + 1) // 2 + column
        vcov, d_vcov = self.result.vcov(group)[:, place], self.result.dvcov(group)
        d_vcov = np.empty((len(vcov), 0, *place.shape)) if d_vcov is None else d_vcov[:, :, place]
        coef, dof = (self.result.table(table, group)[names].to_numpy(float) for table in ("coef", "dof"))
        return coef, vcov, d_vcov, dof

    def table(self, group: str | None) -> GeneTable:
        """Single contrasts in one group."""
        have = self.result.coefficients_in(group)
        found = [h for h in self.single if set(h.rows[0]) <= set(have)]
        n, k = self.result.adata.n_vars, len(found)
        coef, se, dof = (np.full((n, k), np.nan) for _ in range(3))
        for j, hypothesis in enumerate(found):
            names, weights = _arrays(hypothesis.rows)
            coef[:, j], se[:, j], dof[:, j] = contrast_of(weights[0], *self.parts(group, names))
        names, L = _arrays([h.rows[0] for h in found])
        lower = np.tril_indices(k)
        _, vcov, d_vcov, _ = self.parts(group, names)
        # a gene without one of the coefficients has no covariance with any contrast that needs it
        missing = np.isnan(coef)
        vcov = L @ np.nan_to_num(vcov) @ L.T
        d_vcov = L @ np.nan_to_num(d_vcov) @ L.T
        for matrix in (vcov, d_vcov.swapaxes(0, 1)):
            matrix[..., missing[:, :, None] | missing[:, None, :]] = np.nan
        stat = coef / se
        pval = two_sided(stat, dof)
        fit = self.result.table("fit", group)
        return GeneTable(
            genes=self.result.adata.var_names,
            coefficients=[h.name for h in found],
            coef=coef,
            se=se,
            stat=stat,
            dof=dof,
            pval=pval,
            padj=benjamini_hochberg(pval),
            vcov=vcov[:, lower[0], lower[1]],
            varpart=pd.DataFrame(index=fit.index),
            fit=fit[[name for name in _KEPT if name in fit]],
            positions=np.arange(n),
            dvcov=d_vcov[..., lower[0], lower[1]] if d_vcov.shape[1] and k else None,
        )

    def joint_tests(self) -> dict[str, pd.DataFrame]:
        """Joint tests, the columns of all groups in one table."""
        chi2 = self.is_chi2
        columns = {}
        for group in self.result.fitted_groups:
            have = self.result.coefficients_in(group)
            for hypothesis in self.joint:
                rows = hypothesis.rows_for(have)
                if not rows:
                    continue
                names, L = _arrays(rows)
                statistic, df2 = joint(L, *self.parts(group, names))
                df1 = np.where(np.isnan(statistic), np.nan, len(rows))
                pval = f_test(statistic, df1, df2)
                padj = benjamini_hochberg(pval[:, None])[:, 0]
                numbers = (statistic * df1 if chi2 else statistic, df1, df2, pval, padj)
                for name, value in zip(JOINT, numbers, strict=True):
                    columns[joint_column(group, hypothesis.name, name)] = value
        if not columns:
            return {}
        return {"joint": pd.DataFrame(columns, index=self.result.adata.var_names.copy())}

    @property
    def is_chi2(self) -> bool:
        """Whether joint tests are chi-square tests: the fits are maximum likelihood."""
        return f"{self.result.key}_dvcov" not in self.result.adata.varm

    def info(self) -> dict[str, Any]:
        """Build what `adata.uns` keeps."""
        entry = self.result.adata.uns.get(self.result.key, {})
        kept = {name: entry[name] for name in ("formula", "method", "family", "references", "factors") if name in entry}
        names = self.result.coefficients
        weights = {
            h.name: np.array([[row.get(c, 0.0) for c in names] for row in h.rows]) for h in (*self.single, *self.joint)
        }
        info = kept | {
            "source": self.result.key,
            "source_coefficients": names,
            "weights": weights,
            "joint": [storable(h.name) for h in self.joint],
            "joint_test": "chi-square" if self.is_chi2 else "F",
        }
        if "params" in entry:
            info["params"] = dict(entry["params"])
        if self.result.groups is not None:
            info["groups"] = self.result.groups
        return info


def _arrays(rows: Sequence[Mapping[str, float]]) -> tuple[list[str], np.ndarray]:
    """Coefficients that take part, and their weights (rows, coefficients)."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, np.array([[row.get(name, 0.0) for name in names] for row in rows]).reshape(len(rows), len(names))
