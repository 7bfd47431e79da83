"""Any matrix of counts as sparse pieces of bounded size, in an order in which every byte is read once.

A matrix that is sparse in memory is one piece. On disk, rows of CSR and columns of CSC are read in stretches of about
as many non-zeros, and dense matrices in tiles that follow the chunks in which they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

CHUNK_BYTES = 64 * 2**20  # of a piece as it is read, zeros of a dense matrix included
LARGE = 2  # times as much where memory abounds and pieces are many: the tables are gone through once per piece
MANY = 16  # pieces
CHUNK_ROWS = 2**19  # rows of a piece, which cost memory without counts too
F_ROWS = 2**16  # rows of a tile of a matrix that is in memory column after column


@dataclass(frozen=True)
class Chunk:
    """A piece of a matrix.

    Attributes
    ----------
    row, column
        Where it begins.
    matrix
        CSR or CSC, without duplicate entries, columns of CSC sorted.
    """

    row: int
    column: int
    matrix: Any

    @property
    def rows(self) -> slice:
        """Its rows in the whole matrix."""
        return slice(self.row, self.row + self.matrix.shape[0])

    @property
    def columns(self) -> slice:
        """Its columns in the whole matrix."""
        return slice(self.column, self.column + self.matrix.shape[1])


def is_in_memory_sparse(matrix: Any) -> bool:
    """Whether the matrix is CSR or CSC in memory."""
    return sp.issparse(matrix) and matrix.format in ("csr", "csc")


def is_dask(matrix: Any) -> bool:
    """Whether the matrix is a dask array; dask is not imported for it."""
    return type(matrix).__module__.partition(".")[0] == "dask" or hasattr(matrix, "__dask_graph__")


def is_stored_sparse(matrix: Any) -> bool:
    """Whether the matrix is CSR or CSC on disk (h5ad or zarr), as anndata gives it."""
    return not sp.issparse(matrix) and getattr(matrix, "format", None) in ("csr", "csc") and hasattr(matrix, "group")


def storage(matrix: Any) -> str:
    """Name the storage of a matrix, for messages."""
    if is_dask(matrix):
        return "a dask array"
    if is_stored_sparse(matrix):
        return f"{matrix.format.upper()} on disk"
    if sp.issparse(matrix):
        return f"{matrix.format.upper()} in memory"
    return "dense in memory" if isinstance(matrix, np.ndarray) else "dense on disk"


def chunks(matrix: Any, first: int = 0, last: int | None = None, size: int | None = None) -> Iterator[Chunk]:
    """Read a matrix piece by piece; for every column, rows come in increasing order.

    Parameters
    ----------
    matrix
        (n_obs, n_vars), as `scglmm.compression.counts.canonical` returns it.
    first, last
        Columns that are wanted. Others are left out where the storage can do that.
    size
        Bytes of a piece, by default `CHUNK_BYTES`.
    """
    last = matrix.shape[1] if last is None else last
    size = CHUNK_BYTES if size is None else size
    if is_in_memory_sparse(matrix):
        return iter([Chunk(0, 0, matrix)])
    if is_stored_sparse(matrix):
        return _read_ahead(
            _stored_rows(matrix, size) if matrix.format == "csr" else _stored_columns(matrix, first, last, size)
        )
    if is_dask(matrix):
        return _blocks(matrix, first, last)
    tiles = _tiles(matrix, first, last, size)
    return tiles if isinstance(matrix, np.ndarray) else _read_ahead(tiles)


def _read_ahead(pieces: Iterator[Chunk]) -> Iterator[Chunk]:
    """Read the next piece while one is being used: h5py and zarr let others run meanwhile.

    A piece may lie in memory that is used again (`_Memory`): it is gone when the next but one is asked for.
    """
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, pieces, None)
        while (chunk := following.result()) is not None:
            following = reader.submit(next, pieces, None)
            yield chunk


def as_sparse(part: Any) -> sp.csr_array | sp.csc_array | sp.csr_matrix | sp.csc_matrix:
    """Make a piece sparse and tidy; what is given is left as it is."""
    if hasattr(part, "compute"):
        part = part.compute()
    if hasattr(part, "to_memory"):
        part = part.to_memory()
    if not sp.issparse(part):
        part = np.asarray(part)
        part = sp.csr_array(part if is_plain(part.dtype) else part.astype(np.float64))
    elif part.format not in ("csr", "csc"):
        part = part.tocsr()
    if not part.has_canonical_format:
        part = part.copy()
        part.sum_duplicates()
    return part


def is_plain(dtype: np.dtype) -> bool:
    """Whether numba and scipy compute with a type."""
    return dtype.kind in "biu" or dtype in (np.float32, np.float64)


def read_column(matrix: Any, column: int) -> np.ndarray:
    """Read one column (n_obs,) of a matrix."""
    out = np.zeros(matrix.shape[0])
    for chunk in chunks(matrix, column, column + 1):
        if chunk.columns.start <= column < chunk.columns.stop:
            # a long column comes in pieces
            out[chunk.rows] += np.asarray(chunk.matrix[:, [column - chunk.column]].todense(), np.float64).ravel()
    return out


def cell_totals(matrix: Any) -> np.ndarray:
    """Total (n_obs,) of every row. Of CSR on disk only half the bytes are read."""
    out = np.zeros(matrix.shape[0])
    if is_dask(matrix):
        from .mapreduce import sum_up

        return sum_up(matrix, np.full(out.size, -1), 1)[0].cell_total
    if is_stored_sparse(matrix) and matrix.format == "csr":
        indptr, data = matrix.group["indptr"][:], matrix.group["data"]
        for begin, end in _stretches(indptr, 0, out.size, data.dtype.itemsize, CHUNK_BYTES):
            values = np.append(np.asarray(data[indptr[begin] : indptr[end]], np.float64), 0.0)
            sums = np.add.reduceat(values, indptr[begin:end] - indptr[begin])
            out[begin:end] = np.where(np.diff(indptr[begin : end + 1]) > 0, sums, 0.0)
        return out
    for chunk in chunks(matrix):
        out[chunk.rows] += np.asarray(chunk.matrix.sum(axis=1), dtype=np.float64).ravel()
    return out


def sample(matrix: Any, n_rows: int = 200) -> Any:
    """Read a few counts, without reading much where the storage can do that."""
    if is_dask(matrix):
        return matrix.blocks[0, 0].compute()
    if is_stored_sparse(matrix) and matrix.format == "csc":
        return matrix[:, : max(1, n_rows * matrix.shape[1] // max(1, matrix.shape[0]))]
    return matrix[:n_rows]


def _stretches(indptr: np.ndarray, first: int, last: int, itemsize: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut rows (CSC: columns) into stretches whose entries take `size` bytes, or what one of them takes.

    The first of them take no more than `CHUNK_BYTES`: memory for large pieces is found more slowly than it is read.
    """
    n = 0
    while first < last:
        most = max(1, (size if n >= MANY else min(size, CHUNK_BYTES)) // itemsize)
        n += 1
        end = int(np.searchsorted(indptr, indptr[first] + most, side="right")) - 1
        end = min(max(end, first + 1), first + CHUNK_ROWS, last)
        yield first, end
        first = end


def _entry_bytes(group: Any) -> int:
    return group["data"].dtype.itemsize + group["indices"].dtype.itemsize


class _Memory:
    """Arrays for the piece that is being used and for the one that is being read, in turn.

    Memory that a process has not touched before has to be found and cleared by the system, which costs more than to
    read a file without compression.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, int], np.ndarray] = {}
        self._turn = 0

    def turn(self) -> None:
        """Begin another piece."""
        self._turn = 1 - self._turn

    def read(self, group: Any, name: str, start: int, stop: int) -> np.ndarray:
        """Read entries `start` to `stop` of an array."""
        stored = group[name]
        if not hasattr(stored, "read_direct") or stop <= start:
            return stored[start:stop]
        key = name, self._turn
        if key not in self._arrays or self._arrays[key].size < stop - start:
            self._arrays[key] = np.empty(stop - start, stored.dtype)
        array = self._arrays[key][: stop - start]
        stored.read_direct(array, np.s_[start:stop])
        return array


def _stored_rows(matrix: Any, size: int) -> Iterator[Chunk]:
    group, n_vars = matrix.group, matrix.shape[1]
    indptr, memory = group["indptr"][:], _Memory()
    for begin, end in _stretches(indptr, 0, matrix.shape[0], _entry_bytes(group), size):
        low, high = int(indptr[begin]), int(indptr[end])
        part = _read(group, low, high, indptr[begin : end + 1], sp.csr_array, n_vars, memory)
        yield Chunk(begin, 0, part)


def _stored_columns(matrix: Any, first: int, last: int, size: int) -> Iterator[Chunk]:
    group, n_obs = matrix.group, matrix.shape[0]
    indptr, memory = group["indptr"][:], _Memory()
    most = max(1, size // _entry_bytes(group))
    for begin, end in _stretches(indptr, first, last, _entry_bytes(group), size):
        pointers = indptr[begin : end + 1]
        low, high = int(pointers[0]), int(pointers[-1])
        # a column longer than a chunk is read in pieces, so that memory does not grow with the number of cells
        step = most if end == begin + 1 else max(1, high - low)
        for start in range(low, max(high, low + 1), step):
            stop = min(start + step, high)
            within = np.clip(pointers, start, stop)
            yield Chunk(0, begin, _read(group, start, stop, within, sp.csc_array, n_obs, memory))


def _read(group: Any, start: int, stop: int, pointers: np.ndarray, kind: type, n_minor: int, memory: _Memory) -> Any:
    """Read entries `start` to `stop` of a sparse matrix on disk."""
    n_major = pointers.size - 1
    shape = (n_major, n_minor) if kind is sp.csr_array else (n_minor, n_major)
    memory.turn()
    data, indices = memory.read(group, "data", start, stop), memory.read(group, "indices", start, stop)
    return as_sparse(kind((data, indices, pointers - start), shape=shape))


def _tiles(matrix: Any, first: int, last: int, size: int) -> Iterator[Chunk]:
    """Tiles of a dense matrix, in rows of tiles: whole rows, unless it is stored in columns."""
    n, m = matrix.shape
    values = max(1, size // np.dtype(getattr(matrix, "dtype", np.float64)).itemsize)
    rows, columns = _stored_tile(matrix)
    if rows * m <= values or columns >= m:
        rows, columns = max(rows, min(values // max(1, m), CHUNK_ROWS) // rows * rows), m
    else:
        columns = max(columns, values // rows // columns * columns)
    for row in range(0, n, rows):
        for column in range(0, m, columns):
            if column >= last or column + columns <= first:
                continue
            part = matrix[row : row + rows] if columns >= m else matrix[row : row + rows, column : column + columns]
            yield Chunk(row, column, as_sparse(part))


def _stored_tile(matrix: Any) -> tuple[int, int]:
    """Rows and columns that lie together in storage."""
    n, m = matrix.shape
    if isinstance(matrix, np.ndarray):
        by_columns = matrix.flags.f_contiguous and not matrix.flags.c_contiguous
        return (min(n, F_ROWS), 1) if by_columns else (1, m)
    stored = getattr(matrix, "chunks", None)
    return (1, m) if stored is None else (min(int(stored[0]), n), min(int(stored[1]), m))


def _blocks(matrix: Any, first: int, last: int) -> Iterator[Chunk]:
    """Blocks of a dask array one after another."""
    starts = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in matrix.chunks]
    for i, row in enumerate(starts[0][:-1]):
        for j, column in enumerate(starts[1][:-1]):
            if column < last and starts[1][j + 1] > first:
                yield Chunk(int(row), int(column), as_sparse(matrix.blocks[i, j]))
