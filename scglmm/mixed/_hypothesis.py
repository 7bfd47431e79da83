"""Hypotheses as text: ``"Dx[T.AD] - Dx[T.MCI]"``, ``'cond(Dx="AD") - cond(Dx="Control")'``, ``"Days = 10"``.

A hypothesis is a linear combination of the coefficients. The text is never run as Python: names are looked up among
the coefficients (they hold brackets, colons and commas, so the longest one that fits is taken), and what stands between
them is numbers, ``+ - * /`` and parentheses. ``cond(...)`` is the row of the design with the given values of the
columns, everything else at its reference.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scglmm.formula.errors import point_at
from scglmm.formula.lexer import MAX_LENGTH, Token, tokenize
from scglmm.results.names import near_first

Values = dict[str, str | float]

_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_COND = re.compile(r"cond\s*\(")
_BOUNDARY = re.compile(r"\s|[-+*/()=]|$")
_MAX_DEPTH = 50
_UNCLOSED = "This parenthesis is never closed."
_ARGUMENTS = 'cond() takes values of columns, as in cond(Dx="AD", Age=70).'
_VALUES = 'In cond() a value is a number or a level in quotes, as in cond(Dx="AD", Age=70).'


@dataclass(frozen=True, eq=False)
class Linear:
    """``weights @ beta + constant``."""

    weights: np.ndarray
    constant: float

    @property
    def is_number(self) -> bool:
        """Whether no coefficient is in it."""
        return not self.weights.any()


def parse_hypothesis(
    text: str, coefficients: Sequence[str], condition: Callable[[Values], np.ndarray]
) -> tuple[np.ndarray, float]:
    """Read a hypothesis.

    Parameters
    ----------
    text
        A linear combination, tested against 0 or against what stands after ``=``.
    coefficients
        Names of the coefficients.
    condition
        What ``cond(...)`` stands for: the row of the design with these values.

    Returns
    -------
    Weights (p,) and the value under the hypothesis.

    Raises
    ------
    ValueError
        It cannot be read; a caret stands under the place.
    KeyError
        A name is no coefficient; near ones are listed.
    """
    if len(text) > MAX_LENGTH:
        msg = f"The hypothesis has {len(text):,} characters; the limit is {MAX_LENGTH:,}."
        raise ValueError(msg)
    parser = _Parser(text, coefficients, condition)
    left = parser.sum(0)
    right = Linear(np.zeros(len(coefficients)), 0.0)
    if parser.at("="):
        parser.position += 1
        right = parser.sum(0)
    if parser.rest:
        raise parser.unexpected()
    weights, value = left.weights - right.weights, right.constant - left.constant
    if not np.abs(weights).max(initial=0.0) > 1e-12:
        msg = f"The hypothesis {text!r} holds no coefficient, or takes away all it holds: there is nothing to test."
        raise ValueError(msg)
    return weights, float(value)


class _Parser:
    """Recursive descent over the characters."""

    def __init__(self, text: str, coefficients: Sequence[str], condition: Callable[[Values], np.ndarray]) -> None:
        self.text = text
        self.coefficients = list(coefficients)
        self.by_length = sorted(self.coefficients, key=len, reverse=True)
        self.condition = condition
        self.position = 0

    @property
    def rest(self) -> str:
        """What has not been read yet, spaces skipped."""
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1
        return self.text[self.position :]

    def at(self, *symbols: str) -> bool:
        return self.rest[:1] in symbols

    def error(self, message: str) -> ValueError:
        return point_at(self.text, self.position, message)

    def unexpected(self) -> ValueError:
        if not self.rest:
            return self.error("There is something missing at the end of the hypothesis.")
        return self.error(f"{self.rest[0]!r} cannot stand here: coefficients are joined by + - * / and parentheses.")

    def sum(self, depth: int) -> Linear:
        if depth > _MAX_DEPTH:
            msg = f"Parentheses are nested more than {_MAX_DEPTH} deep."
            raise self.error(msg)
        total = self.product(depth)
        while self.at("+", "-"):
            sign = 1.0 if self.rest[0] == "+" else -1.0
            self.position += 1
            term = self.product(depth)
            total = Linear(total.weights + sign * term.weights, total.constant + sign * term.constant)
        return total

    def product(self, depth: int) -> Linear:
        value = self.factor(depth)
        while self.at("*", "/"):
            divide = self.rest[0] == "/"
            start = self.position
            self.position += 1
            other = self.factor(depth)
            if not divide and value.is_number:
                value, other = other, value
            if not other.is_number or (divide and other.constant == 0):
                self.position = start
                what = "a number other than 0 divides" if divide else "one of two factors is a number"
                msg = f"This would not be a linear combination of coefficients: {what}."
                raise self.error(msg)
            times = 1 / other.constant if divide else other.constant
            value = Linear(value.weights * times, value.constant * times)
        return value

    def factor(self, depth: int) -> Linear:
        nothing = np.zeros(len(self.coefficients))
        signs = 1.0
        while self.at("+", "-"):
            signs = -signs if self.rest[0] == "-" else signs
            self.position += 1
        name = next((name for name in self.by_length if self._starts_with(name)), None)
        if name is not None:
            self.position += len(name)
            nothing[self.coefficients.index(name)] = signs
            return Linear(nothing, 0.0)
        if self.at("("):
            self.position += 1
            value = self.sum(depth + 1)
            if not self.at(")"):
                raise self.unexpected() if self.rest else self.error(_UNCLOSED)
            self.position += 1
            return Linear(signs * value.weights, signs * value.constant)
        if _COND.match(self.rest):
            return Linear(signs * self.condition(self._values()), 0.0)
        number = _NUMBER.match(self.rest)
        if number and _BOUNDARY.match(self.rest, number.end()):
            self.position += number.end()
            return Linear(nothing, signs * float(number.group()))
        if not self.rest or self.rest[0] in "*/)=":
            raise self.unexpected()
        unknown = re.match(r"[^\s()=+*/-]+", self.rest).group()
        msg = (
            f"{unknown!r} is not a coefficient (in {self.text!r}); the coefficients are "
            f"{near_first(unknown, self.coefficients)}."
        )
        raise KeyError(msg)

    def _starts_with(self, name: str) -> bool:
        return self.rest.startswith(name) and _BOUNDARY.match(self.rest, len(name)) is not None

    def _values(self) -> Values:
        """Read ``cond(column="level", other=1.5)``."""
        start = self.position
        tokens = _call(self.rest)
        if tokens is None:
            raise self.error(_UNCLOSED)
        offset = tokens[-1].end
        values: Values = {}
        for argument in _split(tokens[2:-1]):
            if len(argument) < 3 or not argument[0].is_column or not argument[1].is_operator("="):
                raise self.error(_ARGUMENTS)
            column = argument[0].column
            if column in values:
                msg = f"cond() names the column {column!r} twice."
                raise self.error(msg)
            values[column] = self._value(argument[2:])
        self.position = start + offset
        return values

    def _value(self, tokens: list[Token]) -> str | float:
        sign = -1.0 if tokens[0].is_operator("-") else 1.0
        if tokens[0].is_operator("-", "+"):
            tokens = tokens[1:]
        if len(tokens) == 1 and tokens[0].kind == "number":
            return sign * float(tokens[0].text)
        if len(tokens) == 1 and tokens[0].kind == "text":
            return ast.literal_eval(tokens[0].text)
        if len(tokens) == 1 and tokens[0].text in {"True", "False"}:
            return tokens[0].text
        raise self.error(_VALUES)


def _call(text: str) -> list[Token] | None:
    """Tokens of the call at the beginning of a text, None if its parenthesis is never closed."""
    quote, depth = "", 0
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"`":
            quote = character
        elif character in "()":
            depth += 1 if character == "(" else -1
            if depth == 0:
                return tokenize(text[: i + 1])
    return None


def _split(tokens: list[Token]) -> list[list[Token]]:
    """Split arguments at their commas."""
    parts: list[list[Token]] = [[]]
    for token in tokens:
        if token.is_operator(","):
            parts.append([])
        else:
            parts[-1].append(token)
    return parts if parts != [[]] else []


def as_weights(value: Any, p: int) -> np.ndarray:
    """Check a vector of weights.

    Raises
    ------
    ValueError
        It has not p finite numbers, or is 0 everywhere.
    """
    weights = np.asarray(value, dtype=np.float64)
    if weights.shape != (p,) or not np.isfinite(weights).all():
        msg = f"A vector of weights has one finite number per coefficient, {p} in all; this one is {value!r}."
        raise ValueError(msg)
    if not weights.any():
        msg = "All weights of the contrast are 0: there is nothing to test."
        raise ValueError(msg)
    return weights
