"""Kernels on threads of this process, each on a part of its own of the same arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def on_threads(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make calls at the same time, the first of them here, and give what they return.

    Pieces of a matrix take a tenth of a second, so that joblib, which looks for results every hundredth, would cost
    more than it brings.
    """
    if len(calls) <= 1:
        return [call() for call in calls]
    with ThreadPoolExecutor(len(calls) - 1) as pool:
        others = [pool.submit(call) for call in calls[1:]]
        return [calls[0](), *(other.result() for other in others)]


def cut(end: np.ndarray, n: int) -> list[tuple[int, int]]:
    """Cut a sequence into at most n ranges of about equal size, each its first position and the one beyond its last.

    Parameters
    ----------
    end
        (m + 1,) cumulative size, from 0: position k has the size ``end[k + 1] - end[k]``.
    n
        Ranges.
    """
    wanted = np.linspace(0, end[-1], n + 1)[1:-1]
    cuts = {0, *(int(np.abs(end - each).argmin()) for each in wanted), end.size - 1}
    return list(pairwise(sorted(cuts)))
