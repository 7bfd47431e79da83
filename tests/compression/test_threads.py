"""Ranges for threads, and calls on them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scglmm.compression.threads import cut, on_threads


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 8))
def test_ranges_cover_everything_once(sizes, n):
    end = np.concatenate([[0], np.cumsum(sizes)])
    ranges = cut(end, n)
    assert 1 <= len(ranges) <= n
    assert [k for first, last in ranges for k in range(first, last)] == list(range(len(sizes)))
    if len(ranges) == n:
        largest = max(end[last] - end[first] for first, last in ranges)
        assert largest <= end[-1] / n + max(sizes)


def test_results_in_the_order_of_the_calls():
    barrier = threading.Barrier(3, timeout=10)  # none goes on before all are there

    def call(k: int) -> int:
        barrier.wait()
        return k

    assert on_threads([lambda k=k: call(k) for k in range(3)]) == [0, 1, 2]
    assert on_threads([]) == []


@pytest.mark.parametrize("at", [0, 1])
def test_errors_come_through(at):
    def fail() -> None:
        raise KeyError("here")

    calls = [lambda: None, lambda: None]
    calls[at] = fail
    with pytest.raises(KeyError, match="here"):
        on_threads(calls)
