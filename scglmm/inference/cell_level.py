"""Nodes and model of a run: interpolated in covariates that differ between cells, wherever that is cheaper.

The nodes are placed for effects up to a bound. A gene whose effects turn out larger is fitted again with nodes for
larger ones, and in the end with its cells as they are: results always keep the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from scglmm.compression.nodes import Nodes, make_nodes
from scglmm.compression.tensor import Tensor, Variation, cost, find_variation, make_tensor, may_vary
from scglmm.engine.structure import analyse

from .frame import Frame

if TYPE_CHECKING:
    from scglmm.formula import Design

BOUNDS = (0.3, 1.2, 5.0)  # change of the linear predictor with one standard deviation of a covariate, natural log
CHEAPER = 0.8  # nodes in covariates have to cost at most this part of what the cells cost


@dataclass(frozen=True)
class Placed:
    """Nodes, and the model on them.

    Attributes
    ----------
    nodes, frame
        What `scglmm.inference.genes.fit_parts` wants.
    finer
        Makes the nodes that a gene with larger effects needs; None where the nodes are right for any effects.
    covariates
        Names of the columns of the design that are interpolated; none where rows do not differ within strata.
    bound
        Largest change of the linear predictor with one standard deviation of a covariate that the nodes are for.
    """

    nodes: Nodes
    frame: Frame
    finer: Callable[[], Placed] | None = None
    covariates: tuple[str, ...] = ()
    bound: float = np.inf


def place_models(
    designs: Sequence[Design],
    frames: Sequence[Frame],
    stratum: np.ndarray,
    offset: np.ndarray,
    *,
    tolerance: float,
    singularity: float = np.pi,
    interpolate: bool = True,
    bounds: Sequence[float] = BOUNDS,
    finer: Nodes | None = None,
) -> list[Placed]:
    """Place the same nodes for several models of the same cells.

    Parameters
    ----------
    designs
        On the cells.
    frames
        On the strata that share every row of all designs.
    stratum, offset
        (n,) those strata, and the offset, of every cell.
    tolerance, singularity
        See `scglmm.compression.nodes.make_nodes`.
    interpolate
        Whether nodes in covariates may be used: zero inflation and quadrature have functions of their own.
    bounds
        Largest effects to try.
    finer
        See `scglmm.compression.nodes.make_nodes`.
    """
    exact = [
        Placed(make_nodes(stratum, offset, tolerance, singularity=singularity, finer=finer), frame) for frame in frames
    ]
    if not interpolate or not may_vary(stratum):
        return exact
    codes, columns, _ = _columns(designs)
    variation = find_variation(codes, columns)
    if variation is None:
        return exact
    return _rung(designs, exact, variation, offset, tolerance, singularity, tuple(bounds))


def _columns(designs: Sequence[Design]) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Levels of the grouping factors, and all numeric columns with their names."""
    codes = [term.codes for design in designs for term in design.random]
    columns, names = [], []
    for design in designs:
        columns += list(design.X.T)
        names += list(design.columns)
        for term in design.random:
            columns += list(term.covariates.T)
            names += list(term.columns)
    return codes, columns, names


def _rung(
    designs: Sequence[Design],
    exact: list[Placed],
    variation: Variation,
    offset: np.ndarray,
    tolerance: float,
    singularity: float,
    bounds: tuple[float, ...],
) -> list[Placed]:
    """Nodes for effects up to the first bound, or the cells themselves."""
    if not bounds:
        return exact
    tensor = make_tensor(variation, offset, tolerance, bounds[0], singularity)
    if tensor.cost > CHEAPER * cost(exact[0].nodes):
        return exact
    _, columns, names = _columns(designs)
    covariates = tuple(dict.fromkeys(names[k] for k in variation.varying))
    rows = [tensor.rows(column, k) for k, column in enumerate(columns)]
    placed = []
    for k, (design, one) in enumerate(zip(designs, exact, strict=True)):

        def finer(k: int = k) -> Placed:
            return _rung(designs, exact, variation, offset, tolerance, singularity, bounds[1:])[k]

        size = design.X.shape[1] + sum(term.covariates.shape[1] for term in design.random)
        frame = on_nodes(one.frame, design, tensor, rows[:size])
        rows = rows[size:]
        placed.append(Placed(tensor.nodes, frame, partial(finer), covariates, bounds[0]))
    return placed


def on_nodes(frame: Frame, design: Design, tensor: Tensor, rows: list[np.ndarray]) -> Frame:
    """Take a model to nodes in covariates.

    Parameters
    ----------
    frame
        The model on strata that share all columns: scales and moments over the cells stay what they are there.
    design
        On the cells.
    tensor
        The nodes.
    rows
        Values on the rows of the nodes of the columns of X and then of the covariates of the random terms.
    """
    p = frame.X.shape[1]
    X = np.stack(rows[:p], axis=1)
    terms, at = [], p
    for term, own in zip(frame.terms, design.random, strict=True):
        c = len(term.columns)
        _, codes = np.unique(own.codes[tensor.cell], return_inverse=True)
        terms.append(replace(term, codes=codes, covariates=np.stack(rows[at : at + c], axis=1)))
        at += c
    structure, _ = analyse(
        [t.codes for t in terms], [t.n_levels for t in terms], [t.covariates / t.scale for t in terms], X.shape[0]
    )
    return replace(
        frame,
        X=X,
        Q=np.ascontiguousarray(X @ frame.back),
        terms=tuple(terms),
        structure=structure,
        n_cells=np.add.reduceat(tensor.nodes.weights, tensor.nodes.start[:-1]),
        limits=tensor.limits,
    )
