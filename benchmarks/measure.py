"""Clocks, memory and processes: what all benchmarks measure with.

Times are seconds, memory is bytes. Every tool that is compared runs in a process of its own (`run_json`), so that its
peak memory is its own, with one thread where several tools are compared (`ONE_THREAD`).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "RAYON_NUM_THREADS",
    ),
    "1",
)

RESULT = "RESULT "  # before the line of JSON that a worker process prints


class WorkerFailed(RuntimeError):
    """A worker process ended without a result; the message is the end of what it wrote."""


def run_json(command: Sequence[str], *, one_thread: bool = False, timeout: float | None = None) -> dict[str, Any]:
    """Run a worker that prints one line of JSON after `RESULT`; relative imports of `benchmarks` work in it.

    Raises
    ------
    WorkerFailed
        It failed, took longer than `timeout` seconds, or printed no result.
    """
    env = os.environ | (ONE_THREAD if one_thread else {})
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise WorkerFailed(f"not done after {timeout:.0f} s") from error
    for line in done.stdout.splitlines():
        if line.startswith(RESULT):
            return json.loads(line.removeprefix(RESULT))
    said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
    raise WorkerFailed(said[-1])


def run_module(module: str, *arguments: str, **options: Any) -> dict[str, Any]:
    """`run_json` of a module of this package."""
    return run_json([sys.executable, "-m", module, *arguments], **options)


def give(result: dict[str, Any]) -> None:
    """Print the result of a worker."""
    print(RESULT + json.dumps(result), flush=True)


def resident() -> float:
    """Resident memory of this process."""
    return _status("VmRSS")


def peak() -> float:
    """Peak resident memory of this process since its start or `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Give freed memory back to the system and start the kernel's record of peak memory afresh (Linux).

    Without the former, a call after a warm-up would be served from what the warm-up has left.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _status(name: str) -> float:
    path = Path("/proc/self/status")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return float(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


@dataclass
class Stopwatch:
    """Wall and CPU seconds spent in some functions, summed over threads.

    Attributes
    ----------
    wall, cpu, calls
        By label.
    """

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def clock(self, module: Any, name: str, label: str) -> None:
        """Replace a function of a module by one that is timed.

        Raises
        ------
        AttributeError
            There is no such function (any more): the benchmark is out of date.
        """
        function: Callable[..., Any] = getattr(module, name)
        with self._lock:
            self.wall.setdefault(label, 0.0), self.cpu.setdefault(label, 0.0), self.calls.setdefault(label, 0)

        def timed(*args, **kwargs):
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
                with self._lock:
                    self.wall[label] += wall
                    self.cpu[label] += cpu
                    self.calls[label] += 1

        setattr(module, name, timed)

    def clear(self) -> None:
        """Start from zero."""
        for table in (self.wall, self.cpu, self.calls):
            for label in table:
                table[label] = type(table[label])()


def best_of(function: Callable[[], Any], times: int) -> float:
    """Seconds of the quickest of several calls."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken)


def load_average() -> float:
    """How many processes wanted a core during the last minute: above the number of cores, times are too long."""
    return float(np.round(os.getloadavg()[0], 2)) if hasattr(os, "getloadavg") else float("nan")


def machine() -> str:
    """One line about the machine for the head of a report."""
    model = ""
    path = Path("/proc/cpuinfo")
    if path.exists():
        names = [
            line.split(":", 1)[1].strip() for line in path.read_text().splitlines() if line.startswith("model name")
        ]
        model = f"{names[0]}, " if names else ""
    return f"{model}{os.cpu_count()} cores, load {load_average()}, Python {sys.version.split()[0]}"


def mebi(n_bytes: float) -> str:
    """Write memory."""
    return f"{n_bytes / 2**20:,.0f} MiB"
