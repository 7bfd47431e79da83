"""The main job on the bundled data: ``python -m scglmm.demo [folder]``."""

from __future__ import annotations

import sys
from pathlib import Path

FORMULA = "~ offset(log(libSize)) + Dx + Age + Sex + (1|SubID)"
COEFFICIENT = "Dx[T.AD]"


def main(folder: str = "figures") -> None:
    """Fit every gene of the bundled data, print the top genes, write a varpart and a volcano picture.

    Parameters
    ----------
    folder
        Where the pictures go; made if it does not exist.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import scglmm

    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    adata = scglmm.datasets.psychad()
    print(f"{adata.n_obs:,} cells, {adata.obs['SubID'].nunique()} donors, {adata.n_vars} genes\n{FORMULA}\n")
    scglmm.tl.nbmm(adata, FORMULA, n_jobs=-1)
    table = scglmm.get.nbmm_df(adata, COEFFICIENT)
    print(f"Top genes for {COEFFICIENT} (log_fc is the natural log fold change):\n")
    print(table.head(15).to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    print(f"\n{(table['padj'] < 0.05).sum()} of {table['padj'].notna().sum()} genes tested have padj < 0.05")
    top = ["PTPRG", *table["gene"][table["gene"] != "PTPRG"].head(9)]
    pictures = {
        "varpart.png": scglmm.pl.varpart(adata, show=False, return_fig=True),
        "varpart_top.png": scglmm.pl.varpart(adata, genes=top, show=False, return_fig=True),
        "volcano.png": scglmm.pl.volcano(adata, COEFFICIENT, show=False, return_fig=True),
    }
    for name, figure in pictures.items():
        figure.savefig(where / name, dpi=200, bbox_inches="tight")
        print(f"wrote {where / name}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
