"""Contrasts as a user writes them, ``"Dx[T.AD] - 0.5 * Dx[T.MCI]"``: a reader of linear combinations, no `eval`.

Names of coefficients contain brackets, colons, spaces and operators (``I(a - b)``, ``cell[T.CD4+ T]``), so a name is
recognised by comparing with the names that exist, the longest first, and not by its characters.

    equation = sum [ = sum ]
    sum      = [+-] product { [+-] product }
    product  = factor { [*/] factor }
    factor   = name | `name` | number | ( sum ) | [+-] factor | cond( column = value, ... )

Equations and ``cond(...)``, the row of the design with the given values of its columns, are for a single model; the
contrasts of many genes are all compared with 0.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from .errors import point_at
from .lexer import MAX_LENGTH, Token, tokenize

Form = dict[str, float]
"""Weights of coefficients; under None the constant."""

Values = dict[str, str | float]
"""Columns and their values, of ``cond(...)``."""

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_AFTER_NAME = re.compile(r"$|[\s+*/)=<>,−-]")
_SIGNS = {"+": 1.0, "-": -1.0, "−": -1.0}
_COND = re.compile(r"cond\s*\(")
_MAX_DEPTH = 50
_ARGUMENTS = 'cond() takes values of columns, as in cond(Dx="AD", Age=70).'
_VALUES = 'In cond() a value is a number or a level in quotes, as in cond(Dx="AD", Age=70).'


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
    return reader.finished(form)


def parse_equation(
    text: str, names: Mapping[str, str], find: Callable[[str], str], condition: Callable[[Values], Form]
) -> tuple[Form, float]:
    """Read a linear combination and what it is compared with.

    Parameters
    ----------
    text, names, find
        As for `parse_combination`.
    condition
        What ``cond(...)`` stands for.

    Returns
    -------
    Name -> weight, and the value: what stands after ``=``, less the constants before it; 0 without either.

    Raises
    ------
    FormulaError, KeyError
        As `parse_combination`; also for a combination that holds no coefficient.
    """
    reader = _Reader(text, names, find, condition)
    form = reader.sum()
    if reader.take("="):
        for name, weight in reader.sum().items():
            form[name] = form.get(name, 0.0) - weight
    if reader.rest():
        reader.unexpected()
    value = -form.pop(None, 0.0)
    form = reader.finished(form | {None: value})
    value = form.pop(None, 0.0)
    if not max(map(abs, form.values()), default=0.0) > 1e-12:
        reader.fail("This holds no coefficient, or takes away all it holds: there is nothing to test.", 0)
    return form, value


class _Reader:
    """Recursive descent over the text."""

    def __init__(
        self,
        text: str,
        names: Mapping[str, str],
        find: Callable[[str], str],
        condition: Callable[[Values], Form] | None = None,
    ) -> None:
        self.text, self.names, self.find, self.condition = text, names, find, condition
        self.longest_first = sorted(names, key=len, reverse=True)
        self.at = self.depth = 0
        if len(text) > MAX_LENGTH:
            self.text = f"{text[:40]} ..."
            self.fail(f"The contrast has {len(text):,} characters; the limit is {MAX_LENGTH:,}.", 0)

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
        if symbol in "=<>" and self.condition is None:
            self.fail(f"{symbol!r} cannot stand here: every contrast is compared with 0.")
        if symbol == ",":
            self.fail("Several contrasts to be tested jointly are a list of texts, not one text.")
        self.fail(f"{symbol!r} cannot stand here: one of + - * / is expected.")

    def finished(self, form: Form) -> Form:
        """Check the weights, and take away those that cancel."""
        if not all(math.isfinite(weight) for weight in form.values()):
            self.fail("A weight is too large to be a number.", 0)
        largest = max(map(abs, form.values()), default=0.0)
        return {name: weight for name, weight in form.items() if abs(weight) > 1e-14 * largest}

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
        if self.condition is not None and _COND.match(self.text, self.at):
            return dict(self.condition(self.values()))
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

    def values(self) -> Values:
        """Take ``cond(column="level", other=1.5)``."""
        tokens = self.call()
        values: Values = {}
        for argument in _split(tokens[2:-1]):
            if len(argument) < 3 or not argument[0].is_column or not argument[1].is_operator("="):
                self.fail(_ARGUMENTS)
            column = argument[0].column
            if column in values:
                self.fail(f"cond() names the column {column!r} twice.")
            values[column] = self.value(argument[2:])
        self.at += tokens[-1].end
        return values

    def value(self, tokens: list[Token]) -> str | float:
        """Read the value of a column."""
        sign = -1.0 if tokens[0].is_operator("-") else 1.0
        if tokens[0].is_operator("-", "+"):
            tokens = tokens[1:]
        if len(tokens) == 1 and tokens[0].kind == "number":
            return sign * float(tokens[0].text)
        if len(tokens) == 1 and tokens[0].kind == "text":
            return ast.literal_eval(tokens[0].text)
        if len(tokens) == 1 and tokens[0].text in {"True", "False"}:
            return tokens[0].text
        raise point_at(self.text, self.at, _VALUES)

    def call(self) -> list[Token]:
        """Tokens of the call that stands here."""
        quote, depth = "", 0
        for i in range(self.at, len(self.text)):
            character = self.text[i]
            if quote:
                quote = "" if character == quote else quote
            elif character in "'\"`":
                quote = character
            elif character in "()":
                depth += 1 if character == "(" else -1
                if depth == 0:
                    return tokenize(self.text[self.at : i + 1])
        raise point_at(self.text, self.at, "This parenthesis is not closed.")


def _split(tokens: list[Token]) -> list[list[Token]]:
    """Split arguments at their commas."""
    parts: list[list[Token]] = [[]]
    for token in tokens:
        if token.is_operator(","):
            parts.append([])
        else:
            parts[-1].append(token)
    return parts if parts != [[]] else []


def _is_number(form: Form) -> bool:
    return form.keys() == {None}
