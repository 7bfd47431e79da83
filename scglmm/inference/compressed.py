"""One response vector compressed: what the engine is given, and the way back to rows, coefficients and units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from scglmm.compression.nodes import ZERO_INFLATED, make_nodes
from scglmm.compression.precision import RELATIVE_ERRORS, tolerance_of
from scglmm.engine.families import GAUSSIAN, NB2, POISSON
from scglmm.engine.layout import Data
from scglmm.engine.responses import response_data

from .frame import Frame, make_frame, orthogonal, restrict, strata_of
from .gene import independent, on_strata
from .separation import null_space, separating_direction

if TYPE_CHECKING:
    from scglmm.formula import Design

CODES = {"gaussian": GAUSSIAN, "poisson": POISSON, "nbinom2": NB2}
EXACT = 1e-10  # a residual standard deviation below this, relative to the response, is rounding error


@dataclass(frozen=True)
class Compressed:
    """One response on the strata of its design.

    Attributes
    ----------
    design, frame, data
        The design on the rows, the model on its strata, the response there.
    stratum
        (n,) stratum of every row, of all strata.
    offset
        (n,) offset of every row.
    scale, shift, start
        Gaussian responses are fitted as residuals from least squares, whose coefficients are `start` (p,), in units of
        their standard deviation `scale`; counts with `shift` subtracted from their offsets.
    zi_back
        (k, k) zero-inflation coefficients are ``zi_back @ zi``.
    strata, columns
        (S,), (p,) bool: strata and coefficients of `frame`; all of them unless the response is separated.
    lost
        (p,) bool: coefficients without a finite estimate.
    """

    design: Design
    frame: Frame
    data: Data
    stratum: np.ndarray
    offset: np.ndarray
    scale: float
    shift: float
    start: np.ndarray
    zi_back: np.ndarray
    strata: np.ndarray
    columns: np.ndarray
    lost: np.ndarray

    def beta(self, engine: np.ndarray) -> np.ndarray:
        """Coefficients of the columns of the frame from the engine's."""
        frame = self.frame
        return self.start[self.columns] + frame.back @ (self.scale * engine - self.shift * frame.intercept)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Put (..., columns of the frame, columns of the frame) among all coefficients, NaN for those without."""
        p = self.lost.size
        full = np.full((*values.shape[:-2], p, p), np.nan)
        at = np.flatnonzero(self.columns)
        full[..., at[:, None], at] = values
        full[..., self.lost, :] = np.nan
        full[..., :, self.lost] = np.nan
        return full

    def on_rows(self, of_strata: np.ndarray) -> np.ndarray:
        """Values on the strata of the frame, on the rows; -inf on rows that are left out."""
        everywhere = np.full(self.strata.size, -np.inf)
        everywhere[self.strata] = of_strata
        return everywhere[self.stratum]

    def on_levels(self, values: list[np.ndarray], missing: list[np.ndarray]) -> list[np.ndarray]:
        """Values on the levels of the terms of the frame, on all levels of the design."""
        result = []
        first = np.unique(self.stratum, return_index=True)[1]
        for term, known, other in zip(self.design.random, values, missing, strict=True):
            level = np.unique(term.codes[first], return_inverse=True)[1]
            full = np.empty((level.max() + 1, *known.shape[1:]))
            full[:] = other
            full[np.unique(level[self.strata])] = known
            result.append(full)
        return result


def compress(design: Design, y: np.ndarray, family: str, zi_design: Design | None) -> Compressed:
    """Compress one response.

    Raises
    ------
    ValueError
        A Gaussian response without residuals.
    """
    n, p = design.X.shape
    stratum, first = strata_of(design, [] if zi_design is None else list(zi_design.X.T))
    offset = np.zeros(n) if design.offset is None else design.offset
    # Nodes of a Gaussian response are exact.
    tolerance = RELATIVE_ERRORS[0] if family == "gaussian" else tolerance_of(float(np.sum(y)))
    nodes = make_nodes(stratum, offset, tolerance, singularity=np.pi if zi_design is None else ZERO_INFLATED)
    frame = make_frame(design, first, nodes.n_cells)
    zi, zi_back = None, np.empty((0, 0))
    if zi_design is not None:
        zi, zi_back, _ = orthogonal(zi_design.X[first], nodes.n_cells / n)
    scale, shift, start = 1.0, 0.0, np.zeros(p)
    if family == "gaussian":
        y, scale, start = _residuals(frame, stratum, y - offset)
    elif frame.has_constant:
        shift = float(offset.max())
    return Compressed(
        design=design,
        frame=frame,
        data=response_data(nodes, y, CODES[family], zi, shift),
        stratum=stratum,
        offset=offset,
        scale=scale,
        shift=shift,
        start=start,
        zi_back=zi_back,
        strata=np.ones(nodes.n_strata, np.bool_),
        columns=np.ones(p, np.bool_),
        lost=np.zeros(p, np.bool_),
    )


def _residuals(frame: Frame, stratum: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Residuals from least squares in units of their standard deviation, that unit, and the coefficients."""
    beta, residuals = np.zeros(frame.Q.shape[1]), y
    for _ in range(2):  # the second time for the rounding error of large means
        # Columns of Q are orthogonal over the rows, with mean square 1.
        step = frame.Q.T @ np.bincount(stratum, residuals, frame.Q.shape[0]) / y.size
        beta, residuals = beta + step, residuals - (frame.Q @ step)[stratum]
    scale = float(np.sqrt(np.mean(residuals**2)))
    if not scale > EXACT * np.abs(y).max():
        msg = (
            "The fixed effects reproduce the response exactly: no residuals are left to fit random effects to. Is the "
            "response, or a copy of it, among the fixed effects?"
        )
        raise ValueError(msg)
    return residuals / scale, scale, frame.back @ beta


def without_separated(model: Compressed) -> Compressed | None:
    """Leave out the strata that separation takes away, and the coefficients that lose their estimate by it.

    As for a gene (`scglmm.inference.gene`): strata on which a separating direction bites have mean 0 in the limit, and
    a coefficient that takes part in a direction that is flat on the others has no estimate.

    Returns
    -------
    The model itself where nothing is separated, None where nothing but constants is left.
    """
    while (direction := separating_direction(model.frame.Q, model.data.y_sum)) is not None:
        frame = model.frame
        strata = ~(frame.Q @ direction < -1e-8)
        flat = frame.back @ null_space(frame.Q[strata])
        moves = np.abs(flat).max(axis=1) * np.abs(frame.X).max(axis=0)
        moved = moves > 1e-6 * moves.max()
        if moved[np.ptp(frame.X, axis=0) > 0].all():
            return None
        kept = ~moved
        kept[independent(frame.X[np.ix_(strata, moved)], np.flatnonzero(moved), flat.shape[1])] = True
        lost, columns, remaining = model.lost.copy(), model.columns.copy(), model.strata.copy()
        at = np.flatnonzero(model.columns)
        lost[at[moved]] = True
        columns[at] = kept
        remaining[np.flatnonzero(model.strata)] = strata
        smaller = restrict(frame, strata, kept)
        model = replace(
            model, frame=smaller, data=on_strata(model.data, strata), strata=remaining, columns=columns, lost=lost
        )
    return model
