"""Formulas are not code: what is refused, and that nothing is ever run."""

from __future__ import annotations

import ast
import builtins
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scglmm
from scglmm.formula import FormulaError, build_design, parse_formula
from scglmm.formula.evaluate import evaluate
from scglmm.formula.safety import CODINGS, MATHS, TRANSFORMS, parse_expression

rng = np.random.default_rng(0)
OBS = pd.DataFrame(
    {
        "x": rng.uniform(1, 2, 30),
        "y": rng.uniform(1, 2, 30),
        "my col": rng.uniform(1, 2, 30),
        "g": np.array(list("abc"))[np.arange(30) % 3],
    }
)
COLUMNS = {"x": OBS["x"].to_numpy(), "y": OBS["y"].to_numpy(), "my col": OBS["my col"].to_numpy()}

ESCAPES = [
    # names and calls of Python
    "__import__('os')",
    "__import__('os').system('true')",
    "eval('1')",
    "exec('1')",
    "open('/etc/passwd')",
    "compile('1', '', 'eval')",
    "getattr(x, 'sum')",
    "globals()",
    "locals()",
    "vars()",
    "breakpoint()",
    "input()",
    "print(x)",
    "type(x)",
    "object()",
    "print",
    # attributes
    "().__class__",
    "().__class__.__bases__[0].__subclasses__()",
    "''.__class__",
    "x.__class__",
    "x.sum()",
    "x.values",
    "x.a.b.c",
    "(1).real",
    "log.__globals__",
    "I.__globals__['sys']",
    "np.loadtxt('x')",
    "np.load('x', allow_pickle=True)",
    "np.fromfile('x')",
    "np.log.__class__",
    "np.linalg.inv(x)",
    "np",
    "np.pi",
    "numpy.log(x)",
    "os.system('true')",
    "contr.treatment.__init__.__globals__",
    "pd.read_csv('x')",
    "Treatment('a')",
    "contr.custom(x)",
    # syntax
    "lambda: x",
    "(lambda: x)()",
    "[x for x in (1, 2)]",
    "(y for y in x)",
    "{y for y in x}",
    "{y: y for y in x}",
    "(z := x)",
    "f'{x}'",
    'f"{__import__("os")}"',
    "x[0]",
    "x[::2]",
    "x if y else x",
    "x and y",
    "not x",
    "~x",
    "x | y",
    "x & y",
    "x @ y",
    "x << 2",
    "x in y",
    "x is y",
    "1 < x < 2",
    "*x",
    "x; y",
    "x = 1",
    "{}",
    "[x]",
    "(x, y)",
    "...",
    "b'a'",
    "1j * x",
    "True",
    "None",
    "'a' * 9",
    "'%s' % x",
    "'{0.__class__}'.format(x)",
    "await x",
    "yield",
    "x)(y",
    "x, **y",
    "x\\",
    "x # comment",
    "_state",
    # functions of formulaic that are left out
    "lag(x)",
    "hashed(g, 3)",
    "exp2(x)",
    "Q(x)",
    "Q('x', 'y')",
    "Q('')",
]


@pytest.mark.parametrize("place", ["~ {}", "~ I({})", "~ log({})", "~ offset({})", "~ ({}|g)", "~ (1|{})"])
@pytest.mark.parametrize("escape", ESCAPES)
def test_escapes_are_refused(escape: str, place: str):
    text = place.format(escape)
    # as a bare name these are columns that do not exist
    try:
        formula = parse_formula(text)
    except FormulaError:
        return
    with pytest.raises((FormulaError, KeyError)):
        build_design(formula, OBS)


@pytest.mark.parametrize(
    "text",
    [
        "scale(x, __import__('os'))",
        "scale(x, center=__import__('os'))",
        "scale(x, center=open('x'))",
        "bs(x, knots=[__import__('os')])",
        "bs(x, knots=[y for y in x])",
        "bs(x, **{'df': 4})",
        "bs(*x)",
        "bs(x, _state={})",
        "bs(x, _spec=x)",
        "bs(x, _state=x)",
        "C(g, lambda: x)",
        "C(g, Treatment(__import__('os')))",
        "C(g, Treatment(x.y))",
        "C(g, Treatment)(x)",
        "C(g, x)",
        "C(g, {'a': [1, -1, 0]})",
        "C(g, contr.custom([1]))",
        "C(g, contr.__class__)",
        "C(g, contr)",
        "C(g, levels=open('x'))",
        "C(g, encoder=x)",
        "C(g, spans_intercept=False)",
        "hashed(g, 2, hash_func=print)",
        "log(x, out=y)",
        "I(x, y)",
        "poly(x, 2, True, x)",
        "standardize(x, ddof='a')",
        "bs(x, df='four')",
        "bs(g)",
        "log(g)",
        "I(g + 1)",
        "I(g > 2)",
        "I(x == 'a')",
        "I(g == g)",
        "scale(x, center='a')",
        "I(poly(x, 2) + 1)",
        "I(bs(x, df=4) * x)",
        "C(bs(x, df=4))",
        "I(9**9**9**9 * x)",
        "I(x * (-1)**0.5)",
        "I(x / 0)",
        "I(1 // 0 * x)",
    ],
)
def test_arguments_are_no_way_in(text: str):
    with pytest.raises(ValueError, match=r".") as caught:
        build_design(parse_formula(f"~ {text}"), OBS)
    assert type(caught.value).__module__.startswith("scglmm")


def test_the_message_names_the_piece_and_lists_what_is_allowed():
    with pytest.raises(FormulaError) as caught:
        parse_formula("~ x + log(np.loadtxt('/etc/passwd'))")
    message = str(caught.value)
    assert "np.loadtxt('/etc/passwd')" in message
    assert "root" not in message
    for name in (*MATHS, *TRANSFORMS, *CODINGS, "contr.treatment"):
        assert name in message
    with pytest.raises(FormulaError, match=r"For the obs column 'percent\.mt' write `percent\.mt`"):
        parse_formula("~ log(percent.mt)")


def test_text_in_a_call_is_no_code(tmp_path):
    """formulaic builds Python code around the spelling of a call; text inside it must never become part of that."""
    trace = tmp_path / "trace"
    for payload in (
        f"') or open({str(trace)!r}, 'w') or ('",
        f'") or __import__("pathlib").Path("{trace}").touch() or ("',
        f'\\"] + [open("{trace}", "w")] + [\\"',
        "'\"",
    ):
        for call in ("scale(x, {})", "bs(x, extrapolation={})", "C(g, Treatment({}))", "C(g, levels=[{}])"):
            text = call.format(repr(payload))
            with pytest.raises(ValueError, match=r"."):
                build_design(parse_formula(f"~ {text}"), OBS)
    column = f"`x') or open('{trace}', 'w') or ('`"
    with pytest.raises(KeyError):
        build_design(parse_formula(f"~ log({column}) + {column} + (1|{column})"), OBS)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    ["__class__", "`", "a' + 'b", 'a"b', "a\\", "{0}", "lambda", "log(x)", "a:b", "1", "None", "µ", "x y z", "_"],
)
def test_any_column_can_be_named_in_backticks(name: str):
    obs = OBS.rename(columns={"my col": name})
    if name == "`":
        with pytest.raises(FormulaError):
            parse_formula(f"~ `{name}`")
        with pytest.raises(FormulaError):
            parse_formula("~ Q('`')")
        return
    design = build_design(parse_formula(f"~ x + `{name}` + log(`{name}`) + I(`{name}`^3)"), obs)
    assert design.columns[:3] == ["(Intercept)", "x", name]
    np.testing.assert_array_equal(design.X[:, 2], OBS["my col"])
    np.testing.assert_array_equal(design.X[:, 3], np.log(OBS["my col"]))
    np.testing.assert_allclose(design.X[:, 4], OBS["my col"] ** 3, rtol=1e-14)


def test_neither_the_frame_of_the_caller_nor_builtins_leak_in():
    secret = np.ones(30)
    for name in ("secret", "OBS", "rng", "print", "sum", "id", "__name__"):
        with pytest.raises((KeyError, FormulaError)):
            build_design(parse_formula(f"~ I({name} + x)"), OBS)
    assert secret.all()


def test_nothing_in_the_package_runs_text():
    """Neither a formula nor a path from the command line can reach an interpreter or a shell: none is ever called."""
    names = {"eval", "exec", "compile", "system", "popen", "Popen", "subprocess", "__import__", "spawnl", "execv"}
    for path in Path(scglmm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "id", None) or (
                f"{called.value.id}.{called.attr}"
                if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name)
                else None
            )
            assert name is None or name == "re.compile" or name.split(".")[-1] not in names, (path, name)
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not imported & {"subprocess", "pty", "commands"}, path


def test_evaluation_runs_no_code(monkeypatch):
    """Neither here nor in formulaic is anything compiled or evaluated."""
    formula = parse_formula("~ log(x)*C(g, Treatment('b')) + bs(y, df=4) + np.exp(`my col`) + (scale(x)|g)")
    build_design(formula, OBS)

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("code was run")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "eval", refuse)
        patch.setattr(builtins, "exec", refuse)
        design = build_design(formula, OBS)
    assert design.X.shape[0] == 30


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("log(x)", np.log(OBS["x"])),
        ("np.log(x)", np.log(OBS["x"])),
        ("log1p(x)", np.log1p(OBS["x"])),
        ("log2(x)", np.log2(OBS["x"])),
        ("np.log10(x)", np.log10(OBS["x"])),
        ("sqrt(x)", np.sqrt(OBS["x"])),
        ("exp(-x)", np.exp(-OBS["x"])),
        ("I(x^2)", OBS["x"] ** 2),
        ("I(x**2 + 3*y - 1)", OBS["x"] ** 2 + 3 * OBS["y"] - 1),
        ("I(x // 0.3 + y % 0.3)", OBS["x"] // 0.3 + OBS["y"] % 0.3),
        ("log(`my col` / x)", np.log(OBS["my col"] / OBS["x"])),
        ("Q('my col')", OBS["my col"]),
        ("I(x > 1.5)", (OBS["x"] > 1.5).astype(float)),
        ("I((x > 1.5) * (g == 'a'))", ((OBS["x"] > 1.5) & (OBS["g"] == "a")).astype(float)),
        ("I('a' != g)", (OBS["g"] != "a").astype(float)),
        ("scale(x)", (OBS["x"] - OBS["x"].mean()) / OBS["x"].std()),
        ("standardize(x)", (OBS["x"] - OBS["x"].mean()) / OBS["x"].std(ddof=0)),
        ("center(log(x))", np.log(OBS["x"]) - np.log(OBS["x"]).mean()),
        ("scale(x, center=False)", OBS["x"] / np.sqrt((OBS["x"] ** 2).sum() / 29)),
    ],
)
def test_values(text: str, value: pd.Series):
    design = build_design(parse_formula(f"~ {text}"), OBS)
    np.testing.assert_allclose(design.X[:, 1], value, rtol=1e-14, atol=1e-15)


def test_integers_do_not_overflow():
    obs = pd.DataFrame({"n": np.arange(50_000, 50_100, dtype=np.int32), "u": np.arange(100, dtype=np.uint8)})
    design = build_design(parse_formula("~ I(n**2) + I(-u)"), obs)
    np.testing.assert_array_equal(design.X[:, 1], np.arange(50_000, 50_100, dtype=float) ** 2)
    np.testing.assert_array_equal(design.X[:, 2], -np.arange(100.0))


# ------------------------------------------------------------------------------------------ generated expressions


@st.composite
def arithmetic(draw: st.DrawFn, depth: int = 4) -> str:
    if depth == 0:
        return draw(st.sampled_from(["x", "y", "`my col`", "2", "0.5", "3"]))
    kind = draw(st.integers(0, 3))
    inner = draw(arithmetic(depth - 1))
    if kind == 0:
        return inner
    if kind == 1:
        return f"{draw(st.sampled_from(MATHS))}({inner})"
    if kind == 2:
        return f"(-{inner})"
    operator = draw(st.sampled_from(["+", "-", "*", "/", "//", "%", ">", "<=", "=="]))
    # 1.0 *, because a comparison is a number here and a bool in numpy
    return f"(1.0 * ({inner} {operator} {draw(arithmetic(depth - 1))}))"


@given(arithmetic().filter(lambda text: any(c in text for c in ("x", "y")) and "(" in text))
@settings(max_examples=150, deadline=None)
def test_values_are_those_of_python(text: str):
    try:
        expression = parse_expression(text)
        found = evaluate(expression.tree, COLUMNS, {})
    except FormulaError:
        return  # a constant as the argument of a function, a division by zero
    # the spelling of an expression stands for the same expression
    assert parse_expression(expression.text) == expression
    scope = {"x": COLUMNS["x"], "y": COLUMNS["y"], "my_col": COLUMNS["my col"]}
    scope |= {name: getattr(np, name) for name in MATHS}
    with np.errstate(all="ignore"):
        expected = eval(text.replace("`my col`", "my_col"), scope)
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), rtol=1e-12)


PYTHON = ["x", "y", "g", "np", "log", "C", "bs", "I", "Q", "__class__", "import", "lambda", "for", "in", "if", "else"]
PYTHON += ["(", ")", "[", "]", "'", '"', "`", ",", ".", ":", "=", "**", "*", "+", "-", "|", "1", "0.5", " ", "\\", "f'"]


@given(st.lists(st.sampled_from(PYTHON), max_size=25).map("".join))
@settings(max_examples=400, deadline=None)
def test_whatever_passes_holds_nothing_but_what_is_listed(text: str):
    try:
        expression = parse_expression(text)
    except FormulaError:
        return
    for node in ast.walk(expression.tree):
        assert not isinstance(node, ast.Lambda | ast.Subscript | ast.comprehension | ast.JoinedStr | ast.Starred)
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node.value) in {"np", "contr"}
    assert set(expression.functions) <= {"np", *MATHS, *TRANSFORMS}


@pytest.mark.parametrize("text", ["-" * 9000 + "x", "+".join(["x"] * 4000), "9" * 9000 + "*x", "x" * 9000 + ".y"])
def test_long_expressions_end(text: str):
    limit = sys.getrecursionlimit()
    with pytest.raises((FormulaError, KeyError)):
        build_design(parse_formula(f"~ I({text})"), OBS)
    assert sys.getrecursionlimit() == limit
