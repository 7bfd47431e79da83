"""The methods that are compared.

Every method is a function of a `DataSet` (only genes that are tested) that returns a `Result`. Those in R are run in
batches (`rbulk`).
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable
from functools import partial

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp
from scipy import stats

import scglmm

from . import bulk, rbulk
from .simulate import COEFFICIENT, TREATED, DataSet
from .store import Result

BETWEEN = "~ offset(log(libSize)) + treatment + (1|donor)"
WITHIN = "~ offset(log(libSize)) + treatment + (1|donor) + (1|donor:treatment)"

ORDER = ("ml-z", "reml", "moderated", "reml, donor only", "edgeR-QL", "DESeq2", "PyDESeq2", "Wilcoxon, cells")
"""In tables and figures."""

REFERENCE = "edgeR-QL"  # size-adjusted power is compared with it


def mixed_model(data: DataSet, *, method: str, moderate: bool = False, simple: bool = False) -> Result | None:
    """Fit `scglmm.tl.nbmm`; None where the method has no meaning for the design."""
    if simple and not data.within:
        return None
    adata = ad.AnnData(sp.csr_matrix(data.counts), obs=data.obs)
    options = {"moderate": moderate} if can_moderate() else {}
    sc.settings.verbosity = 0
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scglmm.tl.nbmm(
            adata, WITHIN if data.within and not simple else BETWEEN, method=method, min_cells=1, n_jobs=1, **options
        )
    seconds = time.process_time() - start
    carrier = "donor:treatment" if data.within and not simple else "donor"
    tables = {name: adata.varm[f"nbmm_{name}"][COEFFICIENT].to_numpy() for name in ("pval", "coef", "se", "dof")}
    variance = adata.varm["nbmm_fit"][f"var[{carrier}]"].to_numpy()
    return Result.of(
        data.counts.shape[1],
        seconds,
        p=tables["pval"],
        beta=tables["coef"],
        se=tables["se"],
        df=tables["dof"],
        variance=variance,
    )


def can_moderate() -> bool:
    """Whether `tl.nbmm` has moderation across genes."""
    return "moderate" in inspect.signature(scglmm.tl.nbmm).parameters


def wilcoxon(data: DataSet) -> Result:
    """Rank sum test of cells on log-normalised counts, as if cells were independent: the bad example."""
    start = time.process_time()
    size = data.obs["libSize"].to_numpy()
    values = np.log1p(data.counts.multiply(np.median(size) / size[:, None]).toarray())
    treated = (data.obs["treatment"] == TREATED).to_numpy()
    found = stats.mannwhitneyu(values[treated], values[~treated], axis=0, method="asymptotic")
    return Result.of(values.shape[1], time.process_time() - start, p=found.pvalue)


Method = Callable[[DataSet], Result | None]


def python_methods() -> dict[str, Method]:
    """Name the methods that run in this process and can be run here."""
    methods: dict[str, Method] = {
        "ml-z": partial(mixed_model, method="ml"),
        "reml": partial(mixed_model, method="reml"),
        "reml, donor only": partial(mixed_model, method="reml", simple=True),
        "Wilcoxon, cells": wilcoxon,
    }
    if can_moderate():
        methods["moderated"] = partial(mixed_model, method="reml", moderate=True)
    if bulk.available():
        methods["PyDESeq2"] = bulk.pydeseq2
    return methods


def unavailable() -> dict[str, str]:
    """Say what cannot be run here, and why."""
    missing = {}
    if not can_moderate():
        missing["moderated"] = "scglmm.tl.nbmm has no argument `moderate`"
    if not bulk.available():
        missing["PyDESeq2"] = "the package pydeseq2 is not installed"
    for name in set(rbulk.METHODS) - set(rbulk.available()):
        missing[name] = "Rscript, or the Bioconductor package, is not installed"
    return missing
