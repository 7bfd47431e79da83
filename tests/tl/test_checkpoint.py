"""The folder of a checkpoint: what it is good for, what it refuses, and what it survives."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData

import scglmm
from scglmm.inference import genes
from scglmm.tl import _checkpoint as checkpoints


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Three blocks for the 30 genes: of 16, 12 and 2."""
    monkeypatch.setattr(checkpoints, "GENES", 16)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "new" / "checkpoint"


@pytest.fixture(scope="module")
def _made(tmp_path_factory, _simulated, formula) -> Path:
    made = tmp_path_factory.mktemp("checkpoint") / "made"
    before, checkpoints.GENES = checkpoints.GENES, 16
    scglmm.tl.nbmm(_simulated, formula, checkpoint=made, copy=True)
    checkpoints.GENES = before
    return made


@pytest.fixture
def made(_made, folder) -> Path:
    """Checkpoint of a complete run of `adata`."""
    return Path(shutil.copytree(_made, folder))


@pytest.fixture
def count_fits(monkeypatch) -> list[int]:
    """Numbers of genes that are fitted, task by task."""
    counted = []
    fit_task = genes._fit_task

    def fit(task):
        counted.append(task.tables.genes.size)
        return fit_task(task)

    monkeypatch.setattr(genes, "_fit_task", fit)
    return counted


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


BLOCKS = ["part0000-000000.npz", "part0000-000016.npz", "part0001-000000.npz"]  # two genes have nodes of their own


def test_a_run_with_a_checkpoint_is_the_same(adata, fitted, formula, folder, assert_same, count_fits, log):
    sc.settings.verbosity = 2
    scglmm.tl.nbmm(adata, formula, checkpoint=str(folder))
    assert_same(adata, fitted)
    assert sum(count_fits) == 30
    assert names(folder) == [*BLOCKS, "run.json"]
    # what has a say in nothing may differ, and nothing is fitted or read again
    again = adata.copy()
    again.layers["counts"] = again.X.copy()
    again.X = None
    scglmm.tl.nbmm(again, formula, checkpoint=folder, n_jobs=2, layer="counts", key_added="other")
    assert sum(count_fits) == 30
    np.testing.assert_array_equal(again.varm["other_coef"], fitted.varm["nbmm_coef"])
    assert f"30 of 30 fits are in the checkpoint {str(folder)!r}" in log.getvalue()


def test_text_or_categories_are_the_same_data(adata, formula, made, count_fits):
    adata.obs["SubID"] = adata.obs["SubID"].astype(str)
    adata.obs["stim"] = adata.obs["stim"].astype(str).astype("category").cat.add_categories("never")
    adata.obs["Age"] = adata.obs["Age"].astype("Float64")
    scglmm.tl.nbmm(adata, formula, checkpoint=made)
    assert not count_fits


# -------------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit(143)])
def test_what_was_done_is_kept(
    adata, fitted, formula, folder, monkeypatch, assert_untouched, assert_same, count_fits, error
):
    """Also what does not fill a block yet."""
    monkeypatch.setattr(checkpoints, "GENES", 100)
    before = adata.copy()
    fit_task = genes._fit_task

    def stop(task):
        if count_fits:
            raise error
        return fit_task(task)

    monkeypatch.setattr(genes, "_fit_task", stop)
    with pytest.raises(error if isinstance(error, type) else SystemExit):
        scglmm.tl.nbmm(adata, formula, checkpoint=folder)
    assert_untouched(adata, before)
    assert names(folder) == [BLOCKS[0], "run.json"]
    monkeypatch.setattr(genes, "_fit_task", fit_task)
    scglmm.tl.nbmm(adata, formula, checkpoint=folder)
    assert count_fits == [16, 12, 2]
    assert_same(adata, fitted)


def test_blocks_are_written_in_time(adata, formula, folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "GENES", 1000)
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    scglmm.tl.nbmm(adata, formula, checkpoint=folder)
    assert names(folder) == [*BLOCKS, "run.json"]


# ------------------------------------------------------------------------------------------------------ damaged blocks


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.find(b"fit.beta.npy") + 200
    content[at] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("text")


def without_an_array(path: Path) -> None:
    rewrite(path, lambda arrays: arrays.pop("fit.se"))


def beyond_the_genes(path: Path) -> None:
    rewrite(path, lambda arrays: arrays.update(at=arrays["at"] + 30))


def before_the_genes(path: Path) -> None:
    rewrite(path, lambda arrays: arrays.update(at=arrays["at"] - 30))


def of_another_part(path: Path) -> None:
    rewrite(path, lambda arrays: arrays.update(part=np.array(-1)))


def of_another_run(path: Path) -> None:
    rewrite(path, lambda arrays: arrays.update(run=np.array("other")))


class Harmful:
    """Pickled, it would end the tests."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return exec, ("raise SystemExit('code in a checkpoint was run')",)


def with_code(path: Path) -> None:
    rewrite(path, lambda arrays: arrays.update({"fit.theta": np.array([Harmful()] * arrays["at"].size)}))


def pickled(path: Path) -> None:
    import pickle

    path.write_bytes(pickle.dumps(Harmful()))


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)


DAMAGES = (
    *(truncate, flip, empty, text, without_an_array, beyond_the_genes, before_the_genes, of_another_part),
    *(of_another_run, with_code, pickled),
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_blocks_are_fitted_again(adata, fitted, formula, made, count_fits, assert_same, log, damage):
    sc.settings.verbosity = 1
    damage(made / BLOCKS[0])
    scglmm.tl.nbmm(adata, formula, checkpoint=made)
    assert_same(adata, fitted)
    assert count_fits == [16]
    assert f"WARNING: {str(made / BLOCKS[0])!r} is " in log.getvalue()
    # and are good again
    scglmm.tl.nbmm(adata, formula, checkpoint=made)
    assert count_fits == [16]


def test_blocks_that_overlap(adata, fitted, formula, made, count_fits, assert_same):
    """Of two processes that worked at the same time."""
    with np.load(made / BLOCKS[0]) as file:
        arrays = dict(file)
    np.savez(made / "part0000-000001.npz", **arrays)
    scglmm.tl.nbmm(adata, formula, checkpoint=made)
    assert not count_fits
    assert_same(adata, fitted)


# ------------------------------------------------------------------------------------------------------------ refusals


def one_count_more(adata: AnnData) -> None:
    adata.X.data[7] += 1


def two_cells_exchanged(adata: AnnData) -> None:
    adata.X = adata.X[np.r_[1, 0, 2 : adata.n_obs]]


def older(adata: AnnData) -> None:
    adata.obs["Age"] *= 1 + 1e-12


def donors_renamed(adata: AnnData) -> None:
    adata.obs["SubID"] = adata.obs["SubID"].cat.rename_categories({"D03": "X"})


def another_reference(adata: AnnData) -> None:
    adata.obs["Dx"] = adata.obs["Dx"].cat.reorder_categories(["AD", "Control"])


def another_offset(adata: AnnData) -> None:
    adata.obs.loc["c5", "libSize"] += 1


def genes_renamed(adata: AnnData) -> None:
    adata.var_names = [f"h{i}" for i in range(adata.n_vars)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_count_more, "counts differ"),
        (two_cells_exchanged, "counts differ"),
        (older, "column 'Age' of obs differs"),
        (donors_renamed, "column 'SubID' of obs differs"),
        (another_reference, "column 'Dx' of obs differs"),
        (another_offset, "column 'libSize' of obs differs"),
        (genes_renamed, "genes differ"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_other_data_are_refused(adata, formula, made, assert_untouched, change, said):
    change(adata)
    before = adata.copy()
    kept = names(made)
    with pytest.raises(ValueError, match=f"of another run: .*{said}.* Name another folder for this run, or delete"):
        scglmm.tl.nbmm(adata, formula, checkpoint=made)
    assert_untouched(adata, before)
    assert names(made) == kept


def test_fewer_cells_are_refused(adata, formula, made):
    with pytest.raises(ValueError, match="number of cells was 480 and is 470"):
        scglmm.tl.nbmm(adata[:470].copy(), formula, checkpoint=made)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"formula": "~ Dx + (1|SubID)"}, r"formula was '~ offset.*' and is '~ Dx \+ \(1\|SubID\)'"),
        ({"method": "ml"}, "method was 'reml' and is 'ml'"),
        ({"moderate": False}, "moderate was None and is False"),
        ({"family": "poisson", "ziformula": "~ 1"}, "family was 'nbinom2' and is 'poisson'; ziformula was None and is"),
        ({"n_quad": 3, "method": "ml"}, "n_quad was 1 and is 3"),
        ({"min_cells": 5}, "min_cells was 10 and is 5"),
        ({"groupby": "Dx"}, "groupby was None and is 'Dx'"),
    ],
)
def test_other_models_are_refused_before_any_work(adata, formula, made, monkeypatch, how, said):
    monkeypatch.setattr("scglmm.tl._nbmm.prepare_run", lambda *args, **kwargs: pytest.fail("the counts were read"))
    with pytest.raises(ValueError, match=said):
        scglmm.tl.nbmm(adata, **({"formula": formula, "checkpoint": made} | how))


def test_other_genes_are_refused(adata, formula, made):
    with pytest.raises(ValueError, match="genes differ"):
        scglmm.tl.nbmm(adata, formula, mask_var="tested", checkpoint=made)


def test_another_version_is_refused(adata, formula, made):
    header = json.loads((made / "run.json").read_text())
    header["fingerprint"]["scglmm version"] = "0.0.9"
    (made / "run.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match=f"scglmm version was '0.0.9' and is '{scglmm.__version__}'"):
        scglmm.tl.nbmm(adata, formula, checkpoint=made)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99, "fingerprint": {}}', "\0"])
def test_a_header_that_cannot_be_read(adata, formula, made, content):
    (made / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run.json' is not that of a checkpoint .* delete the folder"):
        scglmm.tl.nbmm(adata, formula, checkpoint=made)


def test_places_that_are_none(adata, formula, tmp_path, monkeypatch):
    monkeypatch.setattr("scglmm.tl._nbmm.prepare_run", lambda *args, **kwargs: pytest.fail("work has begun"))
    (tmp_path / "file").write_text("")
    for folder, error, said in (
        (3, TypeError, r"must be the path of a folder, not 3 \(int\)"),
        ("", TypeError, "must be the path of a folder"),
        (tmp_path, ValueError, r"other things in it \('file', for instance\) and no checkpoint"),
        (tmp_path / "file", NotADirectoryError, "is a file and no folder"),
        (tmp_path / "file" / "new", NotADirectoryError, "cannot be made: .*file' is a file"),
    ):
        with pytest.raises(error, match=said):
            scglmm.tl.nbmm(adata, formula, checkpoint=folder)
    assert names(tmp_path) == ["file"]


# ------------------------------------------------------------------------------------------------------------ full disk


@contextmanager
def largest_file(size: int):
    """A disk on which files cannot grow beyond some bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(adata, fitted, formula, folder, monkeypatch, assert_untouched, assert_same, count_fits):
    """The second block does not fit any more."""
    before = adata.copy()
    write = checkpoints.Checkpoint._write
    written = []

    def fill(self, name, contents):
        if written:
            with largest_file(4096):
                write(self, name, contents)
        write(self, name, contents)
        written.extend([name] if name.startswith("part") else [])

    monkeypatch.setattr(checkpoints.Checkpoint, "_write", fill)
    with pytest.raises(OSError, match=r"cannot be written: File too large\. Nothing was written to `adata`.*make room"):
        scglmm.tl.nbmm(adata, formula, checkpoint=folder)
    monkeypatch.undo()
    assert_untouched(adata, before)
    assert names(folder) == [BLOCKS[0], "run.json"]
    scglmm.tl.nbmm(adata, formula, checkpoint=folder)
    assert_same(adata, fitted)


@pytest.mark.parametrize("stage", ["mkdir", "open", "replace"])
def test_no_room_at_all(adata, formula, folder, monkeypatch, assert_untouched, stage):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = adata.copy()
    monkeypatch.setattr(Path, stage, fail)
    with pytest.raises(OSError, match=r"No space left on device.* make room, and the same call goes on from there"):
        scglmm.tl.nbmm(adata, formula, checkpoint=folder)
    monkeypatch.undo()
    assert_untouched(adata, before)
    assert not folder.exists() or not names(folder)


def test_remove(made):
    (made / ".part0000-000016.npz.99.unfinished").write_text("half")
    checkpoints.Checkpoint(made).remove()
    assert not made.exists()


def test_remove_leaves_other_things(made):
    checkpoint = checkpoints.Checkpoint(made)
    (made / "mine.txt").write_text("")
    checkpoint.remove()
    assert names(made) == ["mine.txt"]


def test_columns_of_all_kinds():
    """Equal values have equal digests, whatever holds them; other values have others."""
    from scglmm.tl._fingerprint import _column

    same = [pd.Series([1, 2, 3]), pd.Series([1.0, 2.0, 3.0]), pd.Series([1, 2, 3], dtype="Int8")]
    assert len({_column(column) for column in same}) == 1
    words = [pd.Series(["a", "b", "a"]), pd.Series(["a", "b", "a"], dtype="string"), pd.Categorical(["a", "b", "a"])]
    assert len({_column(pd.Series(column)) for column in words}) == 1
    others = [
        pd.Series(["a", "b", "b"]), pd.Series(["a", "b", None]), pd.Series(["a", "c", "a"]), pd.Series(["a,b", ""]),
        pd.Series([True, False, True]), pd.Series([1, 2, np.nan]), pd.Series([1, 2, 4]),
        pd.Series(pd.Categorical(["a", "b", "a"], categories=["b", "a"])),
    ]  # fmt: skip
    assert len({_column(column) for column in [*others, same[0], words[0]]}) == len(others) + 2
