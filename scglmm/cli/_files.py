"""Files in and out: what is written has its name only once it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import pandas as pd

from scglmm.results.names import storable

HDF5_BYTES = 4096  # more than HDF5 and anndata write beside the numbers of an array


@contextmanager
def opened(path: Path, backed: bool) -> Iterator[ad.AnnData]:
    """Read an h5ad file, with its matrix left on disk if `backed`.

    Raises
    ------
    OSError
        There is no such file.
    ValueError
        It cannot be read.
    """
    if not path.is_file():
        msg = f"There is no file {str(path)!r}."
        raise FileNotFoundError(msg)
    try:
        adata = ad.read_h5ad(path, backed="r" if backed else None)
    except Exception as error:
        msg = f"{str(path)!r} cannot be read as an h5ad file: {error}"
        raise ValueError(msg) from error
    try:
        yield adata
    finally:
        if adata.isbacked:
            adata.file.close()


def check_writable(path: Path) -> None:
    """Check, before any work, that a file can be written.

    Raises
    ------
    OSError
        Its folder does not exist or cannot be written to, or it is a folder itself.
    """
    folder = path.resolve().parent
    if path.is_dir():
        msg = f"{str(path)!r} is a folder."
    elif not folder.is_dir():
        msg = f"There is no folder {str(folder)!r} to write {path.name!r} into."
    elif not os.access(folder, os.W_OK):
        msg = f"The folder {str(folder)!r} cannot be written to."
    else:
        return
    raise OSError(msg)


@contextmanager
def complete_files() -> Iterator[dict[Path, Path]]:
    """Rename files once all of them are complete, and remove them if anything stops before.

    Yields
    ------
    Mapping to which the caller adds: file -> the temporary name, see `temporary`.
    """
    pending: dict[Path, Path] = {}
    try:
        yield pending
        for unfinished in pending.values():
            _sync(unfinished)
        for path, unfinished in list(pending.items()):
            unfinished.replace(path)
            del pending[path]
    finally:
        for unfinished in pending.values():
            unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Put a file on the disk, so that a name never stands for less than a complete file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which file could not be written, and why.

    Raises
    ------
    OSError
        It could not.
    """
    try:
        yield
    except OSError as error:
        # HDF5's own messages are long and name the temporary file
        why = os.strerror(error.errno) if error.errno else str(error)
        msg = f"{str(path)!r} cannot be written: {why}. No file was changed."
        raise OSError(msg) from error


def temporary(path: Path) -> Path:
    """Name in the same folder, so that the renaming cannot fail half-way."""
    path = path.resolve()
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_with_result(adata: ad.AnnData, source: Path, target: Path, key: str) -> None:
    """Write a copy of the h5ad file `source` with the result `key` of `adata`; the rest stays as it is on disk.

    Raises
    ------
    ValueError
        The file is of an anndata before 0.8, and its matrix was not read into memory.
    """
    key = storable(key)
    with h5py.File(source) as file:
        current = file.attrs.get("encoding-type") == "anndata" and {"varm", "uns"} <= set(file)
    if not current:
        if adata.isbacked:
            msg = f"{str(source)!r} is in a format before anndata 0.8: leave out --backed."
            raise ValueError(msg)
        adata.write_h5ad(target)
        return
    shutil.copyfile(source, target)
    _check_room(target, _size(dict(adata.varm)) + _size(adata.uns[key]))
    with h5py.File(target, "r+") as file:
        del file["varm"]
        ad.io.write_elem(file, "varm", dict(adata.varm))
        if key in file["uns"]:
            del file["uns"][key]
        ad.io.write_elem(file["uns"], key, dict(adata.uns[key]))


def _check_room(path: Path, more: int) -> None:
    """Check that a file can grow by so many bytes: HDF5 does not survive a disk that is full when it closes a file.

    Raises
    ------
    OSError
        It cannot.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        os.posix_fallocate(file.fileno(), size, more)
        file.truncate(size)


def _size(values: Any) -> int:
    """Bytes that values may take in a file, with what HDF5 adds to every array."""
    if isinstance(values, Mapping):
        return HDF5_BYTES + sum(_size(value) for value in values.values())
    if isinstance(values, pd.DataFrame):
        return sum(HDF5_BYTES + int(values[name].memory_usage(deep=True)) for name in values) + _size(values.index)
    if isinstance(values, pd.Index):
        return HDF5_BYTES + int(values.memory_usage(deep=True))
    return HDF5_BYTES + int(getattr(values, "nbytes", 0)) + len(str(values)) * isinstance(values, str)
