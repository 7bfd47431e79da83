"""Workers and the progress bar over genes."""

from __future__ import annotations

import sys

import joblib
from joblib.parallel import get_active_backend
from scanpy import settings
from tqdm import tqdm

LOG_SECONDS = 10.0  # between two lines of a log file


def effective_jobs(n_jobs: int | None) -> int:
    """Count the workers; None is what a `joblib.parallel_config` says, or `scanpy.settings.n_jobs` if it says nothing.

    A backend that counts for itself, such as dask, counts all the workers it has.
    """
    if n_jobs is None:
        n_jobs = get_active_backend()[1]
    if n_jobs is None and settings.n_jobs != 1:
        n_jobs = settings.n_jobs
    return joblib.effective_n_jobs(n_jobs)


def progress_bar(total: int) -> tqdm:
    """Make a bar over genes; quiet at `scanpy.settings.verbosity` 0, and seldom where nobody watches (log files)."""
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(
        total=total,
        unit="gene",
        disable=int(settings.verbosity) < 1,
        leave=False,
        mininterval=0.1 if watched else LOG_SECONDS,
    )
