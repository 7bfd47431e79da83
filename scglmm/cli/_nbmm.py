"""``scglmm nbmm``: fit every gene."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pandas as pd
import scanpy as sc

import scglmm
from scglmm.results import StoredResult, read_result
from scglmm.results.names import readable, storable
from scglmm.tl._checkpoint import Checkpoint
from scglmm.tl._groups import prepare_groups
from scglmm.tl._options import parse_right_side

from ._errors import reports_errors
from ._files import check_writable, complete_files, opened, temporary, write_with_result, writing
from ._options import run_options, set_verbosity, text_table

if TYPE_CHECKING:
    from anndata import AnnData

STDOUT = "-"


@click.command()
@run_options
@click.option("--key-added", default="nbmm", show_default=True, help="Name of the result.")
@click.option("--out", type=click.Path(path_type=Path), help="h5ad file to write: the input with the results.")
@click.option(
    "--csv",
    help="Table to write: csv, or tsv if the name says so, compressed if it ends with .gz; - for stdout.",
)
@click.option(
    "--checkpoint",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Keep fits in FOLDER as they come in, so that the same command goes on after the process was killed. Removed "
    "once the results are written.",
)
@click.option("--coef", multiple=True, help="Coefficients in the table; all but the intercept by default. Repeatable.")
@reports_errors
def nbmm(
    h5ad: Path,
    formula: str,
    out: Path | None,
    csv: str | None,
    checkpoint: Path | None,
    coef: tuple[str, ...],
    key_added: str,
    backed: bool,
    quiet: bool,
    **arguments: Any,
) -> None:
    """Fit a negative binomial mixed model to every gene of H5AD.

    FORMULA is lme4's, in quotes: "~ offset(log(libSize)) + Dx + Age + (1|SubID)".

    A summary goes to stdout, the results to the files named by --out and --csv, of which one is needed.
    """
    if out is None and csv is None:
        msg = "Name a file for the results: --out, --csv, or both ('--csv -' for stdout)."
        raise click.UsageError(msg)
    set_verbosity(quiet)
    table_path = None if csv in (None, STDOUT) else Path(csv)
    for path in (out, table_path):
        if path is not None:
            check_writable(path)
    with opened(h5ad, backed) as adata, complete_files() as pending:
        if coef and csv is not None:
            check_coefficients(adata, formula, coef, key_added, arguments)
        scglmm.tl.nbmm(adata, formula, key_added=key_added, checkpoint=checkpoint, **arguments)
        table = result_table(adata, key_added, coef) if csv is not None else None
        if table_path is not None:
            pending[table_path] = temporary(table_path)
            with writing(table_path):
                write_table(table, pending[table_path], table_path.name)
        if out is not None:
            pending[out] = temporary(out)
            with writing(out):
                write_with_result(adata, h5ad, pending[out], key_added)
        summary = summarise(adata, key_added)
    if csv == STDOUT:
        click.echo(table.to_csv(index=False), nl=False)
    else:
        click.echo(summary)
    if checkpoint is not None:
        Checkpoint(checkpoint).remove()


def check_coefficients(
    adata: AnnData, formula: str, coef: tuple[str, ...], key: str, arguments: dict[str, Any]
) -> None:
    """Check, before the fits, that the model has the coefficients that the table is to show.

    Raises
    ------
    KeyError
        One is not there.
    """
    how = {name: arguments[name] for name in ("groupby", "na_action", "min_donors")}
    with sc.settings.verbosity.override(0):
        groups = prepare_groups(parse_right_side(formula), adata.obs, **how)
    names = dict.fromkeys(name for group in groups if not group.reason for name in group.design.columns)
    expected = StoredResult(adata, key, None, [storable(name) for name in names], [], [], {})
    for name in coef:
        expected.find_coefficient(name)


def result_table(adata: AnnData, key: str, coef: tuple[str, ...]) -> pd.DataFrame:
    """Table of `scglmm.get.nbmm_df`, always with a column `coef`, and with `group` where there are groups."""
    result = read_result(adata, key)
    table = scglmm.get.nbmm_df(adata, list(coef) or None, key=key)
    if "coef" not in table:
        names = coef or result.tested or result.coefficients
        table.insert(0, "coef", result.find_coefficient(names[0]))
    if result.groups is not None and "group" not in table:
        table.insert(0, "group", result.fitted_groups[0])
    return table


def write_table(table: pd.DataFrame, path: Path, name: str) -> None:
    """Write a table in the format that a file name stands for."""
    plain = name.removesuffix(".gz")
    table.to_csv(
        path,
        index=False,
        sep="\t" if plain.endswith((".tsv", ".txt")) else ",",
        compression="gzip" if plain != name else None,
    )


def summarise(adata: AnnData, key: str) -> str:
    """Count statuses of genes, and significant genes of every coefficient."""
    result = read_result(adata, key)
    rows, statuses = [], []
    for group in result.fitted_groups:
        where = {} if group is None else {"group": readable(group)}
        counts = result.column("fit", "status", group).value_counts()
        statuses += [where | {"status": name, "genes": int(n)} for name, n in counts.items() if n]
        for coefficient in result.coefficients_in(group):
            if coefficient not in result.tested:
                continue
            padj, effect = (result.column(name, coefficient, group) for name in ("padj", "coef"))
            rows.append(
                where
                | {
                    "coef": readable(coefficient),
                    "tested": int(padj.notna().sum()),
                    "padj < 0.05": int((padj < 0.05).sum()),
                    "up": int(((padj < 0.05) & (effect > 0)).sum()),
                    "down": int(((padj < 0.05) & (effect < 0)).sum()),
                }
            )
    skipped = {} if result.groups is None else {g: s for g, s in result.groups.items() if g not in result.fitted_groups}
    blocks = [pd.DataFrame(statuses), pd.DataFrame(rows)]
    if skipped:
        blocks.append(pd.DataFrame({"group": [readable(group) for group in skipped], "status": list(skipped.values())}))
    return "\n\n".join(text_table(block) for block in blocks if len(block))
