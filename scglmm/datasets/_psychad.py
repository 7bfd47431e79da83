"""The bundled simulation of the PsychAD microglia."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.resources import as_file, files
from pathlib import Path

import anndata as ad

_NAME = "psychad_sim.h5ad"


def psychad() -> ad.AnnData:
    """Load simulated microglia of 249 donors, made after published figures of the PsychAD cohort.

    Every gene is drawn from a negative binomial mixed model with the donor as random effect, so the truth is
    known. ``PTPRG`` has the parameters published for it (overdispersion, donor variance, effects of Dx, Age
    and Sex, share of zeros), and its sample is conditioned on them; the others, ``SIM001`` to ``SIM399``,
    cover mean counts from 0.002 to 20. No value was measured in a real cell. The file is read from the
    installed package or, in a source checkout, from ``data/``, where the script that made it lies as well.

    Returns
    -------
    About 60,000 cells × 400 genes with raw counts in ``X`` (CSR, float32) and

    ``obs["SubID"]``
        Donor, 249 categories of 10 to 2,000 cells.
    ``obs["Dx"]``, ``obs["Age"]``, ``obs["Sex"]``
        Covariates of the donor: Control (the reference) or AD, years, F (the reference) or M.
    ``obs["libSize"]``
        Total count of the cell over all its genes; the 400 in ``X`` are a part of them.
    ``var``
        True parameters on the natural log scale: ``beta0`` (at age 0, per count of ``libSize``),
        ``beta_DxAD``, ``beta_Age`` (per year), ``beta_SexM``, ``var_SubID`` (variance of the donor effects),
        ``theta`` (NB2 size); and the realised ``mean`` count and share of ``zeros``.
    ``uns["PTPRG"]``
        Variance fractions of PTPRG: ``published``, and ``expected`` from the truth.

    Raises
    ------
    FileNotFoundError
        The data file is neither in the package nor in the source checkout.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()
    >>> adata.n_vars
    400
    """
    packaged = files(__package__) / _NAME
    with ExitStack() as stack:
        path = stack.enter_context(as_file(packaged)) if packaged.is_file() else _checkout() / _NAME
        if not path.is_file():
            msg = (
                f"{_NAME} is neither in the installed package nor at {path}. Install scglmm again, or run "
                "`python data/simulate_psychad.py` in a source checkout."
            )
            raise FileNotFoundError(msg)
        return ad.read_h5ad(path)


def _checkout() -> Path:
    """Return the ``data`` folder of a source checkout or editable install."""
    return Path(__file__).resolve().parents[2] / "data"
