"""A small simulated data set, and the same data fitted; both are made once and copied."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData, Raw
from scipy import sparse

import scglmm

FORMULA = "~ offset(log(libSize)) + Dx + Age + stim + (1|SubID)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the advice on `FORMULA` pass: these tests want effects with donors and with cells as replicates."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.filterwarnings(r"ignore:(Groups? .*)?'stim' varies within all .* levels:UserWarning")
            )


def simulate(n_donors: int = 12, n_cells: int = 40, n_genes: int = 30, seed: int = 0) -> AnnData:
    """Counts of a negative binomial mixed model: about `n_cells` cells of every donor, treated and not.

    Genes go from rare to frequent; the last have effects of Dx and of stim. Cells are in random order.
    """
    rng = np.random.default_rng(seed)
    donor = rng.permutation(np.concatenate([np.arange(n_donors), rng.integers(0, n_donors, n_donors * (n_cells - 1))]))
    n = donor.size
    stim = rng.integers(0, 2, n)
    age = np.round(rng.uniform(55, 95, n_donors), 1)
    lib_size = np.round(rng.lognormal(8, 0.4, n))
    effects = np.where(np.arange(n_genes) >= n_genes - 6, [[0.8], [1.5]], 0.0)
    eta = np.linspace(-9.5, -5.0, n_genes) + 0.01 * (age[donor] - 75)[:, None]
    eta = eta + (donor % 2)[:, None] * effects[0] + stim[:, None] * effects[1]
    eta = eta + rng.normal(0, np.linspace(0.0, 0.6, n_genes), (n_donors, n_genes))[donor]
    mu = lib_size[:, None] * np.exp(eta)
    counts = rng.poisson(mu * rng.gamma(2.0, 0.5, mu.shape))
    obs = pd.DataFrame(
        {
            "SubID": pd.Categorical([f"D{d:02d}" for d in donor]),
            "Dx": pd.Categorical(np.array(["Control", "AD"])[donor % 2], categories=["Control", "AD"]),
            "stim": pd.Categorical(np.array(["ctrl", "stim"])[stim]),
            "Age": age[donor],
            "libSize": lib_size,
            "quality": rng.normal(size=n),
        },
        index=[f"c{i}" for i in range(n)],
    )
    var = pd.DataFrame({"tested": np.arange(n_genes) % 3 > 0}, index=[f"g{i}" for i in range(n_genes)])
    adata = AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)
    adata.uns["note"] = {"source": "simulated"}
    adata.varm["loadings"] = rng.normal(size=(n_genes, 2))
    return adata


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """No progress bar in the output of the tests."""
    before = sc.settings.verbosity
    sc.settings.verbosity = 0
    yield
    sc.settings.verbosity = before


@pytest.fixture
def log() -> io.StringIO:
    """What scanpy's logger says."""
    before = sc.settings.logfile
    sc.settings.logfile = stream = io.StringIO()
    yield stream
    sc.settings.logfile = before


@pytest.fixture(scope="session")
def _simulated() -> AnnData:
    return simulate()


@pytest.fixture
def adata(_simulated: AnnData) -> AnnData:
    """Counts without a result."""
    return _simulated.copy()


@pytest.fixture(scope="session")
def _fitted(_simulated: AnnData) -> AnnData:
    verbosity, sc.settings.verbosity = sc.settings.verbosity, 0
    try:
        return scglmm.tl.nbmm(_simulated, FORMULA, copy=True)
    finally:
        sc.settings.verbosity = verbosity


@pytest.fixture
def fitted(_fitted: AnnData) -> AnnData:
    """The same with the result of `FORMULA`, REML."""
    return _fitted.copy()


@pytest.fixture(scope="session")
def formula() -> str:
    """Formula of `fitted`."""
    return FORMULA


def tables(adata: AnnData, key: str = "nbmm") -> dict[str, np.ndarray]:
    """Every table of a result as an array of numbers, statuses as codes of their names."""
    found = {}
    for name in ("coef", "se", "stat", "dof", "pval", "padj", "vcov", "varpart"):
        found[name] = np.asarray(adata.varm[f"{key}_{name}"], float)
    fit = adata.varm[f"{key}_fit"]
    found["fit"] = fit.drop(columns=["status"]).to_numpy(float)
    found["status"] = fit["status"].astype(str).to_numpy(dtype=object)
    return found


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """Compare the results of two AnnData, bit for bit or to a relative tolerance."""

    def compare(
        first: AnnData, second: AnnData, *, rtol: float | None = None, genes: list[str] | None = None, padj: bool = True
    ) -> None:
        names = list(second.var_names) if genes is None else genes
        one, two = (tables(x[:, names]) for x in (first, second))
        columns = list(first.varm["nbmm_fit"].columns)
        record = [columns.index(c) for c in ("n_eval", "grad", "quadrature_error") if c in columns]
        for name, a in one.items():
            b = two[name]
            if name == "padj" and not padj:
                continue
            if rtol is None or name == "status":
                np.testing.assert_array_equal(a, b, err_msg=name)
                continue
            if name == "fit":  # the record of the search may differ
                a, b = np.delete(a, record, 1), np.delete(b, record, 1)
            scale = np.nanmax(np.abs(np.where(np.isfinite(b), b, 0.0)), axis=0, initial=0.0)
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale.max() * 1e-3, err_msg=name)

    return compare


def assert_equal(one: object, two: object, where: str = "adata") -> None:
    """Whether two AnnData, or what they hold, are equal to the last bit, types included."""
    assert type(one) is type(two), where
    if isinstance(one, AnnData):
        for name in ("obs", "var"):
            pd.testing.assert_frame_equal(getattr(one, name), getattr(two, name))
        for name in ("X", "uns", "obsm", "varm", "obsp", "varp", "layers", "raw"):
            assert_equal(getattr(one, name), getattr(two, name), f"{where}.{name}")
    elif isinstance(one, Raw):
        pd.testing.assert_frame_equal(one.var, two.var)
        assert_equal(one.X, two.X, f"{where}.X")
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, two, obj=where)
    elif isinstance(one, Mapping):
        assert list(one) == list(two), where
        for name in one:
            if name is not None:
                assert_equal(one[name], two[name], f"{where}[{name!r}]")
    elif sparse.issparse(one):
        for name in ("data", "indices", "indptr"):
            assert_equal(getattr(one, name), getattr(two, name), f"{where}.{name}")
    elif isinstance(one, np.ndarray):
        assert one.dtype == two.dtype, where
        for name in one.dtype.names or ():
            assert_equal(np.asarray(one[name]), np.asarray(two[name]), f"{where}[{name!r}]")
        if one.dtype.names:
            return
        np.testing.assert_array_equal(one, two, err_msg=where)
    else:
        assert one == two, where


@pytest.fixture(scope="session")
def assert_untouched() -> Callable[[AnnData, AnnData], None]:
    """Compare everything that two AnnData hold."""
    return assert_equal
