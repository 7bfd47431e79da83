"""A side of `benchmarks.regression`: runs cases with the scglmm of one tree. Imports nothing else of this folder."""

from __future__ import annotations

import json
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    """Answer requests, a line of JSON each."""
    tree, data = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    found = find_spec("scglmm")
    if found is None or found.origin is None or tree not in Path(found.origin).resolve().parents:
        raise SystemExit(f"there is no scglmm in {tree}")
    import anndata as ad
    import scanpy as sc

    import scglmm

    sc.settings.verbosity = 0
    warnings.simplefilter("ignore")
    loaded = {}
    for line in sys.stdin:
        request = json.loads(line)
        name = request["data"]
        if name not in loaded:
            loaded[name] = ad.read_h5ad(data / f"{name}.h5ad")
        adata = loaded[name]
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            scglmm.tl.nbmm(adata, request["formula"], n_jobs=1, **request["how"])
        except (TypeError, ValueError, KeyError) as error:
            print("RESULT " + json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
            continue
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        fit = adata.varm["nbmm_fit"]
        answer = {
            "cpu": cpu,
            "wall": wall,
            "loglik": fit["loglik"].tolist(),
            "status": fit["status"].astype(str).tolist(),
            "coef": adata.varm["nbmm_coef"].to_numpy(float).tolist(),
            "se": adata.varm["nbmm_se"].to_numpy(float).tolist(),
        }
        print("RESULT " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
