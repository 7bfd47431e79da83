"""Numbers as R prints them: a column shares its decimals, small p-values are named by their bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SMALLEST_P = 2.2e-16
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"), (0.1, "."))
LEGEND = "Signif. codes:  0 ‘***’ 0.001 ‘**’ 0.01 ‘*’ 0.05 ‘.’ 0.1 ‘ ’ 1"


def decimals(values: Sequence[float], digits: int = 4, most: int = 6) -> int:
    """Decimals at which the smallest value that is not 0 has `digits` significant digits, within limits."""
    sizes = np.abs([v for v in np.asarray(values, float) if np.isfinite(v) and v != 0])
    if not len(sizes):
        return 1
    return int(np.clip(digits - 1 - np.floor(np.log10(sizes.min())), 0, most))


def column(values: Sequence[float], places: int, least: int = 0) -> list[str]:
    """Write numbers with a fixed number of decimals; as powers of ten where that would show nothing or far too much.

    Parameters
    ----------
    values
        Numbers.
    places
        Decimals.
    least
        Significant digits that a number must show to be written with decimals.
    """
    texts = []
    for value in np.asarray(values, float):
        if np.isnan(value):
            texts.append("NA")
        elif np.isinf(value):
            texts.append("Inf" if value > 0 else "-Inf")
        elif value != 0 and (abs(value) < 0.5 * 10.0 ** (least - places) or abs(value) >= 1e9):
            texts.append(f"{value:.{max(least, 2)}e}")
        else:
            texts.append(f"{value:.{places}f}")
    return texts


def p_value(p: float) -> str:
    """Write one p-value."""
    if np.isnan(p):
        return "NA"
    if p < SMALLEST_P:
        return "< 2e-16"
    return f"{p:.2e}" if p < 1e-4 else f"{p:.3g}" if p < 0.1 else f"{p:.3f}"


def stars(p: float) -> str:
    """Write the stars of one p-value."""
    return "" if np.isnan(p) else next((mark for bound, mark in STARS if p <= bound), "")


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Lines of a table: columns right-aligned, those in `left` left-aligned."""
    table = [list(header), *map(list, rows)]
    widths = [max(len(row[j]) for row in table) for j in range(len(header))]
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if j in left else cell.rjust(width)
            for j, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(" ".join(cells).rstrip())
    return lines
