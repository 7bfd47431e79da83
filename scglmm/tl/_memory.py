"""How much memory a run may take beside the data."""

from __future__ import annotations

import re
from numbers import Real
from pathlib import Path

import psutil

SHARE = 4  # by default one part in so many of what is free
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_TEXT = re.compile(r"\s*(\d+\.?\d*(?:e\d+)?|\.\d+)\s*([KMGT]I?)?B?\s*", re.IGNORECASE)
_GROUPS = (  # limit, use, and statistics of a control group, versions 2 and 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def parse_memory(value: float | str | None) -> int | None:
    """Read `max_memory`: bytes, text such as "2GB" or "500 MiB", or None.

    Raises
    ------
    TypeError
        It is neither.
    ValueError
        It is no amount of memory.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real | str):
        msg = f"max_memory must be a number of bytes, text such as '2GB', or None, not {value!r}."
        raise TypeError(msg)
    if isinstance(value, str):
        found = _TEXT.fullmatch(value)
        size = float(found[1]) * _UNITS[(found[2] or "").upper()] if found else -1.0
    else:
        size = float(value)
    if not 0 < size < 2**62:
        msg = f"max_memory={value!r} is no amount of memory: give bytes, or text such as '2GB' or '500MB'."
        raise ValueError(msg)
    return int(size)


def free_memory(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process can still take: of the machine, or of its control group (containers, Slurm)."""
    free = int(psutil.virtual_memory().available)
    for limit, used, statistics in _GROUPS:
        try:
            most, now = int((root / limit).read_text()), int((root / used).read_text())
            # what the kernel keeps of files is given back when needed
            kept = re.search(r"^(?:total_)?inactive_file (\d+)$", (root / statistics).read_text(), re.MULTILINE)
        except (OSError, ValueError):  # no such group, or "max"
            continue
        free = min(free, max(0, most - now + (int(kept[1]) if kept else 0)))
    return free


def memory_budget(max_memory: float | str | None) -> int:
    """Bytes that a run may take beside the data."""
    size = parse_memory(max_memory)
    return free_memory() // SHARE if size is None else size


def spell_bytes(size: float) -> str:
    """Write a number of bytes for people."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{max(1, round(size / 2**10))} KiB"
