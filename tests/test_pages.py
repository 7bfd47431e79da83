"""The code on the pages of the documentation runs, and shows what it says.

Blocks of a page marked as python run one after the other in one namespace, those with ``>>>`` as doctests. What a page
takes for granted, the reader's own data, is in the function of its name below.
"""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from matplotlib import pyplot as plt
from scipy import sparse

import scglmm

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
PAGES = sorted(
    path.relative_to(DOCS).with_suffix("").as_posix()
    for path in DOCS.rglob("*.md")
    if not {"_build", "generated"} & set(path.parts) and BLOCK.search(path.read_text())
)


def units(**levels: int | list[str]) -> pd.DataFrame:
    """`obs` with all combinations of the levels; a number stands for so many levels, named by the first letter."""
    names = {k: v if isinstance(v, list) else [f"{k[0].upper()}{i}" for i in range(v)] for k, v in levels.items()}
    obs = pd.MultiIndex.from_product(names.values(), names=names.keys()).to_frame(index=False)
    return obs.astype("category").set_axis([f"cell{i}" for i in range(len(obs))])


def halves(column: pd.Series, first: str, second: str) -> pd.Categorical:
    """Give the levels of a column one of two values in turn."""
    return pd.Categorical(np.where(column.cat.codes % 2, second, first), categories=[first, second])


def counts(obs: pd.DataFrame, n_genes: int = 6, seed: int = 0) -> AnnData:
    """Counts without any effects but those of the donors."""
    rng = np.random.default_rng(seed)
    obs = obs.assign(size=np.round(rng.lognormal(8, 0.3, len(obs))))
    donor = rng.normal(0, 0.3, (obs["donor"].nunique(), n_genes))[obs["donor"].cat.codes]
    mean = rng.uniform(0.5, 4, n_genes) * np.exp(donor) * (obs["size"].to_numpy() / 3000)[:, None]
    X = sparse.csr_matrix(rng.negative_binomial(2, 2 / (2 + mean)).astype(np.float32))
    return AnnData(X, obs=obs, var=pd.DataFrame(index=[f"GENE{g}" for g in range(n_genes)]))


def cohort(n_cells: int = 40) -> pd.DataFrame:
    obs = units(donor=12, cell=n_cells)
    donor = obs["donor"].cat.codes
    return obs.assign(
        Dx=halves(obs["donor"], "Control", "AD"),
        Age=60.0 + donor * 7 % 23,
        Sex=pd.Categorical(np.where(donor % 3 > 0, "F", "M")),
        batch=pd.Categorical((donor // 4 + 1).astype(str)),
    )


def paired() -> pd.DataFrame:
    obs = units(donor=8, stim=["ctrl", "stim"], cell=30)
    return obs.assign(Dx=halves(obs["donor"], "healthy", "SLE"), cell_type=halves(obs["cell"], "B", "T"))


def guide_designs() -> dict[str, Any]:
    everyone = cohort()
    visits = units(donor=12, visit=["w0", "w4", "w12"], cell=20)
    visits = visits.assign(
        week=visits["visit"].astype(str).str[1:].astype(float), arm=halves(visits["donor"], "placebo", "drug")
    )
    tissues = units(donor=12, tissue=["blood", "liver", "spleen"], cell=20)
    lanes = units(donor=12, lane=2, cell=20)
    litters = units(litter=6, pup=["1", "2", "3", "4"], cell=20)
    return {
        "cohort": everyone,
        "paired": paired(),
        "adata": counts(paired()),
        "lanes": lanes.assign(Dx=halves(lanes["donor"], "Control", "AD")),
        "confounded": everyone.assign(batch=pd.Categorical(np.where(everyone["Dx"] == "AD", "2", "1"))),
        "visits": visits,
        "tissues": tissues.assign(Dx=halves(tissues["donor"], "Control", "AD")),
        "litters": litters.assign(
            diet=halves(litters["litter"], "lean", "fat"), drug=halves(litters["pup"], "no", "yes")
        ),
        "two_donors": counts(everyone[everyone["donor"].isin(["D0", "D1"])]),
    }


def guide_offsets() -> dict[str, Any]:
    adata = counts(cohort())
    adata.obs["libSize"] = adata.obs.pop("size")
    return {"adata": adata, "coef": "Dx[T.AD]"}


def guide_results() -> dict[str, Any]:
    return {"adata": counts(cohort(), n_genes=60)}


def guide_statuses() -> dict[str, Any]:
    adata = counts(cohort(), n_genes=5, seed=5)
    rng = np.random.default_rng(5)
    X = adata.X.toarray()
    X[:, 1] = rng.negative_binomial(2, 0.5, adata.n_obs)  # donors do not differ
    X[adata.obs["Dx"] == "Control", 2] = 0
    X[:, 3] = np.arange(adata.n_obs) < 5
    # never two counts in a cell, and donors that differ
    X[:, 4] = rng.random(adata.n_obs) < rng.uniform(0.05, 0.6, 12)[adata.obs["donor"].cat.codes]
    adata.X = sparse.csr_matrix(X)
    return {"adata": adata}


def guide_moderation() -> dict[str, Any]:
    obs = units(donor=6, cell=20)
    return {"adata": counts(obs.assign(Dx=halves(obs["donor"], "Control", "AD")), n_genes=220)}


def calibration() -> dict[str, Any]:
    adata = counts(cohort(), n_genes=12)
    adata.obs["treatment"] = adata.obs["Dx"]
    return {"adata": adata}


def planning() -> dict[str, Any]:
    adata = counts(paired())
    adata.obs["ind"] = adata.obs["donor"]
    pilot = counts(cohort(), n_genes=2)
    pilot.var_names = ["PTPRG", "APOE"]
    scglmm.tl.nbmm(pilot, "~ offset(log(size)) + Dx + (1|donor)")
    return {"adata": adata, "formula": "~ stim + (1|ind) + (1|ind:stim)", "pilot": pilot}


SETUP = {
    "calibration": calibration,
    "guide/designs": guide_designs,
    "guide/moderation": guide_moderation,
    "guide/offsets": guide_offsets,
    "guide/pseudobulk": guide_results,
    "guide/results": guide_results,
    "guide/statuses": guide_statuses,
    "mixed_models": lambda: {"sleepstudy": scglmm.datasets.sleepstudy()},
    "planning": planning,
}

NOT_RUN = {"faults": "starts processes and clusters", "large_data": "reads files and starts clusters"}


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sc.settings.verbosity
    sc.settings.verbosity = 0
    plt.switch_backend("agg")
    yield
    plt.close("all")
    sc.settings.verbosity = before


@pytest.mark.parametrize("page", PAGES)
def test_page(page, monkeypatch):
    if page in NOT_RUN:
        pytest.skip(NOT_RUN[page])
    if page == "index":
        few = scglmm.datasets.psychad()[:, :5].copy()
        monkeypatch.setattr(scglmm.datasets, "psychad", lambda: few)
    text = (DOCS / f"{page}.md").read_text()
    space = SETUP[page]() if page in SETUP else {}
    space["scglmm"] = scglmm
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    for match in BLOCK.finditer(text):
        line = text[: match.start()].count("\n") + 1
        if match[1].startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(match[1], space, page, f"{page}.md", line)
            runner.run(test, out=said.append, clear_globs=False)
            space = test.globs
        else:
            exec(compile("\n" * line + match[1], f"{page}.md", "exec"), space)
    assert not runner.summarize(verbose=False).failed, "".join(said)


def test_pseudobulk_quotes_the_calibration():
    """The table of what was measured has the numbers of docs/calibration, rounded."""
    measured = pd.read_csv(DOCS / "calibration" / "summary.csv").set_index(["scenario", "method"])
    text = (DOCS / "guide" / "pseudobulk.md").read_text()
    rows = re.findall(r"^\| ((?:between|within)-\S+) \|(.*)\|$", text, re.M)
    assert len(rows) > 5
    for scenario, cells in rows:
        expected = [
            measured.loc[(scenario, method), column]
            for method in ("reml", "edgeR-QL", "PyDESeq2")
            for column in ("type1_0.05", "size_adjusted")
        ]
        quoted = [float(number) for number in re.findall(r"[\d.]+", cells)]
        np.testing.assert_allclose(quoted, 100 * np.array(expected), atol=0.0501)


def test_coming_from_r_quotes_nebula(reference):
    """How far NEBULA is from maximum likelihood on the reference data."""
    adata = sc.read_h5ad(reference / "psychad40.h5ad")
    adata.obs["Age_s"] = (adata.obs["Age"] - adata.obs["Age"].mean()) / adata.obs["Age"].std()
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Age_s + Sex + (1|SubID)", method="ml")
    ours = scglmm.get.nbmm_df(adata, "Dx[T.AD]").set_index("gene")
    for kind in ("LN", "HL"):
        theirs = pd.read_csv(reference / f"psychad40_nebula_{kind}.csv").set_index("gene").loc[ours.index]
        distance = ((theirs["logFC_DxAD"] - ours["log_fc"]) / ours["se"]).abs()
        assert distance.median() == pytest.approx(0.13, abs=0.005)
        assert distance.max() == pytest.approx(1.5, abs=0.05)
        assert 0.97 < (theirs["se_DxAD"] / ours["se"]).median() < 0.98


def test_everything_public_is_in_the_reference():
    listed = re.findall(r"^    ([\w.]+)$", (DOCS / "api" / "index.md").read_text(), re.M)
    modules = [name for name in scglmm.__all__ if inspect.ismodule(getattr(scglmm, name))]
    names = [f"{module}.{name}" for module in modules for name in getattr(scglmm, module).__all__]
    names += [name for name in scglmm.__all__ if name not in modules]
    twice = {f"mixed.{name}" for name in scglmm.__all__}
    assert sorted(listed) == sorted(set(names) - twice)
