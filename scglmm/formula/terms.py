"""Wilkinson's algebra: which terms a sum of products stands for (Wilkinson & Rogers 1973, doi 10.2307/2346786).

``a + b``, ``a:b`` (interaction), ``a*b`` (``a + b + a:b``), ``a/b`` (``a + a:b``), ``(a + b)**2`` (everything up to
second order; ``^`` is the same), ``- a:b`` (without that term), ``0`` or ``- 1`` (no intercept).

Terms are expanded here and not by formulaic, because formulaic reads ``x**2`` as ``x`` without a word and takes
whatever it does not know for Python code. It still does the coding of the terms (contrasts, full rank).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import FormulaError, point_at
from .lexer import Token, check_balanced, closing, tokenize
from .safety import Expression, column_expression, parse_expression

MAX_TERMS = 1000

Term = tuple[Expression, ...]


@dataclass(frozen=True)
class Terms:
    """An expanded sum: whether there is an intercept, and the terms, each a product of different factors."""

    intercept: bool
    terms: tuple[Term, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every obs column in the terms, in order."""
        return tuple(dict.fromkeys(c for term in self.terms for factor in term for c in factor.columns))

    def __str__(self) -> str:
        """Spelling that parses to the same terms; it begins with ``1`` or ``0``."""
        return " + ".join(["1" if self.intercept else "0", *(spell(term) for term in self.terms)])


def spell(term: Term) -> str:
    """Spelling of a term in a formula."""
    return ":".join(factor.text for factor in term)


def parse_terms(source: str | list[Token], text: str | None = None) -> Terms:
    """Expand the fixed part of a formula, or the left side of a random-effect term.

    Parameters
    ----------
    source
        Text, or the tokens of a piece of `text`.
    text
        The whole formula, for carets.

    Returns
    -------
    Terms with main effects first, then interactions by order, otherwise as the user wrote them.

    Raises
    ------
    FormulaError
        It cannot be read, or names more than 1,000 terms.
    """
    if isinstance(source, str):
        text, source = source, tokenize(source)
        check_balanced(source, text)
    parser = _Parser(source, text)
    terms = parser.sum(top=True)
    if parser.here is not None:
        raise parser.unexpected()
    return Terms(parser.intercept, tuple(sorted(terms.values(), key=len)))


_Sum = dict[frozenset[str], Term]


class _Parser:
    """Recursive descent over the tokens of one sum."""

    def __init__(self, tokens: list[Token], text: str) -> None:
        self.tokens = tokens
        self.text = text
        self.position = 0
        self.intercept = True

    @property
    def here(self) -> Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def at(self, *symbols: str) -> bool:
        return self.here is not None and self.here.is_operator(*symbols)

    def error(self, token: Token | None, message: str) -> FormulaError:
        """Error that points at a token, or at the end."""
        if token is None:
            return point_at(self.text, self.tokens[-1].end if self.tokens else 0, message)
        return point_at(self.text, token.start, message)

    def unexpected(self) -> FormulaError:
        """Error about a token that cannot stand here, after a complete factor."""
        token = self.here
        before = self.tokens[self.position - 1]
        if token.is_operator("."):
            return self.error(self.here, "'.' (all columns) is refused: name the obs columns that you mean.")
        if token.kind == "operator":
            return self.error(
                self.here,
                f"{token.text!r} cannot stand here. Terms are joined by + - : * / and **; arithmetic and comparisons "
                "belong inside I(), as in I(x > 3).",
            )
        hint = " A column whose name begins with a digit is written in backticks." if before.kind == "number" else ""
        return self.error(self.here, f"There is no operator between {before.text!r} and {token.text!r}.{hint}")

    def sum(self, top: bool = False) -> _Sum:
        """``[+-] product [+-] product ...``."""
        terms: _Sum = {}
        sign = None
        if self.at("+", "-"):
            sign = self.take()
        while True:
            minus = sign is not None and sign.text == "-"
            if self.here is None or self.at(")", "+", "-"):
                if sign is None:
                    raise self.error(self.here, "There is nothing here: a term is missing.")
                raise self.error(sign, f"There is nothing after {sign.text!r}: a term is missing.")
            if self.here.kind == "number" and self.is_whole_term():
                self.number(minus, top)
            else:
                start = self.here
                product = self.product()
                if minus:
                    self.take_out(terms, product, start)
                else:
                    terms |= {key: term for key, term in product.items() if key not in terms}
            if not self.at("+", "-"):
                return terms
            sign = self.take()

    def take(self) -> Token:
        self.position += 1
        return self.tokens[self.position - 1]

    def is_whole_term(self) -> bool:
        """Whether the token here is followed by the end of its term."""
        after = self.tokens[self.position + 1] if self.position + 1 < len(self.tokens) else None
        return after is None or after.is_operator("+", "-", ")")

    def number(self, minus: bool, top: bool) -> None:
        """``1`` and ``0``: with and without the intercept."""
        token = self.here
        if token.text not in {"0", "1"} or not top:
            raise self.error(
                self.here,
                f"The number {token.text} is no term. Only 1 (with intercept) and 0 (without) may stand in a sum, "
                "outside of parentheses.",
            )
        self.intercept = (token.text == "1") != minus
        self.take()

    def take_out(self, terms: _Sum, product: _Sum, start: Token) -> None:
        for key, term in product.items():
            if key not in terms:
                raise self.error(start, f"There is no term {spell(term)!r} before this that could be taken out.")
            del terms[key]

    def product(self) -> _Sum:
        """``interaction [*/] interaction ...``."""
        terms = self.interaction()
        while self.at("*", "/"):
            operator = self.take()
            right = self.operand(self.interaction, operator)
            if operator.text == "*":
                terms = {**terms, **right, **self.cross(terms, right, operator)}
            else:
                common = tuple(dict.fromkeys(factor for term in terms.values() for factor in term))
                terms = {**terms, **self.cross({_key(common): common}, right, operator)}
        return terms

    def interaction(self) -> _Sum:
        """``power : power ...``."""
        terms = self.power()
        while self.at(":"):
            operator = self.take()
            terms = self.cross(terms, self.operand(self.power, operator), operator)
        return terms

    def power(self) -> _Sum:
        """``factor ** number``."""
        start = self.here
        terms = self.factor()
        while self.at("**", "^"):
            operator = self.take()
            exponent = self.here
            whole = exponent is not None and exponent.kind == "number" and exponent.text.isdigit()
            if not whole or len(exponent.text) > 3 or int(exponent.text) < 1:
                raise self.error(
                    self.here,
                    f"After {operator.text!r} in a formula stands a whole number from 1 up: the highest order of "
                    "interaction. For arithmetic use I(), as in I(x**0.5).",
                )
            self.take()
            if len(terms) == 1:
                only = spell(next(iter(terms.values())))
                raise self.error(
                    start,
                    f"{operator.text!r} in a formula crosses terms, so {only + operator.text + exponent.text!r} would "
                    f"be no more than {only!r}. For the power write I({only.replace(':', ' * ')}**{exponent.text}).",
                )
            base = terms
            # beyond the number of factors there is no higher interaction to make
            for _ in range(min(int(exponent.text), len(base)) - 1):
                terms = {**terms, **self.cross(terms, base, operator)}
        return terms

    def operand(self, parse: Callable[[], _Sum], operator: Token) -> _Sum:
        """Parse the right side of `operator`."""
        if self.here is None or self.at("+", "-", "*", "/", ":", ")"):
            raise self.error(operator, f"There is nothing after {operator.text!r}: a factor is missing.")
        return parse()

    def cross(self, left: _Sum, right: _Sum, operator: Token) -> _Sum:
        """Interactions of every term on the left with every one on the right."""
        if len(left) * len(right) > MAX_TERMS:
            raise self.error(operator, f"This makes more than {MAX_TERMS:,} terms.")
        crossed: _Sum = {}
        for a in left.values():
            for b in right.values():
                term = tuple(dict.fromkeys((*a, *b)))
                crossed.setdefault(_key(term), term)
        return crossed

    def factor(self) -> _Sum:
        """Parse a column, a call, or a sum in parentheses."""
        token = self.here
        following = self.tokens[self.position + 1] if self.position + 1 < len(self.tokens) else None
        if token.kind == "name" and following is not None and following.is_operator("("):
            end = closing(self.tokens, self.position + 1, self.text)
            source = self.text[token.start : self.tokens[end].end]
            try:
                expression = parse_expression(source)
            except FormulaError as error:
                raise point_at(self.text, token.start, str(error)) from None
            self.position = end + 1
        elif token.is_column:
            if token.kind == "name" and token.text.startswith("__"):
                raise self.error(
                    self.here, f"{token.text!r} is refused: an obs column of that name is written in backticks."
                )
            expression = column_expression(token.column)
            self.take()
        elif token.is_operator("("):
            self.take()
            terms = self.sum()
            if not self.at(")"):
                raise self.unexpected()
            self.take()
            self.check_end()
            return terms
        else:
            raise self.no_factor(token)
        self.check_end()
        return {frozenset({expression.text}): (expression,)}

    def check_end(self) -> None:
        """After a factor stands an operator of the algebra or the end."""
        if self.here is not None and not self.at("+", "-", "*", "/", ":", "**", "^", ")"):
            raise self.unexpected()

    def no_factor(self, token: Token) -> FormulaError:
        """Error about a token that cannot begin a factor."""
        if token.kind == "text":
            return self.error(
                self.here, "Text in quotes is no term. A column with special characters stands in backticks."
            )
        if token.kind == "number":
            return self.error(
                self.here,
                f"The number {token.text} cannot be part of a product. A column whose name begins with a digit is "
                "written in backticks; arithmetic belongs inside I(), as in I(2 * x).",
            )
        if token.text == ".":
            return self.error(self.here, "'.' (all columns) is refused: name the obs columns that you mean.")
        return self.error(
            self.here, f"{token.text!r} cannot stand here: a column, a function or a parenthesis is expected."
        )


def _key(term: Term) -> frozenset[str]:
    """Terms are the same whatever the order of their factors."""
    return frozenset(factor.text for factor in term)
