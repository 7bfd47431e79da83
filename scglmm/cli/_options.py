"""Options that commands share, and how scanpy is told to be quiet."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import scanpy as sc

from scglmm.inference.varpart import METHODS as VARPART_METHODS
from scglmm.tl._options import FAMILIES, METHODS

RUN_OPTIONS = (
    click.argument("h5ad", type=click.Path(path_type=Path)),
    click.argument("formula"),
    click.option("--layer", help="Layer with the counts; X by default."),
    click.option("--use-raw", is_flag=True, help="Take the counts from raw."),
    click.option("--mask-var", metavar="COLUMN", help="Boolean column of var: the genes to fit."),
    click.option("--groupby", metavar="COLUMN", help="Column of obs (cell types): fit each group on its own."),
    click.option(
        "--padj-across", is_flag=True, help="Adjust p-values over all groups together, not within each group."
    ),
    click.option("--min-donors", default=3, show_default=True, help="Skip groups with fewer donors."),
    click.option("--method", type=click.Choice(METHODS), default="reml", show_default=True),
    click.option("--family", type=click.Choice(FAMILIES), default="nbinom2", show_default=True),
    click.option("--ziformula", metavar="FORMULA", help='Zero inflation: "~ 1" or "~ x". None by default.'),
    click.option(
        "--n-quad",
        default=1,
        show_default=True,
        help="Points of adaptive Gauss-Hermite quadrature (--method ml, one random term); 1 is Laplace.",
    ),
    click.option(
        "--moderate/--no-moderate",
        default=None,
        help="Borrow information across genes (REML). By default wherever it can be done.",
    ),
    click.option("--min-cells", default=10, show_default=True, help="Genes with counts in fewer cells are not fitted."),
    click.option(
        "--na-action",
        type=click.Choice(["raise", "drop"]),
        default="raise",
        show_default=True,
        help="Cells with a missing value in a column of the formula: refuse them or leave them out.",
    ),
    click.option(
        "--varpart-method",
        type=click.Choice(VARPART_METHODS),
        default="trigamma",
        show_default=True,
        help="Definition of the variance fractions.",
    ),
    click.option("--n-jobs", type=int, default=1, show_default=True, help="Workers; -1 for all processors."),
    click.option("--backed", is_flag=True, help="Leave the matrix on disk and read it piece by piece."),
    click.option(
        "--max-memory",
        metavar="SIZE",
        help='Memory to take beside the data, such as "2GB". By default a quarter of what is free.',
    ),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no messages but warnings and errors."),
)


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the arguments and options that say what to fit."""
    for option in reversed(RUN_OPTIONS):
        command = option(command)
    return command


def set_verbosity(quiet: bool) -> None:
    """Let scanpy's messages and the progress bar go to stderr, or nowhere."""
    sc.settings.logfile = sys.stderr
    sc.settings.verbosity = 0 if quiet else 2


def text_table(table: Any) -> str:
    """Write a DataFrame for people: text to the left, numbers to the right."""
    left = {name: "left" for name in table.columns if table[name].dtype.kind not in "iuf"}
    cells = {name: [_cell(value) for value in table[name]] for name in table.columns}
    width = {name: max(len(str(name)), *map(len, values), 0) for name, values in cells.items()}
    lines = []
    for row in [list(map(str, table.columns)), *zip(*cells.values(), strict=True)]:
        fields = [
            text.ljust(width[name]) if name in left else text.rjust(width[name])
            for name, text in zip(table.columns, row, strict=True)
        ]
        lines.append("  ".join(fields).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
