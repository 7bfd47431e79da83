"""`tl.nbmm` on counts that are not in memory: the numbers of those that are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import zarr
from anndata.experimental import read_lazy
from scipy import sparse

import scglmm
from scglmm.tl._memory import free_memory, memory_budget, parse_memory, spell_bytes
from scglmm.tl._options import RunOptions
from scglmm.tl._plan import plan_run

FORMS = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": lambda X: X.toarray()}
STORAGES = [f"{how} {form}" for how in ("backed", "zarr", "lazy h5ad", "lazy zarr") for form in FORMS]
STORAGES += ["csc", "dense", "integer", "dask rows", "dask columns", "dask both"]


@pytest.fixture
def stored(adata, tmp_path) -> Iterator[Callable[[str], ad.AnnData]]:
    """Put `adata` into a storage."""
    opened = []
    numbers = count()

    def store(name: str, data: ad.AnnData = adata) -> ad.AnnData:
        how, _, form = name.rpartition(" ")
        data = data.copy()
        if how == "dask":
            import dask.array as da

            chunks = {"rows": (100, -1), "columns": (-1, 7), "both": (130, 11)}[form]
            data.layers["counts"] = da.from_array(data.X.toarray(), chunks=chunks).map_blocks(sparse.csr_matrix)
            del data.X
            return data
        data.X = sparse.csr_matrix(data.X.astype(int)) if form == "integer" else FORMS[form](data.X)
        if how == "":
            return data
        path = tmp_path / f"{next(numbers)}.{'zarr' if 'zarr' in how else 'h5ad'}"
        getattr(data, "write_zarr" if "zarr" in how else "write_h5ad")(path)
        if how == "backed":
            opened.append(ad.read_h5ad(path, backed="r"))
            return opened[-1]
        if how == "zarr":
            group = zarr.open_group(path, mode="r")
            X = group["X"] if form == "dense" else ad.io.sparse_dataset(group["X"])
            data.X = X
            return data
        return read_lazy(path)

    yield store
    for each in opened:
        each.file.close()


def layer_of(data: ad.AnnData) -> str | None:
    return "counts" if "counts" in data.layers else None


@pytest.mark.parametrize("name", STORAGES)
def test_same_numbers(name, stored, fitted, formula, assert_same):
    data = stored(name)
    scglmm.tl.nbmm(data, formula, layer=layer_of(data), n_jobs=2)
    assert_same(data, fitted, rtol=1e-8)


@pytest.mark.parametrize("name", ["backed csr", "zarr csc", "lazy zarr dense", "dense", "dask both"])
@pytest.mark.filterwarnings("ignore:The offset is the total count over only 30 genes")
def test_without_an_offset(name, stored, adata, assert_same):
    """The total counts are read first."""
    data = stored(name)
    for each in (data, adata):
        scglmm.tl.nbmm(each, "~ Dx + (1|SubID)", layer=layer_of(each), method="ml", mask_var="tested")
    assert_same(data, adata, rtol=1e-8)


@pytest.mark.parametrize("name", ["backed csr", "backed csc", "zarr dense", "lazy h5ad csr", "dask both"])
def test_blocks_of_genes(name, stored, adata, fitted, formula, assert_same, monkeypatch, log):
    """The same numbers in several blocks, to the last bit as in one, for one thread and two."""
    monkeypatch.setattr("scglmm.compression.chunks.CHUNK_BYTES", 4000)
    monkeypatch.setattr("scglmm.compression.mapreduce.LEAST_ROWS", 50)
    monkeypatch.setattr("scglmm.compression.mapreduce.ROWS_PER_NODE", 0)
    sc.settings.verbosity = 2
    budget = 480_000 if "dask" in name or "lazy" in name else 225_000
    results = []
    for n_jobs in (1, 2):
        data = stored(name)
        scglmm.tl.nbmm(data, formula, layer=layer_of(data), n_jobs=n_jobs, max_memory=budget)
        results.append(data)
    assert_same(results[0], results[1])
    assert_same(results[0], fitted, rtol=1e-8)
    at_once = stored(name)
    scglmm.tl.nbmm(at_once, formula, layer=layer_of(at_once))
    assert_same(results[0], at_once)
    said = log.getvalue()
    assert "a pass for checks and sums" in said
    assert ("another pass for" if "csc" in name else "more passes for") in said
    assert "blocks of genes, with tables of at most" in said


@pytest.mark.parametrize("name", ["lazy h5ad csr", "lazy zarr csr"])
def test_lazily_read(name, stored, adata, fitted, formula, tmp_path, assert_same):
    """Only the columns of obs that are used are read; results are there, and can be written once obs is in memory."""
    data = stored(name)
    scglmm.tl.nbmm(data, formula)
    assert_same(data, fitted, rtol=1e-8)
    table = scglmm.get.nbmm_df(data, "Dx[T.AD]")
    np.testing.assert_allclose(table["statistic"], scglmm.get.nbmm_df(fitted, "Dx[T.AD]")["statistic"], rtol=1e-8)
    scglmm.tl.contrast(data, {"both": "Dx[T.AD] + stim[T.stim]"})
    assert scglmm.pp.check_design(data, formula, table="terms")["term"].tolist() == ["Dx", "Age", "stim"]
    scglmm.tl.lrt(data, "~ offset(log(libSize)) + Dx + Age + (1|SubID)")
    scglmm.tl.lrt(fitted, "~ offset(log(libSize)) + Dx + Age + (1|SubID)")
    one, two = scglmm.get.lrt_df(data), scglmm.get.lrt_df(fitted)
    np.testing.assert_allclose(one["statistic"], two["statistic"], atol=1e-6)
    data.obs, data.var = data.obs.to_memory(), data.var.to_memory()
    data.write_h5ad(tmp_path / "fitted.h5ad")
    assert_same(ad.read_h5ad(tmp_path / "fitted.h5ad"), fitted, rtol=1e-8)


def test_lazily_read_columns_that_are_not_there(stored):
    data = stored("lazy h5ad csr")
    with pytest.raises(KeyError, match=r"no column 'dx', which the formula uses\. Did you mean 'Dx'"):
        scglmm.tl.nbmm(data, "~ dx + (1|SubID)")
    with pytest.raises(KeyError, match=r"mask_var='test' is not a column of `adata\.var`; the columns are 'tested'"):
        scglmm.tl.nbmm(data, "~ Dx + (1|SubID)", mask_var="test")
    assert not data.varm.keys() - {"loadings"}


def test_lazily_read_groups(stored, adata, formula):
    short = formula.replace(" + stim", "")
    data = stored("lazy h5ad csr")
    scglmm.tl.nbmm(data, short, groupby="stim")
    scglmm.tl.nbmm(adata, short, groupby="stim")
    for name in adata.varm["nbmm_coef"]:
        np.testing.assert_allclose(data.varm["nbmm_coef"][name], adata.varm["nbmm_coef"][name], rtol=1e-8)


@pytest.mark.parametrize("name", ["backed csr", "zarr csc", "lazy h5ad csr", "dask both"])
@pytest.mark.parametrize("value", [-2, 0.25, np.nan])
def test_not_counts(name, value, stored, adata, formula):
    X = adata.X.toarray()
    X[5, 3] = value
    adata.X = sparse.csr_matrix(X)
    data = stored(name, adata)
    with pytest.raises(ValueError, match=r"contains .*\(gene 'g3', cell 'c5'\)"):
        scglmm.tl.nbmm(data, formula, layer=layer_of(data))
    assert list(data.varm) == ["loadings"]


def test_too_little_memory(stored, formula):
    data = stored("backed csr")
    with pytest.raises(ValueError, match=r"max_memory of 9.54 MiB is too little to read adata.X .* At least 256 MiB"):
        scglmm.tl.nbmm(data, formula, max_memory="10MB")
    scglmm.tl.nbmm(data, formula, max_memory="270MB")
    # in memory no piece is read, and one gene at a time always goes
    scglmm.tl.nbmm(stored("csc"), formula, max_memory=1)


@pytest.mark.parametrize(
    ("name", "formula", "memory", "passes"),
    [
        ("backed csr", "~ offset(log(libSize)) + Dx + (1|SubID)", None, (1, 1)),
        ("backed csr", "~ Dx + (1|SubID)", None, (2, 1)),
        ("backed csr", "~ offset(log(libSize)) + Dx + (1|SubID)", 182_000, (6, 5)),
        ("backed csc", "~ offset(log(libSize)) + Dx + (1|SubID)", 182_000, (2, 4)),
        ("dask rows", "~ offset(log(libSize)) + Dx + (1|SubID)", None, (1, 1)),
        ("csc", "~ offset(log(libSize)) + Dx + (1|SubID)", None, (2, 1)),
    ],
)
@pytest.mark.filterwarnings("ignore:The offset is the total count over only")
def test_plan(name, formula, memory, passes, stored, monkeypatch):
    monkeypatch.setattr("scglmm.compression.chunks.CHUNK_BYTES", 4000)
    data = stored(name)
    plan = plan_run(data, formula, RunOptions(layer=layer_of(data), max_memory=memory), trial=0)
    assert (plan.passes, plan.blocks) == passes, plan
    assert plan.memory <= (memory or np.inf)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        *[(None, None), (1, 1), (2.5e9, 2_500_000_000), (np.int64(7), 7), ("2GB", 2 * 10**9), ("500 MiB", 500 * 2**20)],
        *[("1e9", 10**9), ("1.5 gb", 1_500_000_000), (" 3k ", 3000), (".5T", 5 * 10**11), ("100B", 100)],
    ],
)
def test_amounts_of_memory(value, size):
    assert parse_memory(value) == size


@pytest.mark.parametrize("value", [0, -1, "0", "-2GB", "lots", "2 PB", "", "2GBB", np.nan, np.inf, 1e30])
def test_no_amounts_of_memory(value, adata, formula):
    with pytest.raises(ValueError, match="no amount of memory: give bytes, or text such as '2GB'"):
        scglmm.tl.nbmm(adata, formula, max_memory=value)


@pytest.mark.parametrize("value", [True, [1], b"2GB"])
def test_memory_of_other_types(value, adata, formula):
    with pytest.raises(TypeError, match="max_memory must be a number of bytes, text such as '2GB', or None"):
        scglmm.tl.nbmm(adata, formula, max_memory=value)


def test_memory_of_control_groups(tmp_path):
    machine = free_memory(tmp_path)
    assert machine > 2**20
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == pytest.approx(machine, rel=0.5)
    for name, text in {"max": "1000000\n", "current": "700000\n", "stat": "anon 1\ninactive_file 200000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_memory(tmp_path) == 500_000
    (tmp_path / "memory").mkdir()
    for name, text in {"limit_in_bytes": "90", "usage_in_bytes": "50", "stat": "total_inactive_file 5\n"}.items():
        (tmp_path / "memory" / f"memory.{name}").write_text(text)
    assert free_memory(tmp_path) == 45
    assert memory_budget("3MB") == 3_000_000
    assert [spell_bytes(size) for size in (1, 5000, 3 * 2**20, 2.5 * 2**30)] == ["1 KiB", "5 KiB", "3 MiB", "2.5 GiB"]
