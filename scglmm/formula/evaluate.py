"""The value of a checked expression, computed node by node without Python's `eval`.

Stateful functions (``scale``, ``poly``, the splines, the levels of ``C``) remember in a `state` what they learned
from the data of the fit (mean, knots, levels), under the spelling of the call, so that new data are coded the same
way.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from formulaic.materializers.types import FactorValues
from formulaic.transforms import TRANSFORMS
from formulaic.transforms.contrasts import Contrasts, ContrastsRegistry, TreatmentContrasts

from .errors import DesignError, FormulaError, pass_memory_error
from .safety import CODINGS, CONTR, MATHS, unparse

Value: TypeAlias = Any
"""An array or a number, a categorical Series, or `FactorValues`, told apart at run time."""

_MATHS = {name: getattr(np, name) for name in MATHS}
_STATEFUL = {name: TRANSFORMS[name] for name in ("center", "scale", "standardize", "poly", "bs", "cs", "cr", "cc")}
_CODINGS = {name: TRANSFORMS[name] for name in CODINGS} | {
    f"contr.{name}": getattr(ContrastsRegistry, name) for name in CONTR
}
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def evaluate(tree: ast.expr, columns: Mapping[str, np.ndarray | pd.Series], state: dict[str, Any]) -> Value:
    """Compute a checked expression.

    Parameters
    ----------
    tree
        `Expression.tree`.
    columns
        The obs columns, clean: float64 arrays, and Series of dtype category without missing values.
    state
        What stateful functions learned; filled at the first evaluation, read at later ones.

    Returns
    -------
    A float64 array (n,) for numbers, a categorical Series for a factor, formulaic's `FactorValues` for what makes
    several columns. Numbers may be infinite or NaN (``log(0)``): the caller says where.

    Raises
    ------
    FormulaError
        A function that cannot work on what it is given, such as text where a number is needed.
    DesignError
        A level that does not exist, or too few distinct values for a spline.
    """
    with np.errstate(all="ignore"):
        return _Evaluation(columns, state).value(tree)


class _Evaluation:
    """The columns and the state that an evaluation reads."""

    def __init__(self, columns: Mapping[str, np.ndarray | pd.Series], state: dict[str, Any]) -> None:
        self.columns = columns
        self.state = state

    def value(self, node: ast.expr) -> Value:
        """Compute one node."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.columns[node.id]
        if isinstance(node, ast.UnaryOp):
            return _OPERATORS[type(node.op)](self.number(node.operand))
        if isinstance(node, ast.BinOp):
            return self._arithmetic(node)
        if isinstance(node, ast.Compare):
            return self._compare(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        raise TypeError(node)  # `scglmm.formula.safety` lets nothing else through

    def number(self, node: ast.expr) -> np.ndarray | float | int:
        """Compute one node that has to be one number per cell, or a number."""
        value = self.value(node)
        if isinstance(value, FactorValues) or np.ndim(value) > 1:
            msg = f"{unparse(node)!r} stands for several columns of the design and cannot be computed with."
            raise FormulaError(msg)
        if isinstance(value, pd.Series):
            msg = (
                f"{unparse(node)!r} is a factor with the levels {listed(value.cat.categories)}, "
                "and a number is needed in its place."
            )
            raise FormulaError(msg)
        return value

    def _arithmetic(self, node: ast.BinOp) -> np.ndarray | float:
        left, right = self.number(node.left), self.number(node.right)
        if isinstance(node.op, ast.Pow):
            # integers of Python grow without bound: 9**9**9 would never end
            left, right = (float(side) if isinstance(side, int) else side for side in (left, right))
        try:
            value = _OPERATORS[type(node.op)](left, right)
        except ArithmeticError as error:
            msg = f"{unparse(node)!r} cannot be computed: {error.args[-1]}."
            raise FormulaError(msg) from None
        if isinstance(value, complex):
            msg = f"{unparse(node)!r} is not a real number."
            raise FormulaError(msg)
        return value

    def _compare(self, node: ast.Compare) -> np.ndarray | float:
        sides = [node.left, node.comparators[0]]
        values = [self.value(side) for side in sides]
        factors = [i for i in range(2) if isinstance(values[i], pd.Series)]
        if not factors:
            if any(isinstance(value, str) for value in values):
                msg = f"{unparse(node)!r} compares a number with text."
                raise FormulaError(msg)
            return np.asarray(_OPERATORS[type(node.ops[0])](self.number(sides[0]), self.number(sides[1])), float)
        if len(factors) == 2 or not isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
            msg = f'{unparse(node)!r} is refused: a factor is compared with one of its levels, as in I(Sex == "F").'
            raise FormulaError(msg)
        factor = values[factors[0]]
        level = find_level(values[1 - factors[0]], factor.cat.categories, unparse(sides[factors[0]]), unparse(node))
        equal = factor.cat.codes.to_numpy() == factor.cat.categories.get_loc(level)
        return (equal if isinstance(node.ops[0], ast.Eq) else ~equal).astype(np.float64)

    def _call(self, node: ast.Call) -> Value:
        name = ast.unparse(node.func)
        plain = name.removeprefix("np.")
        if name == "I":
            self._only_argument(node)
            return self.value(node.args[0])
        if name == "C":
            return self._factor(node)
        first = self.number(node.args[0])
        if plain in _MATHS:
            self._only_argument(node)
            return _MATHS[plain](first)
        args = [first, *(self._argument(arg) for arg in node.args[1:])]
        words = {word.arg: self._argument(word.value) for word in node.keywords}
        state = self.state.setdefault(unparse(node), {})
        try:
            return _STATEFUL[name](*args, **words, _state=state)
        except Exception as error:
            pass_memory_error(error)
            # whatever goes wrong in formulaic, the user hears which call of the formula it was
            msg = f"{unparse(node)!r} cannot be computed: {error}"
            raise DesignError(msg) from error

    def _argument(self, node: ast.expr) -> Any:
        """Compute an argument after the first."""
        return (
            [self.value(element) for element in node.elts]
            if isinstance(node, ast.List | ast.Tuple)
            else self.value(node)
        )

    def _only_argument(self, node: ast.Call) -> None:
        if len(node.args) > 1 or node.keywords:
            msg = f"{unparse(node)!r} is refused: {ast.unparse(node.func)}() takes one argument."
            raise FormulaError(msg)

    def _factor(self, node: ast.Call) -> FactorValues:
        """``C(x)``, ``C(x, Treatment("b"))``, ``C(x, levels=["b", "a"])``."""
        words = {word.arg: word.value for word in node.keywords}
        for name, arg in zip(("contrasts",), node.args[1:], strict=False):
            words.setdefault(name, arg)
        if len(node.args) > 2 or set(words) - {"contrasts", "levels"}:
            msg = f"{unparse(node)!r} is refused: C() takes a column, a coding and levels=[...]."
            raise FormulaError(msg)
        data = self.value(node.args[0])
        what = unparse(node.args[0])
        if isinstance(data, FactorValues) or np.ndim(data) != 1:
            msg = f"{unparse(node)!r} is refused: {what!r} is no column that could be a factor."
            raise FormulaError(msg)
        state = self.state.setdefault(unparse(node), {})
        if "levels" not in state:
            wanted = self._argument(words["levels"]) if "levels" in words else None
            state["levels"] = _levels(data, wanted, what, unparse(node))
        levels = state["levels"]
        factor = as_factor(data, levels, what)
        coding = self._coding(words.get("contrasts"), levels, what, unparse(node))
        return TRANSFORMS["C"](factor, coding, levels=list(levels))

    def _coding(self, node: ast.expr | None, levels: pd.Index, what: str, call: str) -> Contrasts:
        if node is None or isinstance(node, ast.Constant):
            return TreatmentContrasts()
        make = _CODINGS[ast.unparse(node.func if isinstance(node, ast.Call) else node)]
        args = [self._argument(arg) for arg in node.args] if isinstance(node, ast.Call) else []
        words = {word.arg: self._argument(word.value) for word in node.keywords} if isinstance(node, ast.Call) else {}
        try:
            coding = make(*args, **words)
        except Exception as error:
            pass_memory_error(error)
            msg = f"{call!r} cannot be computed: {error}"
            raise FormulaError(msg) from error
        if isinstance(coding, TreatmentContrasts) and (args or words):
            coding.base = find_level(coding.base, levels, what, call)
        return coding


def as_factor(data: np.ndarray | pd.Series, levels: pd.Index, what: str) -> pd.Series:
    """Make data a factor with the given levels.

    Raises
    ------
    DesignError
        The data hold a value that is none of the levels; with formulaic it would be coded as the reference.
    """
    if isinstance(data, np.ndarray):
        codes, values = pd.factorize(data, sort=True)
        values = _whole(values)
    else:
        values, codes = data.cat.categories, data.cat.codes.to_numpy()
    # equality first, so that 1 finds 1.0; then spelling, so that 1 finds "1"
    places = {str(level): i for i, level in enumerate(levels)} | {level: i for i, level in enumerate(levels)}
    found = [places.get(value, places.get(str(value), -1)) for value in values]
    unseen = [value for value, place in zip(values, found, strict=True) if place < 0]
    if unseen:
        msg = (
            f"{what!r} has {'levels' if len(unseen) > 1 else 'the level'} {listed(unseen)}, unknown to the model. "
            f"The levels are {listed(levels)}."
        )
        raise DesignError(msg)
    return pd.Series(pd.Categorical.from_codes(np.asarray(found, dtype=np.int64)[codes], categories=levels))


def find_level(level: Any, levels: pd.Index, what: str, where: str) -> Any:
    """Find the level that is meant, the user's spelling aside (``"1"`` for the level 1).

    Raises
    ------
    DesignError
        There is no such level.
    """
    if not isinstance(level, str | float | int):
        msg = f"{where!r} is refused: a level of {what!r} is text or a number."
        raise FormulaError(msg)
    found = [candidate for candidate in levels if candidate == level] or [
        candidate for candidate in levels if str(candidate) == str(level)
    ]
    if not found:
        near = difflib.get_close_matches(str(level), [str(candidate) for candidate in levels], 1)
        msg = (
            f"{where!r}: {what!r} has no level {level!r}{f' (did you mean {near[0]!r}?)' if near else ''}. "
            f"The levels are {listed(levels)}."
        )
        raise DesignError(msg)
    return found[0]


def _levels(data: np.ndarray | pd.Series, wanted: list | None, what: str, call: str) -> pd.Index:
    """Levels of ``C()``: those of a factor in their order, else the sorted values; or the ones named by the user.

    A level that no cell has is left out, since it would become a column of zeros.
    """
    present = data.cat.categories if isinstance(data, pd.Series) else pd.Index(_whole(pd.factorize(data, sort=True)[1]))
    if wanted is None:
        return present
    chosen = [level for name in wanted for level in present if level == name or str(level) == str(name)]
    missing = [level for level in present if level not in chosen]
    if missing:
        msg = f"{call!r} leaves out {listed(missing)}, which some cells have. The levels are {listed(present)}."
        raise DesignError(msg)
    return pd.Index(list(dict.fromkeys(chosen)))


def _whole(values: np.ndarray) -> np.ndarray:
    """Whole numbers as integers, so that a level reads "2" and not "2.0"."""
    whole = np.array_equal(values, np.round(values)) and np.abs(values).max(initial=0) < 2**53
    return values.astype(np.int64) if whole else values


def listed(levels: Iterable[Any], most: int = 12) -> str:
    """Levels for a message."""
    names = [repr(str(level)) for level in levels]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
