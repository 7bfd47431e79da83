"""Messages of the formula layer, which speak of cells and obs, in the words of a data frame."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from scglmm.formula import DesignError, FormulaError

_WORDS = {
    "adata.obs": "data",
    "adata": "data",
    "an obs column": "a column",
    "An obs column": "A column",
    "obs columns": "columns",
    "obs column": "column",
    "columns of obs": "columns of the data",
    "obs has": "The data have",
    "obs": "the data",
    "cells": "rows",
    "cell": "row",
    "donors": "groups",
    "donor": "group",
}
# what stands in quotes or backticks is the user's own, and so is the formula above a caret
_PIECE = re.compile(r"(?P<own>`[^`]*`|'[^'\n]*'|\"[^\"\n]*\"|^ {4}.*$)|\b(?P<word>" + "|".join(_WORDS) + r")\b", re.M)


def of_data_frame(message: str) -> str:
    """Reword a message about cells and obs."""
    return _PIECE.sub(lambda match: match["own"] or _WORDS[match["word"]], message)


@contextmanager
def worded(plain: bool) -> Iterator[None]:
    """Reword the errors of the formula layer.

    Parameters
    ----------
    plain
        Whether the data are a data frame; nothing is changed for an AnnData.
    """
    try:
        yield
    except (FormulaError, DesignError, ValueError, KeyError, TypeError) as error:
        if not plain or not error.args or not isinstance(error.args[0], str):
            raise
        raise type(error)(of_data_frame(error.args[0])) from error.__cause__
