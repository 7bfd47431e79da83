"""``scglmm nbmm``: the numbers are the API's, files are complete or not there, errors are one line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

import scglmm
from scglmm.cli import nbmm
from scglmm.cli._errors import one_line

FORMULA = "~ offset(log(libSize)) + Dx + Age + (1|SubID)"


def assert_same_result(one: ad.AnnData, two: ad.AnnData, key: str = "nbmm") -> None:
    names = [name for name in two.varm if name.startswith(f"{key}_")]
    assert len(names) == 9 + any(name.endswith("_dvcov") for name in names)  # REML only
    for name in names:
        a, b = one.varm[name], two.varm[name]
        if isinstance(b, pd.DataFrame):
            assert list(a.columns) == list(b.columns)
            for column in b:
                np.testing.assert_array_equal(a[column].to_numpy(), b[column].to_numpy())
        else:
            np.testing.assert_array_equal(a, b)
    assert set(one.uns[key]) == set(two.uns[key])


def on_disk(h5ad: Path, formula: str) -> ad.AnnData:
    """Result of the API on the same file: what is read from disk is added up in another order than in memory."""
    stored = ad.read_h5ad(h5ad, backed="r")
    scglmm.tl.nbmm(stored, formula)
    stored.file.close()
    return stored


@pytest.mark.parametrize("backed", [False, True])
def test_the_numbers_are_those_of_the_api(counts, h5ad, run, tmp_path, backed):
    out, csv = tmp_path / "out.h5ad", tmp_path / "results.csv"
    done = run("nbmm", h5ad, FORMULA, "--out", out, "--csv", csv, "--n-jobs", 2, *["--backed"] * backed)
    assert done.exit_code == 0, done.stderr
    scglmm.tl.nbmm(counts, FORMULA)
    written, expected = ad.read_h5ad(out), on_disk(h5ad, FORMULA) if backed else counts
    assert_same_result(written, expected)
    assert csv.read_text() == scglmm.get.nbmm_df(expected).to_csv(index=False)  # every digit
    np.testing.assert_allclose(written.varm["nbmm_coef"], counts.varm["nbmm_coef"], rtol=1e-8)
    # the rest of the file is as it was
    assert written.uns["note"] == {"kept": True}
    assert {"PCs"} < set(written.varm)
    np.testing.assert_array_equal(written.layers["umi"].toarray(), counts.layers["umi"].toarray())
    pd.testing.assert_frame_equal(written.obs, ad.read_h5ad(h5ad).obs)
    assert written.raw.shape == (400, 12)
    with h5py.File(out) as file:
        assert file["X/data"].compression == "gzip"
    assert "nbmm" not in ad.read_h5ad(h5ad).uns
    assert "fitting ~ offset(log(libSize)) + Dx + Age + (1|SubID) to 12 genes" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad", "results.csv"]


def test_all_options(counts, h5ad, run, tmp_path):
    out = tmp_path / "out.h5ad"
    formula = FORMULA.replace("Age", "Sex")
    done = run(
        *["nbmm", h5ad, formula, "--out", out, "-q", "--key-added", "mine", "--layer", "umi", "--mask-var", "some"],
        *["--groupby", "type", "--padj-across", "--min-donors", 2, "--method", "ml", "--min-cells", 5],
        *[
            "--na-action",
            "drop",
            "--varpart-method",
            "delta",
            "--family",
            "poisson",
            "--n-quad",
            15,
            "--ziformula",
            "~ 1",
        ],
    )
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    scglmm.tl.nbmm(
        *(counts, formula),
        key_added="mine",
        layer="umi",
        mask_var="some",
        groupby="type",
        padj_across=True,
        min_donors=2,
        method="ml",
        min_cells=5,
        na_action="drop",
        varpart_method="delta",
        family="poisson",
        n_quad=15,
        ziformula="~ 1",
    )
    assert_same_result(ad.read_h5ad(out), counts, "mine")
    assert run("nbmm", h5ad, FORMULA, "--use-raw", "--csv", tmp_path / "a.csv").exit_code == 0


def test_every_option_of_the_function_is_there():
    missing = set(inspect.signature(scglmm.tl.nbmm).parameters) - {option.name for option in nbmm.params}
    assert missing == {"adata", "copy"}


def test_the_file_itself_may_be_the_output(h5ad, run):
    for formula in (FORMULA, "~ offset(log(libSize)) + Sex + (1|SubID)"):
        expected = on_disk(h5ad, formula)
        done = run("nbmm", h5ad, formula, "--out", h5ad, "--backed", "-q")
        assert done.exit_code == 0, done.stderr
        assert_same_result(ad.read_h5ad(h5ad), expected)


def test_table_on_stdout(counts, h5ad, run):
    done = run("nbmm", h5ad, FORMULA, "--csv", "-", "-q", "--coef", "Dx[T.AD]")
    scglmm.tl.nbmm(counts, FORMULA)
    expected = scglmm.get.nbmm_df(counts, "Dx[T.AD]")
    expected.insert(0, "coef", "Dx[T.AD]")
    assert done.stdout == expected.to_csv(index=False)


@pytest.mark.parametrize(("name", "sep"), [("a.tsv", "\t"), ("a.csv.gz", ","), ("a.tsv.gz", "\t"), ("a", ",")])
def test_kinds_of_tables(h5ad, run, tmp_path, name, sep):
    arguments = ["--csv", tmp_path / name, "--groupby", "type", "--coef", "Age", "--coef", "Dx[T.MCI]"]
    done = run("nbmm", h5ad, FORMULA, *arguments)
    assert done.exit_code == 0, done.stderr
    table = pd.read_csv(tmp_path / name, sep=sep, compression="gzip" if name.endswith("gz") else None)
    assert list(table.columns[:3]) == ["group", "coef", "gene"]
    assert len(table) == 48


def test_summary(h5ad, counts, run, tmp_path):
    counts.obs.loc[counts.obs["type"] == "B", "Dx"] = "AD"
    counts.write_h5ad(h5ad)
    done = run("nbmm", h5ad, FORMULA, "--csv", tmp_path / "a.csv", "--groupby", "type", "-q")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["group", "status", "genes"]
    assert lines[1][0] == "T/NK"
    assert ["group", "coef", "tested", "padj", "<", "0.05", "up", "down"] in lines
    assert ["T/NK", "Age", "12", "0", "0", "0"] in lines
    assert lines[-1][:5] == ["B", "skipped:", "'Dx'", "is", "constant:"]
    table = pd.read_csv(tmp_path / "a.csv")
    assert set(table["group"]) == {"T∕NK"}  # the spelling of `get.nbmm_df`


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{h5ad}", FORMULA.replace("Age", "age")], "obs has no column 'age', which the formula uses. Did you mean"),
        (["{h5ad}", "~ Dx + (1|SubID"], "(character 8 of '~ Dx + (1|SubID')"),
        (["{h5ad}", FORMULA, "--layer", "u"], "There is no layer 'u'"),
        (["{h5ad}", FORMULA, "--n-jobs", "0"], "n_jobs must be a whole number other than 0"),
        (["{h5ad}", FORMULA, "--groupby", "Type"], "groupby='Type' is not a column of `adata.obs`"),
        (["{h5ad}", FORMULA + " + I(2 * Age)"], "to the others: I(2 * Age) = 2 Age; Take one of"),
        (["{h5ad}", FORMULA, "--coef", "Dx"], "'Dx' is a factor, not a coefficient"),
        (["nothing.h5ad", FORMULA], "There is no file 'nothing.h5ad'."),
        (["{text}", FORMULA], "cannot be read as an h5ad file"),
    ],
)
def test_errors_are_one_line(h5ad, run, tmp_path, arguments, said):
    (tmp_path / "text").write_text("no h5ad")
    files = {"h5ad": h5ad, "text": tmp_path / "text"}
    csv = tmp_path / "a.csv"
    done = run("nbmm", *[argument.format(**files) for argument in arguments], "--csv", csv, "-q")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: ")
    assert said in done.stderr
    assert not csv.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "text"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Usage: scglmm"),
        (["nbmm"], "Missing argument 'H5AD'"),
        (["nbmm", "{h5ad}", FORMULA], "--out, --csv, or both"),
        (["nbmm", "{h5ad}", FORMULA, "--method", "bayes"], "'bayes' is not one of 'reml', 'ml'"),
        (["nbmm", "{h5ad}", FORMULA, "--nothing"], "No such option"),
        (["nbm"], "No such command 'nbm'"),
    ],
)
def test_usage(h5ad, run, arguments, said):
    done = run(*[argument.format(h5ad=h5ad) for argument in arguments])
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize("option", ["--out", "--csv"])
def test_places_that_cannot_be_written(h5ad, run, tmp_path, option, monkeypatch):
    monkeypatch.setattr("scglmm.tl.nbmm", lambda *args, **kwargs: pytest.fail("work has begun"))
    for place, said in (("no/such/file", "There is no folder"), (".", "is a folder")):
        done = run("nbmm", h5ad, FORMULA, option, tmp_path / place)
        assert done.exit_code == 1
        assert said in done.stderr


def test_warnings_are_one_line(h5ad, run, tmp_path, recwarn):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = run("nbmm", h5ad, "~ offset(log(libSize)) + Dx", "--csv", tmp_path / "a.csv", "-q")
    assert done.exit_code == 0
    assert done.stderr.startswith("Warning: The formula has no random effect")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError("odd"), SystemExit(143)])
@pytest.mark.parametrize("stage", ["tl.nbmm", "cli._nbmm.write_with_result", "cli._nbmm.summarise"])
def test_nothing_unfinished_is_left(h5ad, run, tmp_path, error, stage, monkeypatch):
    def stop(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(f"scglmm.{stage}", stop)
    done = run("nbmm", h5ad, FORMULA, "--out", tmp_path / "a.h5ad", "--csv", tmp_path / "a.csv", "-q")
    assert done.exit_code == {KeyboardInterrupt: 130, MemoryError: 1}.get(error, getattr(error, "code", 1))
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5ad"]
    if isinstance(error, RuntimeError):
        assert done.stderr == "Error: Unexpected RuntimeError: odd (scglmm --traceback shows where)\n"
        shown = run("--traceback", "nbmm", h5ad, FORMULA, "--out", tmp_path / "a.h5ad", "--csv", tmp_path / "a.csv")
        assert "Traceback" in shown.stderr
    if error is MemoryError:
        assert done.stderr == "Error: Out of memory.\n"
    if error is KeyboardInterrupt:
        assert done.stderr == "Interrupted: no file was written.\n"


@pytest.mark.parametrize(("option", "name"), [("--out", "a.h5ad"), ("--csv", "a.csv"), ("--csv", "a.csv.gz")])
@pytest.mark.parametrize("room", [1000, 100_000])
def test_a_full_disk(h5ad, run, tmp_path, option, name, room):
    """Files cannot grow beyond some size: one line, and what was there is still there."""
    resource = pytest.importorskip("resource")
    path = tmp_path / name
    path.write_text("old")
    size = h5ad.stat().st_size if option == "--out" else 0  # the copy fits, the results do not
    room = size + room if option == "--out" else room // 100
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        done = run("nbmm", h5ad, FORMULA, option, path, "-q")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"Error: {str(path)!r} cannot be written: File too large. No file was changed.\n"
    assert path.read_text() == "old"
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([name, "in.h5ad"])


def test_room_that_is_asked_for_is_enough(counts, h5ad, run, tmp_path):
    from scglmm.cli._files import _size

    done = run("nbmm", h5ad, FORMULA, "--out", tmp_path / "a.h5ad", "-q", "--groupby", "type")
    assert done.exit_code == 0
    written = ad.read_h5ad(tmp_path / "a.h5ad")
    grown = (tmp_path / "a.h5ad").stat().st_size - h5ad.stat().st_size
    assert 0 < grown < _size(dict(written.varm)) + _size(written.uns["nbmm"])


@pytest.mark.parametrize("to", ["--csv={}", "--csv=-"])
def test_checkpoint(counts, h5ad, run, tmp_path, monkeypatch, to):
    """Kept while the results are nowhere else, removed when they are written."""
    folder, csv = tmp_path / "checkpoint", tmp_path / "a.csv"
    command = ["nbmm", h5ad, FORMULA, to.format(csv), "--checkpoint", folder, "-q"]
    with monkeypatch.context() as broken:
        broken.setattr("scglmm.cli._nbmm.result_table", lambda *args: 1 / 0)
        assert run(*command).exit_code == 1
    assert (folder / "run.json").exists()
    refused = run(*command[:2], FORMULA + " + Sex", *command[3:])
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"Error: The checkpoint {str(folder)!r} is of another run: formula was '~ ")
    assert refused.stderr.count("\n") == 1
    monkeypatch.setattr("scglmm.inference.genes._fit_task", lambda task: pytest.fail("fitted again"))
    done = run(*command)
    assert done.exit_code == 0, done.stderr
    assert not folder.exists()
    monkeypatch.undo()
    scglmm.tl.nbmm(counts, FORMULA)
    found = done.stdout if to == "--csv=-" else csv.read_text()
    assert found == scglmm.get.nbmm_df(counts).to_csv(index=False)


def test_old_results_survive_a_failed_run(h5ad, run, tmp_path, monkeypatch):
    csv = tmp_path / "a.csv"
    csv.write_text("old")
    monkeypatch.setattr("scglmm.cli._nbmm.summarise", lambda *args: 1 / 0)
    assert run("nbmm", h5ad, FORMULA, "--csv", csv).exit_code == 1
    assert csv.read_text() == "old"


def test_a_file_of_an_old_anndata(h5ad, run, tmp_path, counts):
    with h5py.File(h5ad, "r+") as file:
        del file.attrs["encoding-type"]
    done = run("nbmm", h5ad, FORMULA, "--out", tmp_path / "out.h5ad", "-q")
    if done.exit_code:  # newer anndata does not read it at all
        assert done.stderr.count("\n") == 1
        return
    scglmm.tl.nbmm(counts, FORMULA)
    assert_same_result(ad.read_h5ad(tmp_path / "out.h5ad"), counts)


def test_one_line():
    assert one_line(ValueError("what\n    ~ Dx +\n         ^\nadvice")) == "what (character 6 of '~ Dx +') advice"
    assert one_line(KeyError("no column")) == "no column"
    assert one_line(ValueError("No group:\n    'B': why\n    'T': why")) == "No group: 'B': why; 'T': why"


def test_as_a_program(h5ad, tmp_path):
    """Another process, another folder: the exit code, and what goes where."""
    command = [sys.executable, "-m", "scglmm"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == f"scglmm, version {scglmm.__version__}"
    done = subprocess.run(
        [*command, "nbmm", "in.h5ad", "~ offset(log(libSize)) + Dx + (1|subid)", "--csv", "-"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: obs has no column 'subid', which the formula uses. Did you mean 'SubID'?\n"
    assert not Path(tmp_path / "-").exists()
