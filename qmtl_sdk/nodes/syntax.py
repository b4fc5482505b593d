"""Syntax trees of compute functions, without the parts that do not change a result.

Source text is read through `linecache`, so that functions of a notebook cell are found as well. Parsed files
are cached by their text.
"""

import ast
import inspect
import linecache
import types

_PARSE_ATTEMPTS = 10

_parsed: dict[str, tuple[str, ast.Module]] = {}


def function_tree(function: types.FunctionType) -> ast.AST | None:
    """Return the bare syntax tree of a function or lambda, or None if its source is not available."""
    module = _module_tree(function.__code__.co_filename)
    if module is None:
        return None
    node = _find(module, function.__code__)
    return None if node is None else _bare(node)


def class_tree(cls: type) -> ast.AST | None:
    """Return the bare syntax tree of a class, or None if its source is not available."""
    try:
        return _bare(parsed(inspect.cleandoc("\n" + inspect.getsource(cls))))
    except (OSError, TypeError, SyntaxError):
        return None


def attributes_read(tree: ast.AST) -> dict[str, set[str]]:
    """Return the attributes that the code reads, by name: `np.mean` → {"np": {"mean"}}."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.setdefault(node.value.id, set()).add(node.attr)
    return found


def parsed(source: str) -> ast.Module:
    """Parse source text. Raises SyntaxError.

    A Python before 3.11.9 raises SystemError where another tree is built meanwhile, by another thread or by
    garbage collection: already a logged traceback needs one (github.com/python/cpython/issues/106905).
    """
    for _ in range(_PARSE_ATTEMPTS - 1):
        try:
            return ast.parse(source)
        except SystemError:
            continue
    return ast.parse(source)


def _module_tree(filename: str) -> ast.Module | None:
    linecache.checkcache(filename)
    source = "".join(linecache.getlines(filename))
    if not source:
        return None
    cached = _parsed.get(filename)
    if cached is None or cached[0] != source:
        try:
            _parsed[filename] = cached = (source, parsed(source))
        except SyntaxError:
            return None
    return cached[1]


def _find(module: ast.Module, code: types.CodeType) -> ast.AST | None:
    """Find the function or lambda that `code` was compiled from.

    Several lambdas may share a line; the columns of the bytecode tell them apart.
    """
    spots = [
        (line, column)
        for line, _, column, _ in code.co_positions()
        if line and column is not None and line > 0
    ]
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.co_name:
            first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
            if code.co_firstlineno in (first, node.lineno):
                return node
        if isinstance(node, ast.Lambda) and code.co_name == "<lambda>" and node.lineno == code.co_firstlineno:
            body = node.body
            start = (body.lineno, body.col_offset)
            end = (body.end_lineno or body.lineno, body.end_col_offset or 0)
            inside = [spot for spot in spots if spot != (code.co_firstlineno, 0)]
            if inside and all(start <= spot <= end for spot in inside):
                return node
    return None


class _Strip(ast.NodeTransformer):
    """Remove docstrings and annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        if (
            node.body
            and isinstance(node.body[0], ast.Expr)
            and isinstance(node.body[0].value, ast.Constant)
            and isinstance(node.body[0].value.value, str)
        ):
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def _bare(tree: ast.AST) -> ast.AST:
    """Copy a tree without comments, positions, docstrings, annotations and the function's own name."""
    copy = parsed(ast.unparse(tree))
    bare = _Strip().visit(copy)
    top = bare.body[0] if bare.body else bare
    if isinstance(top, ast.FunctionDef):
        top.name = "_"
    return bare  # type: ignore[no-any-return]  # NodeTransformer.visit is untyped
