"""Fits kept in a folder as they come in, for a run that is killed: the same call goes on with what is not there.

``run.json`` says which run the folder belongs to; ``part0000-000256.npz`` holds the fits of some genes of one group
of cells. Each file gets its name when it is complete and on the disk. They hold numbers and text only: reading them
executes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from scanpy import logging as logg

from scglmm.inference.pieces import Piece, join_pieces

from ._fingerprint import Fingerprint, differences

GENES = 256  # fits in a file,
SECONDS = 60.0  # or fewer when they take longer than this
HEADER, BLOCKS, UNFINISHED = "run.json", "part*.npz", ".*.unfinished"
FORMAT = 1
UNREADABLE = (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


class Checkpoint:
    """A folder of fits, a `scglmm.inference.genes.Saved`: made, compared, taken, and then the context of the fits.

    Parameters
    ----------
    folder
        Where it is, or will be.

    Raises
    ------
    TypeError
        `folder` is no path.
    ValueError
        There is something else in the folder.
    OSError
        It is no folder, or cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not isinstance(folder, str | os.PathLike) or not str(folder):
            msg = f"checkpoint must be the path of a folder, not {folder!r} ({type(folder).__name__})."
            raise TypeError(msg)
        self.folder = Path(folder)
        self.sizes: list[int] = []
        self.run = ""
        self.pending: dict[int, list[Piece]] = {}
        self.written = time.monotonic()
        self._check_place()
        self.header = self._read_header()

    def compare(self, now: Fingerprint) -> None:
        """Check that what is known of a run so far is that of the run in the folder.

        Raises
        ------
        ValueError
            It is another run; the message says what differs.
        """
        if self.header is None:
            return
        old = self.header["fingerprint"]
        what = differences({name: old.get(name) for name in now}, now)
        if what:
            msg = (
                f"The checkpoint {str(self.folder)!r} is of another run: {'; '.join(what)}. Name another folder for "
                "this run, or delete that one to start afresh."
            )
            raise ValueError(msg)

    def take(self, fingerprint: Fingerprint, sizes: list[int]) -> None:
        """Take the folder for a run of so many genes in each group of cells, or share of one.

        Raises
        ------
        ValueError
            It is of another run.
        OSError
            The folder cannot be written to.
        """
        self.compare(fingerprint)
        self.sizes = sizes
        self.run = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:32]
        if self.header is None:
            self.header = {"format": FORMAT, "fingerprint": fingerprint}
            with self._told("begun"):
                self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.header, indent=1, ensure_ascii=False)
            self._write(HEADER, lambda file: file.write(text.encode()))

    def load(self) -> Iterator[Piece]:
        """Fits that are there; files that are damaged, or of another run, are as good as not there."""
        known = [np.zeros(size, bool) for size in self.sizes]
        for path in sorted(self.folder.glob(BLOCKS)):
            try:
                with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                    arrays = {name: file[name] for name in file.files}
                if str(arrays.pop("run")) != self.run:
                    logg.warning(f"{str(path)!r} is of another run than its folder, and is not used")
                    continue
                piece = Piece.from_arrays(arrays)
                fresh = self._fresh(piece, known)
            except UNREADABLE as error:
                logg.warning(f"{str(path)!r} is damaged ({error}): its genes are fitted again")
                continue
            if fresh.all():
                yield piece
            elif fresh.any():  # of two processes at the same time
                fits = [fit for fit, new in zip(piece.fits, fresh, strict=True) if new]
                yield Piece(piece.part, piece.at[fresh], fits, piece.donors[fresh], piece.totals[fresh])
        n_known = sum(int(each.sum()) for each in known)
        if n_known:
            logg.info(f"    {n_known} of {sum(self.sizes)} fits are in the checkpoint {str(self.folder)!r}")

    def _fresh(self, piece: Piece, known: list[np.ndarray]) -> np.ndarray:
        """(n,) bool: which genes of a piece were not known; now they are."""
        if not (0 <= piece.part < len(known) and (piece.at >= 0).all()):
            msg = "there are no such genes"
            raise ValueError(msg)
        fresh = ~known[piece.part][piece.at]
        known[piece.part][piece.at] = True
        return fresh

    def add(self, piece: Piece) -> None:
        """Keep some fits, on the disk when they are enough for a file."""
        self.pending.setdefault(piece.part, []).append(piece)
        n = sum(each.at.size for pieces in self.pending.values() for each in pieces)
        if n >= GENES or time.monotonic() - self.written >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has not been written.

        Raises
        ------
        OSError
            The disk is full, for instance; what was written before is good.
        """
        for part in list(self.pending):
            piece = join_pieces(self.pending.pop(part))
            arrays: dict[str, Any] = piece.arrays() | {"run": np.array(self.run)}
            contents = io.BytesIO()  # numpy 2.0 leaves a file that cannot grow in a state that is complained of later
            np.savez(contents, **arrays)
            name = f"part{part:04d}-{int(piece.at.min()):06d}.npz"
            self._write(name, lambda file, contents=contents: file.write(contents.getbuffer()))
        self.written = time.monotonic()

    def __enter__(self) -> Checkpoint:
        self.written = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()
            return
        # whatever ended the run, a Ctrl-C for instance, what was done is kept if that is possible
        with suppress(OSError, MemoryError):
            self.flush()

    def remove(self) -> None:
        """Delete the files of the checkpoint, and the folder if there is nothing else in it."""
        for pattern in (BLOCKS, UNFINISHED, HEADER):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _check_place(self) -> None:
        there = next(place for place in (self.folder, *self.folder.absolute().parents) if place.exists())
        what = f"checkpoint={str(self.folder)!r}"
        if not there.is_dir():
            is_itself = there == self.folder
            msg = f"{what} {'is' if is_itself else f'cannot be made: {str(there)!r} is'} a file and no folder."
            raise NotADirectoryError(msg)
        if not os.access(there, os.W_OK):
            msg = f"{what}: the folder {str(there)!r} cannot be written to."
            raise PermissionError(msg)

    def _read_header(self) -> dict[str, Any] | None:
        """Read which run the folder is of; None where there is none yet."""
        if not self.folder.is_dir():
            return None
        path = self.folder / HEADER
        if not path.is_file():
            others = [each.name for each in self.folder.iterdir() if not each.match(UNFINISHED)]
            if others:
                msg = (
                    f"checkpoint={str(self.folder)!r} is a folder with other things in it ({others[0]!r}, for "
                    "instance) and no checkpoint: name a folder of its own, which need not exist."
                )
                raise ValueError(msg)
            return None
        try:
            header = json.loads(path.read_text(encoding="utf-8"))
            good = header["format"] == FORMAT and isinstance(header["fingerprint"], dict)
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            msg = (
                f"{str(path)!r} is not that of a checkpoint which this version of scglmm reads: delete the folder "
                f"{str(self.folder)!r}, or name another one."
            )
            raise ValueError(msg)
        return header

    def _write(self, name: str, write: Any) -> None:
        """Write a file, which gets its name when it is complete and on the disk."""
        unfinished = self.folder / f".{name}.{os.getpid()}.unfinished"
        with self._told("written"):
            try:
                with unfinished.open("wb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(self.folder / name)
            except BaseException:
                with suppress(OSError):
                    unfinished.unlink(missing_ok=True)
                raise
            _sync_folder(self.folder)

    def _told(self, what: str) -> _Told:
        return _Told(self.folder, what)


class _Told:
    """Turn an OSError into one that says what it means for the run."""

    def __init__(self, folder: Path, what: str) -> None:
        self.folder, self.what = folder, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, OSError):
            return
        room = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        msg = (
            f"The checkpoint {str(self.folder)!r} cannot be {self.what}: {error.strerror or error}. Nothing was "
            f"written to `adata`. What is in the checkpoint stays good: "
            f"{'make room' if room else 'put that right'}, and the same call goes on from there."
        )
        raise OSError(msg) from error


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system lets one."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
