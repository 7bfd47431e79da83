"""One gene once more, for pictures of what is not stored: its counts by cell, and its random effects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from scglmm.compression.nodes import make_nodes
from scglmm.compression.tables import accumulate
from scglmm.engine.fit import Fit, fit
from scglmm.engine.layout import NODE_A, NODE_E, NODE_Y, Data
from scglmm.engine.responses import Responses
from scglmm.engine.structure import analyse
from scglmm.formula import Design
from scglmm.inference.frame import Frame, frame_from_strata, make_frame, strata_of
from scglmm.inference.gene import NOT_CONVERGED, fit_gene
from scglmm.inference.separation import separating_direction
from scglmm.tl._cells import FAMILY, Cells, fitted_cells, grouping

__all__ = ["Cells", "Refit", "fitted_cells", "grouping", "refit", "without_donors"]

_CLOSE = 0.05
"""Estimates of a refit that are within this many standard errors of the stored ones are the same."""
_CLOSE_SD = 0.01
"""So are its standard deviations of random effects, and theta, within this part of the stored ones."""


@dataclass(frozen=True)
class Refit:
    """Random effects of one gene.

    Attributes
    ----------
    effects
        One table per random term: `level`, `column` ("(Intercept)" or a covariate), `mode` (conditional mode, natural
        log, per unit of the covariate) and `sd` (conditional standard deviation, given the estimated parameters).
    names
        Grouping factor of every term.
    variances
        For each term the estimated variance of every column.
    beta
        (p,) coefficients, to compare with those stored.
    theta
        Size of the negative binomial, inf at the limit.
    """

    effects: list[pd.DataFrame]
    names: list[str]
    variances: list[np.ndarray]
    beta: np.ndarray
    theta: float

    def agrees(self, coef: np.ndarray, se: np.ndarray, stored: pd.Series) -> bool:
        """Whether the fit is the one that is stored: its coefficients, or its theta and variances.

        Moderated coefficients are averages over the variances, so not those of any one fit; theta and variances are
        stored as the gene's own fit has them.
        """
        known = np.isfinite(coef) & np.isfinite(se)
        if (np.abs(self.beta - coef)[known] <= _CLOSE * se[known]).all():
            return True
        variances = [float(value) for name, value in stored.items() if str(name).startswith("var[")]
        own = np.sqrt([self.theta, *np.concatenate(self.variances)])
        return bool(np.allclose(own, np.sqrt([float(stored["theta"]), *variances]), rtol=_CLOSE_SD, atol=1e-4))


def refit(cells: Cells, gene: int) -> Refit | None:
    """Fit the gene at a position in `adata.var` again; None where it has no fit.

    The conditional modes are those of the Laplace approximation; their covariance is the inverse curvature
    ``Lambda (Lambda'Z'HZ Lambda + I)^-1 Lambda'`` there, as in lme4 (Bates et al. 2015, doi 10.18637/jss.v067.i01,
    section 2.2): uncertainty of the parameters themselves is not in it.
    """
    frame, data, shift = _gene_data(cells, gene)
    if not data.y_sum.any() or separating_direction(frame.Q, data.y_sum) is not None:
        return None
    rate = np.log(data.y_sum.sum() / float(data.nodes[NODE_E] @ data.nodes[NODE_A]))
    found = fit(data, frame.structure, frame.Q, cells.method == "reml", rate * frame.intercept)
    if found.failed:
        return None
    beta = frame.back @ (found.beta - shift * frame.intercept)
    effects, variances = _effects(cells.design, frame, data, found)
    theta = np.inf if found.theta_at_limit else float(np.exp(found.log_theta))
    return Refit(effects, [term.group for term in frame.terms], variances, beta, theta)


def without_donors(cells: Cells, gene: int, contrasts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Fit a gene without random effects, every cell a replicate.

    Parameters
    ----------
    cells, gene
        As in :func:`refit`.
    contrasts
        (k, p) weights of the coefficients.

    Returns
    -------
    Estimates, standard errors and degrees of freedom (k) of the contrasts; None where there is no fit.
    """
    frame, data, shift = _gene_data(cells, gene)
    if not data.y_sum.any() or separating_direction(frame.Q, data.y_sum) is not None:
        return None
    frame = frame_from_strata(frame.X, (), frame.n_cells)
    # its coefficients are then the contrasts
    frame = replace(frame, back=contrasts @ frame.back)
    found = fit_gene(data, frame, [None] * len(contrasts), shift, cells.method, null=False)
    return None if found.status == NOT_CONVERGED else (found.beta, found.se, found.df)


def _gene_data(cells: Cells, gene: int) -> tuple[Frame, Data, float]:
    """Model on the strata, data of one gene, and what was subtracted from the offsets.

    Raises
    ------
    ValueError
        The family is not one that is fitted here.
    """
    if cells.family != FAMILY:
        msg = (
            f"This picture fits the gene again, which is done for the family {FAMILY} by Laplace's approximation and "
            f"without zero inflation only; this result has {cells.family}. `scglmm.glmm` fits the gene alone, with its "
            "random effects in `.ranef()`."
        )
        raise ValueError(msg)
    stratum, first = strata_of(cells.design)
    nodes = make_nodes(stratum, cells.offset)
    frame = make_frame(cells.design, first, nodes.n_cells)
    tables = accumulate(cells.source.matrix, cells.rows, nodes, np.array([cells.column(gene)]))
    shift = float(cells.offset.max()) if frame.has_constant else 0.0
    return frame, Responses(nodes.grid, tables, shift)[0], shift


def _effects(design: Design, frame: Frame, data: Data, found: Fit) -> tuple[list[pd.DataFrame], list[np.ndarray]]:
    """Conditional modes and standard deviations of all terms, in the user's units."""
    terms = frame.terms
    n_strata = frame.X.shape[0]
    place = analyse(
        [t.codes for t in terms], [t.n_levels for t in terms], [t.covariates / t.scale for t in terms], n_strata
    )[1]
    roots, blocks, at = [], [], 0
    for term in terms:
        c = len(term.columns)
        root = np.zeros((c, c))
        for j in range(c):
            root[j:, j] = found.psi[at : at + c - j]
            at += c - j
        root /= term.scale[:, None]
        roots.append(root)
        blocks.append(sp.kron(sp.eye_array(term.n_levels), root))
    scale_back = sp.block_diag(blocks, format="csc")
    Z = sp.hstack([_indicators(term, n_strata) for term in terms], format="csr")
    ZL = Z @ scale_back
    M = (ZL.T @ (ZL * _curvature(data, found)[:, None]) + sp.eye_array(ZL.shape[1])).tocsc()
    factor = splu(M)
    modes = scale_back @ found.v[place]
    variance = _diagonal(factor, scale_back.tocsr())

    effects, begin = [], 0
    for term, random in zip(terms, design.random, strict=True):
        c = len(term.columns)
        # strata number the levels that occur, in the order of the design's own
        levels = np.asarray(random.levels, dtype=object)[np.unique(random.codes)]
        effects.append(
            pd.DataFrame(
                {
                    "level": np.repeat(levels, c),
                    "column": np.tile(np.array(term.columns, dtype=object), term.n_levels),
                    "mode": modes[begin : begin + c * term.n_levels],
                    "sd": np.sqrt(variance[begin : begin + c * term.n_levels]),
                }
            )
        )
        begin += c * term.n_levels
    return effects, [np.diag(root @ root.T) for root in roots]


def _indicators(term: Any, n_strata: int) -> sp.csr_array:
    """Z of one term, strata × (levels × columns), in the user's units."""
    c = len(term.columns)
    columns = (term.codes[:, None] * c + np.arange(c)).ravel()
    rows = np.repeat(np.arange(n_strata), c)
    return sp.csr_array((term.covariates.ravel(), (rows, columns)), shape=(n_strata, term.n_levels * c))


def _curvature(data: Data, found: Fit) -> np.ndarray:
    """Minus the second derivative of the log-likelihood of each stratum in its linear predictor, at the mode."""
    sizes = np.diff(data.start)
    mu = data.nodes[NODE_E] * np.exp(np.repeat(found.eta, sizes))
    if found.theta_at_limit:
        at_nodes = data.nodes[NODE_A] * mu
    else:
        theta = np.exp(found.log_theta)
        at_nodes = (data.nodes[NODE_Y] + theta * data.nodes[NODE_A]) * (mu / theta) / (1 + mu / theta) ** 2
    return np.bincount(np.repeat(np.arange(sizes.size), sizes), at_nodes, sizes.size)


def _diagonal(factor: Any, root: sp.csr_array, block: int = 256) -> np.ndarray:
    """Diagonal of ``root M^-1 root'``, some columns of the inverse at a time."""
    out = np.empty(root.shape[0])
    for begin in range(0, root.shape[0], block):
        part = root[begin : begin + block].toarray()
        out[begin : begin + block] = np.einsum("ij,ji->i", part, factor.solve(np.ascontiguousarray(part.T)))
    return out
