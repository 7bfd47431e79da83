"""Results of one method on one data set, a file each: a killed run goes on where it was."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FIELDS = ("p", "beta", "se", "df", "variance")
"""p-value; log fold change (natural log), standard error, degrees of freedom (inf for z); variance of the random effect
that carries the contrast. NaN where a method has none."""

TRUTH = "truth"


@dataclass(frozen=True)
class Result:
    """What a method says about the genes of one data set: arrays named in `FIELDS`, and seconds of processor time."""

    p: np.ndarray
    beta: np.ndarray
    se: np.ndarray
    df: np.ndarray
    variance: np.ndarray
    seconds: float

    @classmethod
    def of(cls, n: int, seconds: float, **fields: np.ndarray) -> Result:
        """Fill fields that a method does not have with NaN."""
        return cls(*(np.asarray(fields.get(name, np.full(n, np.nan)), float) for name in FIELDS), seconds)


class Store:
    """The folder of results of a scenario.

    Parameters
    ----------
    root
        Folder of the run.
    scenario
        Its name and fingerprint name the folder, so results of another design are never mixed in.
    """

    def __init__(self, root: Path, scenario) -> None:
        self.folder = Path(root) / f"{scenario.name}-{scenario.fingerprint}"

    def has(self, method: str, index: int) -> bool:
        """Whether data set `index` is done."""
        return self._path(method, index).exists()

    def forget(self, method: str) -> None:
        """Delete all results of a method."""
        for path in (self.folder / method).glob("*.npz"):
            path.unlink()

    def write(self, method: str, index: int, **arrays) -> None:
        """Write in one step: a file is complete or not there."""
        path = self._path(method, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with partial.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        partial.replace(path)

    def write_result(self, method: str, index: int, result: Result, kept: np.ndarray) -> None:
        """Write a result on the genes that were tested back to all of them."""
        arrays = {}
        for name in FIELDS:
            full = np.full(kept.size, np.nan, np.float32 if name != "p" else np.float64)
            full[kept] = getattr(result, name)
            arrays[name] = full
        self.write(method, index, seconds=np.float64(result.seconds), **arrays)

    def methods(self) -> list[str]:
        """Methods with at least one result."""
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if p.name != TRUTH and any(p.glob("*.npz")))

    def indices(self, method: str) -> list[int]:
        """List the data sets that are done."""
        return sorted(int(path.stem) for path in (self.folder / method).glob("*.npz"))

    def read(self, method: str, indices: list[int]) -> dict[str, np.ndarray]:
        """Stack data sets: name -> (data sets, genes), `seconds` (data sets,)."""
        parts = []
        for index in indices:
            with np.load(self._path(method, index)) as archive:
                parts.append({name: archive[name] for name in archive.files})
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def _path(self, method: str, index: int) -> Path:
        return self.folder / method / f"{index:04d}.npz"
