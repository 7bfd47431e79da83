"""Tasks come back in order, whatever happens to the workers."""

from __future__ import annotations

import functools
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest

from scglmm.inference.tasks import MAX_LOSSES, WorkersLostError, run_tasks


def tasks(n: int) -> list:
    return [functools.partial(int, i) for i in range(n)]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_results_are_in_the_order_of_the_tasks(n_jobs):
    assert list(run_tasks(lambda i: i * i, tasks(20), n_jobs)) == [i * i for i in range(20)]
    assert list(run_tasks(str, [], n_jobs)) == []


def test_what_was_not_done_is_done_again():
    """A pool that breaks at every fifth task, more often than would be borne in a row."""
    called = []

    def square(i: int) -> int:
        called.append(i)
        if i % 5 == 4 and called.count(i) == 1:
            msg = "a process was terminated abruptly"
            raise BrokenProcessPool(msg)
        return i * i

    assert list(run_tasks(square, tasks(40), 1)) == [i * i for i in range(40)]
    assert called.count(3) == 1  # what was done is not done again
    assert sum(called.count(i) > 1 for i in range(40)) == 8 > MAX_LOSSES


def test_not_for_ever():
    called = []

    def fail(i: int) -> int:
        called.append(i)
        if i < 3:
            return i
        raise BrokenProcessPool

    results = run_tasks(fail, tasks(8), 1)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WorkersLostError, match=r"lost 3 times in a row .* \(3 of 8 of this block are done\).*memory"):
        next(results)
    assert called == [0, 1, 2, *[3] * MAX_LOSSES]


def test_a_cluster_that_gives_up(monkeypatch):
    class Module:
        class KilledWorker(Exception):
            pass

    monkeypatch.setitem(sys.modules, "distributed", Module)

    def fail(i: int) -> int:
        raise Module.KilledWorker

    with pytest.raises(WorkersLostError, match="as the cluster reports"):
        list(run_tasks(fail, tasks(2), 1))


def test_other_errors_are_raised_as_they_are():
    with pytest.raises(ZeroDivisionError):
        list(run_tasks(lambda i: 1 // i, tasks(2), 2))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_leaving_early_is_quiet(n_jobs):
    results = run_tasks(lambda i: i, tasks(100), n_jobs)
    assert next(results) == 0
    results.close()
