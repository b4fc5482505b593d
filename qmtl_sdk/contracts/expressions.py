"""The expressions of a policy, such as `sharpe >= 0.6` or `sharpe + 0.1*win_rate - 0.2*ulcer`.

They have numbers, metric names, `+ - * /`, comparisons, `and`, `or`, `not` and parentheses, and are parsed to
a tree, never run as Python. A missing value, a division by zero or an overflow makes the result missing
(None: insufficient evidence, not zero), unless the other side of an `and` or `or` decides it.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.metrics import METRICS

Value = float | bool | None
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<op><=|>=|==|!=|[-+*/()<>]))"
)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
MAX_LENGTH = 1000
"""Characters of an expression: far more than a person writes."""

MAX_DEPTH = 50
"""Nested parentheses: below Python's recursion limit in every parser."""

MAX_LEVELS = 100
"""Levels of an expression's tree, which a sum of many terms has too: `evaluate` walks it by recursion."""


@dataclass(frozen=True, slots=True)
class Number:
    """A literal number."""

    value: float


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator with one or two operands."""

    op: str
    operands: tuple["Expression", ...]


Expression = Number | Metric | Operation


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """Return the tree of an expression. Raises QmtlError: E_EXPRESSION, E_METRIC_UNKNOWN.

    A judgment parses each gate for each strategy, so trees are remembered.
    """
    if len(text) > MAX_LENGTH:
        raise QmtlError(
            "E_EXPRESSION", f"an expression of {len(text)} characters", f"keep it below {MAX_LENGTH}"
        )
    tree = _Parser(text).whole()
    if _levels_exceed(tree, MAX_LEVELS):
        raise QmtlError(
            "E_EXPRESSION",
            f"“{text[:40]}…” has more than {MAX_LEVELS} levels of operators",
            "use fewer terms, or several gates",
        )
    return tree


def _levels_exceed(tree: Expression, limit: int) -> bool:
    """Return whether a tree has more than `limit` levels; without recursion."""
    level: list[Expression] = [tree]
    for _ in range(limit):
        level = [operand for item in level if isinstance(item, Operation) for operand in item.operands]
        if not level:
            return False
    return True


def is_condition(tree: Expression) -> bool:
    """Return whether the expression is true or false rather than a number."""
    return isinstance(tree, Operation) and (tree.op in _COMPARE or tree.op in ("and", "or", "not"))


def metrics_in(tree: Expression) -> list[str]:
    """Return the metrics in an expression, each once, in order."""
    if isinstance(tree, Metric):
        return [tree.name]
    if isinstance(tree, Operation):
        return list(dict.fromkeys(name for operand in tree.operands for name in metrics_in(operand)))
    return []


def evaluate(tree: Expression, values: Mapping[str, float | None]) -> Value:
    """Return a number or a truth value; None where a value that the expression needs is missing."""
    if isinstance(tree, Number):
        return tree.value
    if isinstance(tree, Metric):
        return values.get(tree.name)
    if tree.op in ("and", "or"):
        settled = tree.op == "or"
        sides = [evaluate(operand, values) for operand in tree.operands]
        if settled in sides:
            return settled
        return None if None in sides else not settled
    operands = [evaluate(operand, values) for operand in tree.operands]
    if any(operand is None for operand in operands):
        return None
    numbers = [float(operand) for operand in operands if operand is not None]
    if tree.op == "not":
        return not operands[0]
    if len(numbers) == 1:
        return -numbers[0]
    if tree.op in _COMPARE:
        return _COMPARE[tree.op](*numbers)
    if tree.op == "/":
        result = numbers[0] / numbers[1] if numbers[1] else math.nan
    else:
        result = _ARITHMETIC[tree.op](*numbers)
    return result if math.isfinite(result) else None


class _Parser:
    """A recursive descent parser: or → and → not → comparison → sum → product → sign → atom.

    An operator takes numbers or conditions, never both.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._scan(text)
        self._at = 0
        self._depth = 0

    def whole(self) -> Expression:
        tree = self._or()
        if self._at < len(self._tokens):
            raise self._error(f"{self._tokens[self._at]!r} is out of place")
        return tree

    def _scan(self, text: str) -> list[str]:
        tokens = []
        at = 0
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if not match:
                raise QmtlError(
                    "E_EXPRESSION",
                    f"“{text}”: {text[at:].strip()[:1]!r} is not allowed",
                    "use numbers, metrics, + - * /, comparisons, and, or, not",
                )
            tokens.append(match.group().strip())
            at = match.end()
        return tokens

    def _error(self, why: str) -> QmtlError:
        return QmtlError(
            "E_EXPRESSION", f"“{self._text}”: {why}", "write it like “sharpe >= 0.6 and trades >= 20”"
        )

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._peek()
        if token in wanted and token:
            self._at += 1
            return token
        return ""

    def _join(self, op: str, *operands: Expression) -> Expression:
        wants_conditions = op in ("and", "or", "not")
        for operand in operands:
            if is_condition(operand) != wants_conditions:
                raise self._error(f"{op!r} joins {'conditions' if wants_conditions else 'numbers'} only")
        return Operation(op, operands)

    def _or(self) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error("it is nested too deeply")
        tree = self._and()
        while self._take("or"):
            tree = self._join("or", tree, self._and())
        self._depth -= 1
        return tree

    def _and(self) -> Expression:
        tree = self._not()
        while self._take("and"):
            tree = self._join("and", tree, self._not())
        return tree

    def _not(self) -> Expression:
        count = 0
        while self._take("not"):
            count += 1
        tree = self._comparison()
        for _ in range(count):
            tree = self._join("not", tree)
        return tree

    def _comparison(self) -> Expression:
        tree = self._sum()
        op = self._take(*_COMPARE)
        if op:
            tree = self._join(op, tree, self._sum())
            if self._peek() in _COMPARE:
                raise self._error("comparisons don't chain")
        return tree

    def _sum(self) -> Expression:
        tree = self._product()
        while op := self._take("+", "-"):
            tree = self._join(op, tree, self._product())
        return tree

    def _product(self) -> Expression:
        tree = self._sign()
        while op := self._take("*", "/"):
            tree = self._join(op, tree, self._sign())
        return tree

    def _sign(self) -> Expression:
        count = 0
        while self._take("-"):
            count += 1
        tree = self._atom()
        return self._join("-", tree) if count % 2 else tree

    def _atom(self) -> Expression:
        if self._take("("):
            tree = self._or()
            if not self._take(")"):
                raise self._error("a parenthesis is not closed")
            return tree
        token = self._peek()
        if not token:
            raise self._error("it ends too early")
        self._at += 1
        if token[0].isdigit() or token[0] == ".":
            if not math.isfinite(float(token)):
                raise self._error(f"{token!r} is too large")
            return Number(float(token))
        if not (token[0].isalpha() or token[0] == "_") or token in ("and", "or", "not"):
            raise self._error(f"{token!r} is out of place")
        if token not in METRICS.names():
            raise QmtlError(
                "E_METRIC_UNKNOWN",
                f"“{self._text}”: {token!r} is not a metric{nearest(token, list(METRICS.names()))}",
                f"known: {', '.join(METRICS.names())}",
                metric=token,
            )
        return Metric(token)
