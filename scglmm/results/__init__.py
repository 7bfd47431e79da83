"""Results of a fit: their tables, and how they are stored in and read from an AnnData."""

from __future__ import annotations

from scglmm.results.names import check_distinct
from scglmm.results.read import StoredResult, read_result
from scglmm.results.refresh import refresh_rank_arrays
from scglmm.results.table import STATUSES, GeneTable
from scglmm.results.write import check_target, write_results

__all__ = [
    "STATUSES",
    "GeneTable",
    "StoredResult",
    "check_distinct",
    "check_target",
    "read_result",
    "refresh_rank_arrays",
    "write_results",
]
