"""The table of suspicious genes, ``varm["{key}_diagnose"]``: columns for each gene, and for each coefficient."""

from __future__ import annotations

from scglmm.results.names import SEPARATOR, compose

REASONS = {
    "one_cell": "one cell drives the effect",
    "one_donor": "one donor drives the effect",
    "counts_in_one_donor": "all counts are in one donor",
    "counts_in_one_cell": "more than half of the counts are in one cell",
    "separated": "a coefficient would be infinite",
    "not_converged": "the fit did not converge",
    "huge_effect": "an effect so large that hardly anything but rounding keeps it finite",
    "huge_variance": "donors (or other groups) differ by a standard deviation above 3",
    "tiny_theta": "nearly all counts are in a few cells: theta is below 0.01",
}
"""Reason -> what it means."""

PER_GENE = ("reasons", "cell", "cell_share", "donor", "donor_share")
"""Reasons, joined by "; ", and the cell and the donor with the most counts of the gene, and their shares of them."""

PER_COEFFICIENT = (
    "effect",
    "pval",
    "cell",
    "effect_without_cell",
    "pval_without_cell",
    "one_cell",
    "donor",
    "effect_without_donor",
    "pval_without_donor",
    "one_donor",
)
"""The effect and its p-value, and both without the cell and without the donor on which it hangs most."""

JOINED = "; "


def diagnosed_column(group: str | None, coef: str | None, number: str) -> str:
    """Column of one number, of a gene (`coef` None) or of one of its effects."""
    return compose(group, number) if coef is None else f"{compose(group, coef)}{SEPARATOR}{number}"
