"""One matrix in every storage that scglmm reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import scipy.sparse as sp
import zarr


def _h5(values: np.ndarray, folder: Path, form: Callable | None, **how: Any) -> Any:
    # a name of its own for every file: earlier ones may be open
    file = h5py.File(folder / f"{len(list(folder.iterdir()))}.h5", "w")
    if form is None:
        return file.create_dataset("X", data=values, **how)
    ad.io.write_elem(file, "X", form(values), dataset_kwargs=how)
    return ad.io.sparse_dataset(file["X"])


def _zarr(values: np.ndarray, folder: Path, form: Callable | None) -> Any:
    group = zarr.open_group(folder / f"{len(list(folder.iterdir()))}.zarr", mode="w")
    if form is None:
        return group.create_array("X", data=values, chunks=(50, 3))
    ad.io.write_elem(group, "X", form(values))
    return ad.io.sparse_dataset(group["X"])


def _dask(values: np.ndarray, form: Callable, chunks: tuple[int, int]) -> Any:
    import dask.array as da

    return da.from_array(values, chunks=chunks).map_blocks(form, dtype=values.dtype, meta=form(np.zeros((0, 0))))


STORAGES: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "csr": lambda values, folder: sp.csr_matrix(values),
    "csc": lambda values, folder: sp.csc_array(values),
    "dense": lambda values, folder: values,
    "dense by columns": lambda values, folder: np.asfortranarray(values),
    "integer": lambda values, folder: sp.csr_array(values.astype(np.int64)),
    "h5 csr": lambda values, folder: _h5(values, folder, sp.csr_matrix, compression="gzip"),
    "h5 csc": lambda values, folder: _h5(values, folder, sp.csc_matrix),
    "h5 dense": lambda values, folder: _h5(values, folder, None),
    "h5 dense in tiles": lambda values, folder: _h5(values, folder, None, chunks=(100, 3)),
    "h5 dense in columns": lambda values, folder: _h5(values, folder, None, chunks=(values.shape[0], 2)),
    "zarr csr": lambda values, folder: _zarr(values, folder, sp.csr_matrix),
    "zarr csc": lambda values, folder: _zarr(values, folder, sp.csc_matrix),
    "zarr dense": lambda values, folder: _zarr(values, folder, None),
    "dask csr, rows": lambda values, folder: _dask(values, sp.csr_matrix, (60, values.shape[1])),
    "dask csc, columns": lambda values, folder: _dask(values, sp.csc_matrix, (values.shape[0], 4)),
    "dask csr, both": lambda values, folder: _dask(values, sp.csr_array, (150, 5)),
    "dask dense, both": lambda values, folder: _dask(values, np.asarray, (70, 3)),
}


def store(name: str, values: np.ndarray, folder: Path) -> Any:
    """Put a matrix into a storage."""
    return STORAGES[name](values, folder)
