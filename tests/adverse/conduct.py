"""What is asked of every call: an error of ours or none, no warning of others, `adata` as it was, an end."""

from __future__ import annotations

import hashlib
import linecache
import re
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, ImplicitModificationWarning, Raw
from hypothesis import HealthCheck, Phase, settings
from scipy import sparse

import scglmm

PACKAGE = str(Path(scglmm.__file__).parent)
SECONDS = 300  # of the processor: longer is a hang, also where everything has to be compiled

NOTICES = (
    # between other packages: see `tests/conftest.py`
    r"The '(future.infer_string|mode.chained_assignment)' option is deprecated",
    r"The (inplace|copy) keyword",
    # anndata's own, about names that were given
    r"(Observation|Variable) names are not unique",
)


def few_or_many(examples: int) -> settings:
    """Settings of a property: always the same examples, so that a run can be repeated."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],  # explaining traces every line, at twice the time
        suppress_health_check=list(HealthCheck),
    )


def is_ours(error: BaseException) -> bool:
    """Whether an error was raised, with a message, by a `raise` statement of the package."""
    if not isinstance(error, ValueError | KeyError | TypeError) or not error.args or not str(error.args[0]).strip():
        return False
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(frame.filename, frame.lineno).strip()
    return frame.filename.startswith(PACKAGE) and line.startswith("raise ")


@contextmanager
def no_hang() -> Iterator[None]:
    """Stop what does not end."""

    def stop(*_: object) -> None:
        msg = f"not done after {SECONDS} seconds of the processor"
        raise TimeoutError(msg)

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def well_behaved() -> Iterator[list[Exception]]:
    """Check the conduct of what is done inside; errors of ours are caught, and listed."""
    refused: list[Exception] = []
    with warnings.catch_warnings(record=True) as caught, no_hang():
        warnings.simplefilter("always")
        try:
            yield refused
        except Exception as error:
            if not is_ours(error):
                raise
            refused.append(error)
    for warning in caught:
        ours = warning.category in (UserWarning, ImplicitModificationWarning)
        if not any(re.match(notice, str(warning.message)) for notice in NOTICES):
            assert ours, f"{warning.category.__name__}: {warning.message} ({warning.filename}:{warning.lineno})"


def attempt(call: Callable[[], Any], *adatas: AnnData) -> tuple[Any, Exception | None]:
    """Call; return what it gave, or the error of ours. After an error `adatas` are as they were."""
    before = [fingerprint(adata) for adata in adatas]
    result = None
    with well_behaved() as refused:
        result = call()
    if refused:
        for adata, old in zip(adatas, before, strict=True):
            assert_same_fingerprint(fingerprint(adata), old)
        return None, refused[0]
    return result, None


# ------------------------------------------------------------------------------------------------------ to the last bit


def fingerprint(value: Any, where: str = "adata") -> dict[str, str]:
    """Everything that an AnnData holds, place -> type, shape and a hash of the bytes."""
    return dict(_parts(value, where))


def assert_same_fingerprint(one: dict[str, str], two: dict[str, str]) -> None:
    """Compare, and name the places that differ."""
    differ = sorted(place for place in one.keys() | two.keys() if one.get(place) != two.get(place))
    assert not differ, f"changed: {differ}"


def _parts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, AnnData):
        yield where, f"view={value.is_view} shape={value.shape}"
        for name in ("X", "obs", "var", "layers", "obsm", "varm", "obsp", "varp", "uns", "raw"):
            yield from _parts(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, Raw):
        yield from _parts(value.X, f"{where}.X")
        yield from _parts(value.var, f"{where}.var")
    elif isinstance(value, pd.DataFrame):
        yield where, f"{value.shape} {list(value.columns)!r} {value.columns.dtype} {value.index.name!r}"
        yield from _parts(value.index, f"{where}.index")
        for i in range(value.shape[1]):
            yield from _parts(value.iloc[:, i].array, f"{where}[{value.columns[i]!r}, {i}]")
    elif isinstance(value, pd.Index):
        yield from _parts(value.array, where)
    elif isinstance(value, pd.Categorical):
        yield where, f"{value.ordered} {list(value.categories)!r} {value.categories.dtype} {_digest(value.codes)}"
    elif isinstance(value, pd.api.extensions.ExtensionArray):
        yield where, f"{type(value).__name__} {value.dtype} {list(value)!r}"
    elif isinstance(value, Mapping):
        names = [name for name in value if name is not None]  # anndata 0.13 lists X among the layers
        yield where, f"{sorted(map(str, names))}"
        for name in names:
            yield from _parts(value[name], f"{where}[{name!r}]")
    elif sparse.issparse(value):
        yield where, f"{value.format} {value.shape} {value.dtype}"
        for name in ("data", "indices", "indptr"):
            yield from _parts(np.asarray(getattr(value, name)), f"{where}.{name}")
    elif isinstance(value, np.ndarray):
        order = f"{value.flags.f_contiguous} {value.flags.c_contiguous}"
        yield where, f"{value.dtype} {value.shape} {order} {_digest(value)}"
    else:
        yield where, f"{type(value).__name__} {value!r}"


def _digest(array: np.ndarray) -> str:
    array = np.asarray(array)
    if array.dtype.hasobject:
        return repr(array.tolist())
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
