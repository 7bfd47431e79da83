"""Tokens of a formula.

The tokenizer knows names (with dots inside, as R users write them), names in backticks, numbers, quoted text and
operators, nothing else. Positions are those of the user's own text, so that every error can draw a caret under the
piece that is meant.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import FormulaError, point_at

MAX_LENGTH = 10_000
MAX_DEPTH = 50

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<name>[^\W\d][\w.]*)
  | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
  | (?P<backtick>`[^`]+`)
  | (?P<operator>\*\*|\|+|==|!=|<=|>=|//|[-+*/:^~|()<>=,%.\[\]])
    """,
    re.VERBOSE,
)

_UNCLOSED = {"'": "quote", '"': "quote", "`": "backtick"}


class Token(NamedTuple):
    """A piece of a formula: `kind` is "number", "name", "text", "backtick" or "operator"."""

    kind: str
    text: str
    start: int
    end: int

    def is_operator(self, *symbols: str) -> bool:
        """Whether this token is one of the operators `symbols`."""
        return self.kind == "operator" and self.text in symbols

    @property
    def is_column(self) -> bool:
        """Whether this token can name an obs column."""
        return self.kind in {"name", "backtick"}

    @property
    def column(self) -> str:
        """The name of the column, without backticks."""
        return self.text[1:-1] if self.kind == "backtick" else self.text


def tokenize(text: str) -> list[Token]:
    """Split a formula into tokens.

    Raises
    ------
    FormulaError
        A character that means nothing in a formula, or a quote or backtick that is never closed; a formula that is
        longer than any real one.
    """
    if len(text) > MAX_LENGTH:
        msg = f"The formula has {len(text):,} characters; the limit is {MAX_LENGTH:,}."
        raise FormulaError(msg)
    tokens = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise point_at(text, position, _unknown(text, position))
        if match.lastgroup != "space":
            tokens.append(Token(match.lastgroup, match.group(), position, match.end()))
        position = match.end()
    return tokens


def closing(tokens: list[Token], opening: int, text: str) -> int:
    """Index of the parenthesis that closes the one at index `opening`."""
    depth = 0
    for i in range(opening, len(tokens)):
        if tokens[i].is_operator("("):
            depth += 1
            if depth > MAX_DEPTH:
                msg = f"Parentheses are nested more than {MAX_DEPTH} deep."
                raise point_at(text, tokens[i].start, msg)
        elif tokens[i].is_operator(")"):
            depth -= 1
            if depth == 0:
                return i
    raise point_at(text, tokens[opening].start, "This parenthesis is never closed.")


def check_balanced(tokens: list[Token], text: str) -> None:
    """Check that every parenthesis has its partner.

    Raises
    ------
    FormulaError
        One that has not; the caret stands under it.
    """
    i = 0
    while i < len(tokens):
        if tokens[i].is_operator("("):
            i = closing(tokens, i, text)
        elif tokens[i].is_operator(")"):
            raise point_at(text, tokens[i].start, "This parenthesis closes nothing.")
        i += 1


def quoted(column: str) -> str:
    """Spelling of a column in a formula: in backticks where it is not a plain name."""
    match = _TOKEN.fullmatch(column)
    return column if match is not None and match.lastgroup == "name" else f"`{column}`"


def _unknown(text: str, position: int) -> str:
    """Message about a character that starts no token."""
    character = text[position]
    if character in _UNCLOSED:
        if text[position : position + 2] == "``":
            return "There is no column name between these backticks."
        return f"This {_UNCLOSED[character]} is never closed."
    hint = {
        "{": " Python code in braces is not allowed in a formula; compute a new obs column instead.",
        "&": " Multiply two comparisons instead, as in I((x > 1) * (y > 2)).",
    }.get(character, "")
    return (
        f"The character {character!r} has no meaning in a formula.{hint} A column whose name has spaces or special "
        "characters is written in backticks, as in `my column`."
    )
