"""Tasks on joblib's workers, whatever these are: threads, processes or a cluster; workers may be lost on the way.

Nothing is scheduled here. joblib gives up a whole run when one of its processes is killed; what has not been done by
then is given to it again. A dask cluster does that itself.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

from joblib import Parallel, delayed
from scanpy import logging as logg
from threadpoolctl import threadpool_limits

MAX_LOSSES = 3  # in a row, without a task done in between


class WorkersLostError(RuntimeError):
    """Workers are lost again and again; the message says what to do."""


def run_tasks(function: Callable[[Any], Any], tasks: Sequence[Callable[[], Any]], n_jobs: int) -> Generator[Any]:
    """Call a function on every task, in parallel.

    Parameters
    ----------
    function
        What to do, such that it can be pickled.
    tasks
        Each makes the argument for the function, here, at the time at which a worker is about to want it.
    n_jobs
        Workers: threads, unless `joblib.parallel_config` says otherwise.

    Yields
    ------
    What the function returns, in the order of the tasks.

    Raises
    ------
    WorkersLostError
        Workers were lost `MAX_LOSSES` times in a row without one task done in between.
    """
    done = losses = 0
    while done < len(tasks):
        before = done
        # Not memmap: workers would get arrays that cannot be written to, for which kernels would be compiled again,
        # and a killed process would leave files behind.
        workers = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator", max_nbytes=None)
        with one_blas_thread(), workers as parallel:
            results = parallel(delayed(function)(task()) for task in tasks[done:])
            try:
                for result in results:
                    done += 1
                    yield result
            except BrokenExecutor as error:
                losses = losses + 1 if done == before else 1
                if losses == MAX_LOSSES:
                    raise _give_up(done, len(tasks), f"{losses} times in a row") from error
                logg.warning("a worker process was lost (killed?): what it had not done is done again")
            except _killed_on_cluster() as error:
                raise _give_up(done, len(tasks), "again and again, as the cluster reports") from error
            finally:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that results which nobody waits for any more are dropped
                    results.close()


def one_blas_thread() -> threadpool_limits:
    """Keep BLAS from using threads of its own beside those of the run, where it would mostly wait for them.

    The matrices of one gene are small; its results could also depend on the number of threads in their last bits.
    """
    return threadpool_limits(limits=1, user_api="blas")


def _killed_on_cluster() -> tuple[type[Exception], ...]:
    """Give the error of a dask cluster of which several workers were lost on the same task."""
    distributed = sys.modules.get("distributed")
    return () if distributed is None else (distributed.KilledWorker,)


def _give_up(done: int, wanted: int, how_often: str) -> WorkersLostError:
    msg = (
        f"Workers were lost {how_often} on the same tasks ({done} of {wanted} of this block are done). Most often the "
        "system kills processes for want of memory: use fewer workers (n_jobs), or threads (no "
        "joblib.parallel_config), or a machine or workers with more memory. With checkpoint= what is done is kept."
    )
    return WorkersLostError(msg)
