"""Runs that are stopped on the way, and gone on with: python stopped.py in.h5ad folder.

Every run is a process of its own, forked so that all have the same compiled code. Writes `expected-*.h5ad`, and what
came out of going on with the checkpoint of every stopped run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import scanpy as sc

import scglmm
from scglmm.inference import genes
from scglmm.tl import _checkpoint as checkpoints

FORMULA = "~ offset(log(libSize)) + Age + (1|SubID)"
RUNS = {
    "moderated": {"moderate": True},
    "groups": {"groupby": "Dx", "ziformula": "~ 1", "mask_var": "tested", "method": "ml"},
}
GENES = 16


def forked(run: Callable[[], None]) -> int:
    """Start a process that runs something; its exit code is 1 after an error."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run()
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kill_at(stage: str, n: int) -> None:
    """Let this process kill itself when n files are written: before the next, in the middle of it, or between two."""
    write, add = checkpoints.Checkpoint._write, checkpoints.Checkpoint.add
    written = []

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_or_die(self: object, name: str, fill: Callable[..., None]) -> None:
        def fill_half(file: object) -> None:
            fill(file)
            file.truncate(file.tell() // 2)
            kill()

        last = len(written) > n  # the header is a file too
        write(self, name, {"boundary": kill, "half": fill_half}.get(stage, fill) if last else fill)
        written.append(name)

    def add_and_die(self: object, piece: object) -> None:
        add(self, piece)
        if stage == "between" and len(written) > n and self.pending:
            kill()

    checkpoints.Checkpoint._write, checkpoints.Checkpoint.add = write_or_die, add_and_die


def slowly() -> None:
    """Give the signal time to come."""
    fit_task = genes._fit_task

    def fit(task: object) -> object:
        time.sleep(0.2)
        return fit_task(task)

    genes._fit_task = fit


def main(counts: str, out: Path) -> None:
    adata = ad.read_h5ad(counts)

    def run(how: dict, **more: object) -> ad.AnnData:
        return scglmm.tl.nbmm(adata, FORMULA, copy=True, **how, **more)

    for name, how in RUNS.items():
        run(how).write_h5ad(out / f"expected-{name}.h5ad")

    kills = [("moderated", "boundary", 2), ("moderated", "half", 1), ("groups", "between", 1)]
    for name, stage, n in kills:
        folder = out / "checkpoint"
        checkpoints.GENES = GENES * (1 + (stage == "between"))

        def killed(name: str = name, stage: str = stage, n: int = n, folder: Path = folder) -> None:
            kill_at(stage, n)
            run(RUNS[name], checkpoint=folder)

        _, status = os.waitpid(forked(killed), 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        blocks = sorted(path.stat().st_mtime_ns for path in folder.glob("part*"))
        assert len(blocks) == n
        assert len(list(folder.glob(".*unfinished"))) == (stage != "between")
        checkpoints.GENES = 1000
        run(RUNS[name], checkpoint=folder).write_h5ad(out / f"{name}-{stage}.h5ad")
        assert sorted(path.stat().st_mtime_ns for path in folder.glob("part*"))[:n] == blocks  # used, not made again
        shutil.rmtree(folder)

    def interrupted(n_jobs: int, folder: Path) -> None:
        slowly()
        before = set(adata.varm), set(adata.uns)
        try:
            scglmm.tl.nbmm(adata, FORMULA, n_jobs=n_jobs, checkpoint=folder, **RUNS["moderated"])
        except KeyboardInterrupt:
            assert (set(adata.varm), set(adata.uns)) == before
            sys.exit(7)

    def interrupted_command(n_jobs: int, folder: Path) -> None:
        from scglmm.cli import main as command

        slowly()
        sys.argv = ["scglmm", "nbmm", counts, FORMULA, "--moderate", "-q", "--csv", str(out / "never.csv")]
        sys.argv += ["--out", str(out / "never.h5ad"), "--n-jobs", str(n_jobs), "--checkpoint", str(folder)]
        os.dup2(os.open(out / "stderr", os.O_CREAT | os.O_WRONLY), 2)
        command()

    seconds = {}
    for what, n_jobs, code in ((interrupted, 1, 7), (interrupted, 2, 7), (interrupted_command, 2, 130)):
        name = f"{what.__name__}-{n_jobs}"
        folder = out / name
        checkpoints.GENES = GENES
        pid = forked(lambda what=what, n_jobs=n_jobs, folder=folder: what(n_jobs, folder))
        while not list(folder.glob("part*")):
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            time.sleep(0.01)
        begin = time.monotonic()
        os.kill(pid, signal.SIGINT)
        _, status = os.waitpid(pid, 0)
        seconds[name] = time.monotonic() - begin
        assert os.waitstatus_to_exitcode(status) == code
        assert len(list(folder.glob("part*"))) < 4  # not done
        run(RUNS["moderated"], checkpoint=folder).write_h5ad(out / f"{name}.h5ad")
    (out / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    # A shell that starts this in the background has it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sc.settings.verbosity = 0
    main(sys.argv[1], Path(sys.argv[2]))
