"""Which columns of a design are linear combinations of the columns before them."""

from __future__ import annotations

import numpy as np

TOLERANCE = 1e-7
ROWS = 1 << 16


def aliased_columns(x: np.ndarray, intercept: bool) -> dict[int, dict[int, float]]:
    """Find the columns that add nothing, and what they are made of.

    Columns are taken in order, as R's `lm` does: the later of two columns that say the same is the aliased one. A
    column counts as aliased if less than 1e-7 of its length is left once the columns before it are taken out; with an
    intercept its length is measured about its mean, so neither the unit of a covariate nor its zero matters.

    Parameters
    ----------
    x
        Design (n, p).
    intercept
        Whether the first column is 1 everywhere.

    Returns
    -------
    For each aliased column the coefficients of the earlier columns it is made of; nothing where it is 0 everywhere.
    """
    mean, low, high = _range(x)
    shift = mean if intercept else np.zeros(x.shape[1])
    scale = np.maximum(high - shift, shift - low)
    scale[scale == 0] = 1.0
    r = _triangle(x, shift, scale)
    length = np.linalg.norm(r, axis=0)
    # rounding in the mean leaves a constant column some units of its last place
    floor = 1e-12 * np.abs(shift) / scale * np.sqrt(len(x))
    kept = [0] if intercept else []
    basis = np.zeros((len(r), 0))
    aliased = {}
    for j in range(len(kept), x.shape[1]):
        rest = r[:, j].copy()
        for _ in range(2):  # once more, because the first pass loses what rounding took
            rest -= basis @ (basis.T @ rest)
        left = np.linalg.norm(rest)
        if left > max(TOLERANCE * length[j], floor[j]):
            kept.append(j)
            basis = np.column_stack([basis, rest / left])
        else:
            aliased[j] = _combination(
                r, j, kept[1:] if intercept else kept, shift, scale, max(1e-6 * length[j], floor[j]), intercept
            )
    return aliased


def _range(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, least and largest value of every column, by blocks of rows that fit into the cache."""
    total, low, high = np.zeros(x.shape[1]), np.full(x.shape[1], np.inf), np.full(x.shape[1], -np.inf)
    for start in range(0, len(x), ROWS):
        block = np.ascontiguousarray(x[start : start + ROWS].T)
        total += block.sum(axis=1)
        low, high = np.minimum(low, block.min(axis=1)), np.maximum(high, block.max(axis=1))
    return total / len(x), low, high


def _triangle(x: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """R of the QR decomposition of the shifted and scaled columns, by blocks of rows."""
    r = np.zeros((0, x.shape[1]))
    for start in range(0, len(x), ROWS):
        r = np.asarray(np.linalg.qr(np.vstack([r, (x[start : start + ROWS] - shift) / scale]), mode="r"))
    return r


def _combination(
    r: np.ndarray,
    j: int,
    kept: list[int],
    shift: np.ndarray,
    scale: np.ndarray,
    least: float,
    intercept: bool,
) -> dict[int, float]:
    """Coefficients, in the user's units, of the columns that column `j` is made of."""
    scaled = np.linalg.lstsq(r[:, kept], r[:, j], rcond=None)[0]
    matters = np.abs(scaled) * np.linalg.norm(r[:, kept], axis=0) > least
    parts = {i: float(c * scale[j] / scale[i]) for i, c, used in zip(kept, scaled, matters, strict=True) if used}
    if intercept:
        constant = shift[j] - sum(c * shift[i] for i, c in parts.items())
        size = abs(shift[j]) + sum(abs(c * shift[i]) for i, c in parts.items())
        if abs(constant) > 1e-8 * (size + scale[j] * TOLERANCE):
            parts = {0: float(constant)} | parts
    return parts
