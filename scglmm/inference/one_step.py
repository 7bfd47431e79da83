r"""How far estimates would move without a cell or a donor, to first order: what is worth a fit.

At the mode of the random effects v and coefficients gamma, with variances and theta as they are, one Newton step of the
penalised log-likelihood from the estimates, without the rows i of the design B = [Z Lambda, Q], is

.. math:: -(H - B_i'W_iB_i)^{-1} B_i'g_i,\qquad H = B'WB + \mathrm{diag}(I, 0),

g the score and W the curvature of the cells in their linear predictors (Pregibon 1981, doi 10.1214/aos/1176345513, for
models without random effects). Variances and theta move as well where a cell or a donor is far out, so this ranks cells
and donors and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from scglmm.compression.nodes import Nodes, make_nodes
from scglmm.compression.tables import accumulate
from scglmm.engine.families import POISSON
from scglmm.engine.fit import fit
from scglmm.engine.responses import Responses

from .compressed import CODES
from .frame import Frame, RandomTerm, make_frame, roots, strata_of
from .leave_out import Study
from .separation import separating_direction

DENSE = 2_000  # random effects and coefficients up to which the inverse of H is held as one matrix
NOTHING_LEFT = 1e-12  # share of the determinant of H
LEVERAGE_OF = 20  # cells whose leverage is taken into account: those that move the estimate most without it


@dataclass(frozen=True)
class Moves:
    """Changes of p estimates.

    Attributes
    ----------
    cells
        (n, p) without a cell.
    donors
        (levels, p) without a level of the first grouping factor; infinite where nothing is left to estimate it from.
    """

    cells: np.ndarray
    donors: np.ndarray


class OneStep:
    """First-order changes of the estimates of the genes of a study.

    Zero inflation and quadrature are left aside.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.stratum, first = strata_of(study.design)
        self.nodes: Nodes = make_nodes(self.stratum, study.offset, study.tolerance, singularity=study.singularity)
        self.frame: Frame = make_frame(study.design, first, self.nodes.n_cells)
        self.shift = float(study.offset.max()) if self.frame.has_constant else 0.0
        self.family = CODES[study.options.family]
        self.rows = np.arange(study.offset.size)

    def moves(self, gene: int) -> Moves | None:
        """Give the changes of the estimates of a gene; None where there is no fit."""
        study, frame, nodes = self.study, self.frame, self.nodes
        exposure = np.bincount(self.stratum, np.exp(study.offset - self.shift), nodes.n_strata)
        tables = accumulate(study.counts, self.rows, nodes, np.array([gene]))
        data = Responses(nodes.grid, tables, self.shift, self.family, exposure)[0]
        if not data.y_sum.any() or separating_direction(frame.Q, data.y_sum) is not None:
            return None
        rate = np.log(data.y_sum.sum() / exposure.sum())
        found = fit(data, frame.structure, frame.Q, study.options.method == "reml", rate * frame.intercept)
        if found.failed:
            return None
        y = np.asarray(study.counts[:, [gene]].todense()).ravel()
        mu = np.exp(study.offset - self.shift + found.eta[self.stratum])
        over = 0.0 if self.family == POISSON or found.theta_at_limit else np.exp(-found.log_theta)
        score = (y - mu) / (1 + mu * over)
        weight = mu * (1 + y * over) / (1 + mu * over) ** 2
        return self._moves(_columns(frame, found.psi), score, weight)

    def _moves(self, B: sparse.csr_array, score: np.ndarray, weight: np.ndarray) -> Moves:
        frame, stratum = self.frame, self.stratum
        p = frame.X.shape[1]
        in_stratum, scores = (np.bincount(stratum, each, frame.n_cells.size) for each in (weight, score))
        penalty = np.r_[np.ones(B.shape[1] - p), np.zeros(p)]
        H = splu((B.T @ (B * in_stratum[:, None]) + sparse.diags_array(penalty)).tocsc())
        contrasts = np.zeros((B.shape[1], p))
        contrasts[-p:] = frame.back.T
        along = B @ H.solve(contrasts)
        cells = -along[stratum] * score[:, None]
        for i in np.unique(np.argsort(-np.abs(cells), axis=0)[:LEVERAGE_OF]):
            row = B[[stratum[i]]].toarray().ravel()
            cells[i] /= max(1 - weight[i] * (row @ H.solve(row)), 1e-3)
        if not frame.terms:
            return Moves(cells, np.empty((0, p)))
        codes = frame.terms[0].codes
        order = np.argsort(codes, kind="stable")
        own = B[order]
        rows = own.indptr[np.searchsorted(codes[order], np.arange(frame.terms[0].n_levels + 1))]
        row_of = np.repeat(np.arange(order.size), np.diff(own.indptr))
        whole = H.solve(np.eye(B.shape[1])) if B.shape[1] <= DENSE else None
        donors = np.full((rows.size - 1, p), np.inf)
        for level in range(donors.shape[0]):
            entries = slice(rows[level], rows[level + 1])
            columns, place = np.unique(own.indices[entries], return_inverse=True)
            strata = row_of[entries]
            block = np.zeros((strata[-1] - strata[0] + 1, columns.size))
            block[strata - strata[0], place] = own.data[entries]
            at = order[strata[0] : strata[-1] + 1]
            # (H - P A P')^-1 P = H^-1 P (I - A P'H^-1 P)^-1, P the columns in which the level has entries
            if whole is None:
                unit = np.zeros((B.shape[1], columns.size))
                unit[columns, np.arange(columns.size)] = 1.0
                inverse = H.solve(unit)
            else:
                inverse = whole[:, columns]
            left = np.eye(columns.size) - (block.T * in_stratum[at]) @ block @ inverse[columns]
            if abs(np.linalg.det(left)) > NOTHING_LEFT:
                step = inverse[-p:] @ np.linalg.solve(left, block.T @ scores[at])
                donors[level] = -frame.back @ step
        return Moves(cells, donors)


def _columns(frame: Frame, psi: np.ndarray) -> sparse.csr_array:
    """B on the strata, from the engine's parameters."""
    blocks = [
        _indicators(term) @ sparse.kron(sparse.eye_array(term.n_levels), root / term.scale[:, None])
        for term, root in zip(frame.terms, roots(frame, psi), strict=True)
    ]
    return sparse.hstack([*blocks, sparse.csr_array(frame.Q)], format="csr")


def _indicators(term: RandomTerm) -> sparse.csr_array:
    """Z of one term, strata × (levels × columns), in the user's units."""
    c, n = len(term.columns), term.codes.size
    columns = (term.codes[:, None] * c + np.arange(c)).ravel()
    rows = np.repeat(np.arange(n), c)
    return sparse.csr_array((term.covariates.ravel(), (rows, columns)), shape=(n, term.n_levels * c))
