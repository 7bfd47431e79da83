"""Write the cells and the genes of the Kang et al. (2018) B cells that the reference fits use.

Usage: python kang18_export.py kang18_bcells.h5ad OUTPUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import numpy as np

# The interferon response, then the range of expression from all cells (B2M) down to 50 (CENPV). GRB2 and
# CENPV have a donor variance of zero, others a zero for one of the variances of the larger models.
GENES = [
    *("ISG15", "IFI6", "IFIT3", "SAMD9L"),
    *("B2M", "CD74", "RPL13", "CCR7", "CD83", "ERH"),
    *("GRB2", "WDR61", "C11orf1_ENSG00000137720", "DNM1L", "CENPV"),
]


def main(h5ad: str, folder: str) -> None:
    """Write ``kang18_cells.csv``: one row per cell, in the order of the h5ad file."""
    adata = ad.read_h5ad(h5ad)
    cells = adata.obs[["ind", "stim", "cluster"]].copy()
    total = np.asarray(adata.X.sum(axis=1, dtype=np.float64)).ravel()
    log_total = np.log(total)
    cells["total"] = total.astype(np.int64)
    cells["z"] = np.round((log_total - log_total.mean()) / log_total.std(ddof=1), 6)
    cells[GENES] = adata[:, GENES].X.toarray().astype(np.int64)
    Path(folder).mkdir(parents=True, exist_ok=True)
    cells.to_csv(Path(folder) / "kang18_cells.csv", index_label="cell")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
