"""``scglmm design``: what is shown is what a run fits."""

from __future__ import annotations

import json

import numpy as np
import pytest

import scglmm

FORMULA = "~ offset(log(libSize)) + Dx * Sex + Age + C(batch) + (1|SubID) + (1|SubID:batch)"


@pytest.fixture
def batches(counts, h5ad):
    counts.obs["batch"] = np.random.default_rng(4).integers(1, 4, counts.n_obs)
    counts.write_h5ad(h5ad)
    return h5ad


@pytest.mark.parametrize("arguments", [[], ["--backed"], ["--groupby", "type"], ["--trial", "0", "--mask-var", "some"]])
def test_json(batches, counts, run, arguments):
    done = run("design", batches, FORMULA, "--json", *arguments)
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    groupby = "type" if "--groupby" in arguments else None
    scglmm.tl.nbmm(counts, FORMULA, groupby=groupby, mask_var="some" if "--mask-var" in arguments else None)
    entry = counts.uns["nbmm"]
    terms = {row.pop("term"): row for row in plan["terms"]}
    columns = [
        "(Intercept)",
        *[c for row in terms.values() if row["kind"] == "fixed" for c in row["columns"].split(", ")],
    ]
    assert columns == list(entry["coefficients"])
    assert terms["Dx"]["levels"] == "Control, AD, MCI"
    assert terms["Dx"]["reference"] == "Control"
    assert terms["Dx:Sex"]["reference"] == "Control; F"
    assert terms["C(batch)"]["levels"] == "1, 2, 3"
    assert terms["Age"] == {"kind": "fixed", "columns": "Age", "levels": "", "reference": ""}
    assert terms["(1|SubID)"] == {"kind": "random", "columns": "(Intercept)", "levels": "12 of SubID", "reference": ""}
    assert terms["log(libSize)"]["kind"] == "offset"
    groups = plan["groups"]
    assert [row["group"] for row in groups] == (["B", "T/NK"] if groupby else ["all cells"])
    for total, column in (("n_cells", "cells"), ("n_strata", "strata"), ("n_nodes", "nodes")):
        assert entry[total] == sum(row[column] for row in groups)
    tested = sum(n for status, n in entry["status_counts"].items() if status != "too_few_counts")
    assert plan["n_fits"] == sum(row["genes"] for row in groups) == tested
    assert plan["memory"] > 0
    assert (plan["seconds"] is None) is ("--trial" in arguments)


def test_text(batches, run):
    done = run("design", batches, FORMULA, "--groupby", "type", "--min-donors", 2, "-q")
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == f"formula  {FORMULA}"
    assert lines[1] == "cells    400 of 400"
    assert lines[2] == "genes    12 (24 fits)"
    assert lines[4].split() == ["term", "kind", "columns", "levels", "reference"]
    assert any(line.split()[:3] == ["group", "cells", "donors"] for line in lines)
    assert any(
        line.startswith("expected time    ") and line.endswith(" with 1 worker on an idle machine") for line in lines
    )
    assert lines[-1].startswith("expected memory  ")


def test_skipped_groups_and_dropped_levels(batches, counts, run):
    counts.obs.loc[(counts.obs["type"] == "B") & (counts.obs["batch"] == 3), "batch"] = 2
    counts.obs.loc[counts.obs_names[:3], "type"] = np.nan
    counts.write_h5ad(batches)
    done = run("design", batches, FORMULA, "--groupby", "type", "--na-action", "drop", "--trial", 0, "-q")
    row = next(line for line in done.stdout.splitlines() if line.startswith("B "))
    assert row.split()[-3:] == ["batch:", "3", "ok"]
    counts.obs.loc[counts.obs["type"] == "B", "Sex"] = "F"
    counts.write_h5ad(batches)
    done = run("design", batches, FORMULA, "--groupby", "type", "--na-action", "drop", "--trial", 0, "-q")
    row = next(line for line in done.stdout.splitlines() if line.startswith("B "))
    assert "skipped: 'Sex' is constant" in row


def test_errors(batches, run):
    done = run("design", batches, "~ nothing + (1|SubID)")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: obs has no column 'nothing'")


def test_nothing_is_written(batches, run):
    before = batches.read_bytes()
    run("design", batches, FORMULA, "--backed")
    assert batches.read_bytes() == before
    assert [path.name for path in batches.parent.iterdir()] == ["in.h5ad"]
