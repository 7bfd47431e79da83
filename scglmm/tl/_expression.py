"""Contrasts as a user writes them, ``"Dx[T.AD] - 0.5 * Dx[T.MCI]"``: a reader of linear combinations, no `eval`.

Names of coefficients contain brackets, colons, spaces and operators (``I(a - b)``, ``cell[T.CD4+ T]``), so a name is
recognised by comparing with the names that exist, the longest first, and not by its characters.

    sum     = [+-] product { [+-] product }
    product = factor { [*/] factor }
    factor  = name | `name` | number | ( sum ) | [+-] factor
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from scglmm.formula.errors import point_at

Form = dict[str, float]
"""Weights of coefficients; under None the constant."""

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_AFTER_NAME = re.compile(r"$|[\s+*/)=<>,−-]")
_SIGNS = {"+": 1.0, "-": -1.0, "−": -1.0}
_MAX_DEPTH = 50


def parse_combination(text: str, names: Mapping[str, str], find: Callable[[str], str]) -> Form:
    """Read a linear combination of coefficients.

    Parameters
    ----------
    text
        What the user wrote.
    names
        Spelling -> name of the coefficients that are recognised wherever they stand.
    find
        Called with what should be a coefficient and is none of `names`: gives its name, or raises KeyError.

    Returns
    -------
    Name -> weight, without those that cancel.

    Raises
    ------
    FormulaError
        It cannot be read, is not linear, or has a constant. It is a ValueError.
    KeyError
        From `find`.
    """
    reader = _Reader(text, names, find)
    form = reader.sum()
    if reader.rest():
        reader.unexpected()
    if form.pop(None, 0.0):
        reader.fail("There is a number without a coefficient: a contrast is compared with 0 and has no constant.", 0)
    if not all(math.isfinite(weight) for weight in form.values()):
        reader.fail("A weight is too large to be a number.", 0)
    largest = max(map(abs, form.values()), default=0.0)
    return {name: weight for name, weight in form.items() if abs(weight) > 1e-14 * largest}


class _Reader:
    """Recursive descent over the text."""

    def __init__(self, text: str, names: Mapping[str, str], find: Callable[[str], str]) -> None:
        self.text, self.names, self.find = text, names, find
        self.longest_first = sorted(names, key=len, reverse=True)
        self.at = self.depth = 0

    def rest(self) -> str:
        """Give what is left, without leading space."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at :]

    def take(self, symbols: str) -> str:
        """Take one of the symbols if it stands here."""
        rest = self.rest()
        if rest and rest[0] in symbols:
            self.at += 1
            return rest[0]
        return ""

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        """Raise an error that points at a place."""
        raise point_at(self.text, self.at if at is None else at, message)

    def unexpected(self) -> NoReturn:
        """Raise an error about what stands here after a complete factor."""
        symbol = self.rest()[0]
        if symbol in "=<>":
            self.fail(f"{symbol!r} cannot stand here: every contrast is compared with 0.")
        if symbol == ",":
            self.fail("Several contrasts to be tested jointly are a list of texts, not one text.")
        self.fail(f"{symbol!r} cannot stand here: one of + - * / is expected.")

    def sum(self) -> Form:
        total = self.product()
        while sign := self.take("+-−"):
            for name, weight in self.product().items():
                total[name] = total.get(name, 0.0) + _SIGNS[sign] * weight
        return total

    def product(self) -> Form:
        form = self.factor()
        while True:
            start = self.at
            if not (operator := self.take("*/")):
                return form
            if self.text.startswith("*", self.at):
                self.fail("There are no powers in a contrast.", start)
            right = self.factor()
            if operator == "*" and not _is_number(form):
                form, right = right, form
            number = form if operator == "*" else right
            if not _is_number(number):
                what = "Coefficients cannot be multiplied" if operator == "*" else "A coefficient cannot be a divisor"
                self.fail(f"{what}: a contrast is linear.", start)
            if operator == "/":
                if right[None] == 0:
                    self.fail("This divides by 0.", start)
                form = {name: weight / right[None] for name, weight in form.items()}
            else:
                form = {name: weight * form[None] for name, weight in right.items()}

    def factor(self) -> Form:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self.fail("This is nested too deeply.")
        try:
            return self._factor()
        finally:
            self.depth -= 1

    def _factor(self) -> Form:
        if not self.rest():
            self.fail("Something is missing here: a coefficient, a number or a parenthesis.")
        if name := self.name_here():
            return {name: 1.0}
        if sign := self.take("+-−"):
            return {name: _SIGNS[sign] * weight for name, weight in self.factor().items()}
        found = _NUMBER.match(self.text, self.at)
        if found and _AFTER_NAME.match(self.text, found.end()):  # "2x" is a name that does not exist
            self.at = found.end()
            return {None: float(found[0])}
        if self.text[self.at] in "*/)":
            self.fail(f"{self.text[self.at]!r} cannot stand here: a coefficient or a number is expected.")
        if self.text[self.at] == "(":
            return self.parenthesis()
        if self.text[self.at] == "`":
            end = self.text.find("`", self.at + 1)
            if end < 0:
                self.fail("This backtick is not closed.")
            name, self.at = self.text[self.at + 1 : end], end + 1
            return {self.names.get(name) or self.find(name): 1.0}
        return {self.find(self.word()): 1.0}

    def parenthesis(self) -> Form:
        start = self.at
        self.at += 1
        form = self.sum()
        if self.rest() and not self.text.startswith(")", self.at):
            self.unexpected()
        if not self.take(")"):
            self.fail("This parenthesis is not closed.", start)
        return form

    def name_here(self) -> str | None:
        """Take the longest name that stands here, with nothing that would make it part of a longer word."""
        for spelling in self.longest_first:
            if self.text.startswith(spelling, self.at) and _AFTER_NAME.match(self.text, self.at + len(spelling)):
                self.at += len(spelling)
                return self.names[spelling]
        return None

    def word(self) -> str:
        """Take what looks like a name: up to a space or an operator outside of brackets."""
        start, depth = self.at, 0
        while self.at < len(self.text):
            character = self.text[self.at]
            if depth == 0 and (character.isspace() or character in "+-*/)=<>,−`"):
                break
            depth += (character in "([") - (character in ")]")
            self.at += 1
        if self.at == start:
            self.unexpected()
        return self.text[start : self.at]


def _is_number(form: Form) -> bool:
    return form.keys() == {None}
