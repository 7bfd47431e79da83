"""Variance fractions once more, by another definition, from what a run has stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scglmm.inference.varpart import COUNT_NOISE, METHODS, RESIDUALS, fractions, mean_rate
from scglmm.results.names import compose
from scglmm.results.read import has_inflation, read_result
from scglmm.results.write import assign, check_target

if TYPE_CHECKING:
    from anndata import AnnData


def varpart(adata: AnnData, *, key: str = "nbmm", method: str = "trigamma") -> None:
    """Recompute the variance fractions of a result by another definition, without the counts.

    With G the variance over cells of the linear predictor without the offset, q that of each term, D the
    distribution-specific variance and D_inf the part of it that infinitely many reads would leave: a term has
    ``G/(G+D) q/sum(q)``, CountNoise ``(D-D_inf)/(G+D)``, Residuals ``D_inf/(G+D)`` (Nakagawa, Johnson and Schielzeth
    2017, doi 10.1098/rsif.2017.0213). Answers of different definitions differ a lot: name the one you used.

    Parameters
    ----------
    adata
        With a result of :func:`scglmm.tl.nbmm`.
    key
        Name of the result.
    method
        Distribution-specific variance D of NB2 with mean count lambda: `"trigamma"`, psi1(1/(1/lambda + 1/theta));
        `"lognormal"`, log(1 + 1/lambda + 1/theta); `"delta"`, 1/lambda + 1/theta. For the Poisson family
        1/theta = 0, and so is D_inf.

    Returns
    -------
    None. Replaces ``adata.varm["{key}_varpart"]`` (genes × sources, rows sum to 1) and
    ``adata.uns[key]["varpart_method"]``.

    Raises
    ------
    KeyError
        There is no result of that name, or its entry in `adata.uns` is gone.
    ValueError
        The method is not known, the result has zero inflation, or `adata` is a view of a backed object.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> scglmm.tl.varpart(adata, method="lognormal")
    >>> bool(adata.varm["nbmm_varpart"].sum(axis=1).round(6).eq(1).all())
    True
    """
    if method not in METHODS:
        msg = f"method={method!r} is not one of {', '.join(map(repr, METHODS))}."
        raise ValueError(msg)
    check_target(adata, key, "key")
    result = read_result(adata, key)
    if result.key not in adata.uns:
        msg = f"`adata.uns` has no entry {result.key!r}, which knows the offset of the run: run `scglmm.tl.nbmm` again."
        raise KeyError(msg)
    if has_inflation(adata, result.key):
        msg = (
            f"The result {key!r} has zero inflation ({adata.uns[result.key]['ziformula']}): variance fractions are not "
            "defined for it. Run `scglmm.tl.nbmm` without ziformula under another key_added."
        )
        raise ValueError(msg)
    result.table("varpart", result.fitted_groups[0])  # fails for a result without variance fractions
    old = pd.DataFrame(adata.varm[f"{result.key}_varpart"])
    new = old.copy()
    entry = adata.uns[result.key]
    for group in result.fitted_groups:
        shares = result.table("varpart", group).drop(columns=[COUNT_NOISE, RESIDUALS])
        fit = result.table("fit", group)
        exposure = float(entry["log_mean_exposure"] if group is None else entry["groups"]["log_mean_exposure"][group])
        rate = mean_rate(fit["null_intercept"].to_numpy(), exposure, fit["null_var"].to_numpy())
        # Within a gene the fractions of the terms are proportional to their variances, which is all that is needed.
        values = fractions(fit["var_linpred"].to_numpy(), shares.to_numpy(), rate, fit["theta"].to_numpy(), method)
        for name, column in zip([*shares.columns, COUNT_NOISE, RESIDUALS], values.T, strict=True):
            new[compose(group, name)] = column
    assign(adata, {f"{result.key}_varpart": new}, result.key, dict(entry) | {"varpart_method": method})
