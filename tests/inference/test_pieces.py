"""Fits as arrays and back: nothing is lost."""

from __future__ import annotations

import io
from dataclasses import fields, replace

import numpy as np
import pytest

from scglmm.inference.gene import GeneFit
from scglmm.inference.pieces import Piece, join_pieces
from scglmm.inference.sd_profile import Profile


def make_fit(seed: int, **changes: object) -> GeneFit:
    rng = np.random.default_rng(seed)
    profile = Profile(
        *(rng.random(2) for _ in range(3)), rng.random((9, 9)), rng.random((81, 3)), rng.random((81, 6)).astype("f4")
    )
    fit = GeneFit(
        status="ok",
        beta=rng.normal(size=3),
        se=rng.random(3),
        df=np.full(3, np.inf),
        vcov=rng.random((3, 3)),
        d_vcov=rng.random((3, 3, 3)),
        theta=float(np.nextafter(rng.random(), 1)),
        sigma=[rng.random((1, 1)), rng.random((2, 2))],
        loglik=-1e5 * rng.random(),
        n_eval=int(rng.integers(100)),
        grad=float("nan"),
        var_linpred=0.1,
        null_intercept=float("-inf"),
        null_var=np.float64(0.3),
        profile=profile,
        zi_beta=np.empty(0),
        zi_se=None,
    )
    return replace(fit, **changes)


FITS = {
    "all": [make_fit(0), make_fit(1)],
    "one": [make_fit(0)],
    "some without a profile": [make_fit(0), make_fit(1, profile=None, status="not_converged"), make_fit(2)],
    "none with one": [make_fit(0, profile=None), make_fit(1, profile=None)],
    "maximum likelihood, no random term": [make_fit(g, d_vcov=np.empty((0, 3, 3)), sigma=[]) for g in range(2)],
    "inflation": [make_fit(0, zi_beta=np.ones(2), zi_se=np.full(2, np.nan)), make_fit(1, zi_beta=None)],
}


def through_file(piece: Piece) -> Piece:
    file = io.BytesIO()
    np.savez(file, **piece.arrays())
    file.seek(0)
    return Piece.from_arrays(dict(np.load(file, allow_pickle=False)))


def assert_same(one: object, two: object, name: str) -> None:
    if hasattr(one, "__dataclass_fields__"):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(two, field.name), f"{name}.{field.name}")
    elif isinstance(one, list):
        assert len(one) == len(two), name
        for a, b in zip(one, two, strict=True):
            assert_same(a, b, name)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (two.dtype, two.shape), name
        np.testing.assert_array_equal(one, two, err_msg=name)
    elif one is None or isinstance(one, str):
        assert one == two, name
    else:
        assert isinstance(two, int if isinstance(one, int) else float), name
        np.testing.assert_array_equal(one, two, err_msg=name)


@pytest.mark.parametrize("fits", FITS.values(), ids=FITS)
def test_there_and_back(fits):
    n = len(fits)
    piece = Piece(3, np.arange(n) + 5, fits, np.arange(n), np.arange(n) / 3)
    back = through_file(piece)
    assert_same(piece, back, "piece")
    both = join_pieces([piece, back])
    assert both.at.tolist() == [*piece.at, *piece.at]
    assert len(both.fits) == 2 * n


def test_what_has_no_array_is_refused():
    piece = Piece(0, np.arange(1), [make_fit(0, theta={})], np.zeros(1), np.zeros(1))
    with pytest.raises(TypeError, match=r"fit\.theta has values of type dict"):
        piece.arrays()


@pytest.mark.parametrize("name", ["at", "fit.beta", "fit.profile.value", "fit.sigma count", "fit.status"])
def test_arrays_that_do_not_fit(name):
    arrays = Piece(0, np.arange(2), FITS["all"], np.zeros(2), np.zeros(2)).arrays()
    with pytest.raises(KeyError):
        Piece.from_arrays({key: value for key, value in arrays.items() if key != name})
    if arrays[name].ndim:
        with pytest.raises((ValueError, IndexError)):
            Piece.from_arrays(arrays | {name: arrays[name][:1]})
