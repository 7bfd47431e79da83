"""The first call of a fresh process against the second: numba's cache cold, then warm."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

CODE = """
import time, scanpy as sc, scglmm
sc.settings.verbosity = 0
adata = scglmm.datasets.psychad()[:, :50].copy()
for _ in range(2):
    start = time.perf_counter()
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Age + Sex + (1|SubID)", n_jobs=1)
    print(time.perf_counter() - start)
"""


def main() -> None:
    """Run a fresh process with an empty cache, then one with a full cache, and print the differences."""
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "warm"):
            run = subprocess.run(
                [sys.executable, "-c", CODE],
                env=os.environ | {"NUMBA_CACHE_DIR": cache},
                capture_output=True,
                text=True,
                check=True,
            )
            first, second = map(float, run.stdout.split())
            print(f"cache {state}: first call {first:.2f} s, second {second:.2f} s, difference {first - second:.2f} s")


if __name__ == "__main__":
    main()
