"""Whether a run is moderated, and what `adata.uns` keeps of its prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scanpy import logging as logg

from scglmm.inference.moderation import why_not_moderated
from scglmm.inference.prior import AT_UPPER, AT_ZERO

from ._table import variance_names

if TYPE_CHECKING:
    from scglmm.inference.frame import Frame
    from scglmm.inference.genes import GeneFits

    from ._groups import Group
    from ._options import RunOptions
    from ._prepare import Run

TREND_POINTS = 50
LEVELS = {"10%": 0.1, "50%": 0.5, "90%": 0.9}
EDGES = {
    AT_ZERO: "the data show no variance in nearly any gene, so that tests are close to those without this term",
    AT_UPPER: "the standard deviations of many genes are as large as is looked at",
}


def check_moderation(run: Run, options: RunOptions) -> None:
    """Check that a run that was asked to be moderated can be.

    Raises
    ------
    ValueError
        No group of cells can.
    """
    if not options.moderate:
        return
    reasons = [
        why_not_moderated(
            *(group.frame, int(able.sum()), options.moderate, options.method),
            family=options.family,
            inflated=group.inflation is not None,
        )
        for group, able in zip(run.fitted, run.testable, strict=True)
    ]
    if not all(reasons):
        return
    msg = f"moderate=True is not possible here: {reasons[0]}. Use moderate=False, or leave the argument out."
    raise ValueError(msg)


def describe_moderation(run: Run, fits: list[GeneFits]) -> dict[str, Any]:
    """Build what `adata.uns` keeps of the moderation of a run, or of every fitted group of cells by its name.

    Returns
    -------
    `status` ("ok"; "at_zero" or "at_upper_limit" when the prior of a term lies on an edge; "off" and why), and where
    fits are moderated `terms` (the status of each variance), `n_genes`, `trend` (quantiles of the prior of every
    standard deviation against mean expression), and the prior itself: `log_mean` (knots), `sd` (grid) and `weights`
    (knots × (0 and the grid)) by variance.
    """
    found = {group.name: _describe(group, each) for group, each in zip(run.fitted, fits, strict=True)}
    return found[None] if run.fitted[0].name is None else found


def _describe(group: Group, fits: GeneFits) -> dict[str, Any]:
    if fits.prior is None:
        return {"status": f"off: {fits.not_moderated}"}
    prior, frame = fits.prior, group.frame
    names = [name for name, *_ in variance_names(frame)]
    scale = [float(term.scale[0]) for term in frame.terms]
    statuses = [prior.status(r) for r in range(len(names))]
    where = "" if group.name is None else f"group {group.name!r}: "
    for name, status in zip(names, statuses, strict=True):
        if status in EDGES:
            logg.warning(f"{where}the prior of {name} lies on an edge: {EDGES[status]}")
    return {
        "status": next((status for status in statuses if status in EDGES), "ok"),
        "terms": dict(zip(names, statuses, strict=True)),
        "n_genes": prior.n_genes,
        "n_iterations": prior.n_iterations,
        "trend": _trend(frame, fits, names, scale),
        "log_mean": prior.knots,
        "sd": {name: np.concatenate([[0.0], np.exp(prior.log_sd)]) / s for name, s in zip(names, scale, strict=True)},
        "weights": dict(zip(names, prior.weights, strict=True)),
    }


def _trend(frame: Frame, fits: GeneFits, names: list[str], scale: list[float]) -> dict[str, np.ndarray]:
    """Quantiles of the prior of every standard deviation over the range of mean expression."""
    log_mean = np.log(fits.totals[fits.totals > 0] / frame.n_total)
    at = np.linspace(log_mean.min(), log_mean.max(), TREND_POINTS)
    trend = {"mean": np.exp(at)}
    for r, (name, s) in enumerate(zip(names, scale, strict=True)):
        quantiles = fits.prior.quantiles(at, r, np.array(list(LEVELS.values()))) / s
        trend[name] = quantiles[:, list(LEVELS).index("50%")]
        trend |= {f"{name} {label}": quantiles[:, k] for k, label in enumerate(LEVELS) if label != "50%"}
    return trend
