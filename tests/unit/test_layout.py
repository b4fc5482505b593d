"""The source tree keeps the layout rules that no linter has."""

from collections.abc import Callable, Iterator

import pytest

import qmtl_sdk
from tests.support import ROOT, layout
from tests.support.layout import Module, modules

Rule = Callable[[Module], Iterator[str]]

EVERYTHING = (*layout.PACKAGES, "benchmarks", "examples", "tests")
RULES: list[Rule] = [
    layout.nested_conditionals,
    layout.several_attributes,
    layout.several_constants,
    layout.many_parameters,
    layout.long_module,
    layout.long_classes,
]
# The largest folder may hold this share of its package.
LARGEST_SHARE = 0.25


def broken(rule: Rule, *folders: str) -> list[str]:
    return [place for module in modules(*folders) for place in rule(module)]


def test_nothing_imports_a_test_module_or_a_conftest() -> None:
    assert broken(layout.imports_of_tests, *EVERYTHING) == []


def test_benchmarks_take_only_shared_code_from_the_tests() -> None:
    foreign = [
        module.at(node, name)
        for module in modules("benchmarks")
        for node, name in layout.imports(module)
        if name.startswith("tests.") and not name.startswith("tests.support.")
    ]
    assert foreign == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps_the_rule(rule: Rule) -> None:
    assert broken(rule, *EVERYTHING) == []


def test_only_a_constructor_for_authors_has_further_parameters_by_keyword() -> None:
    by_keyword = "class Node:\n    def __init__(self, a, b, *, c, d, e, f, g): ..."
    by_position = "class Node:\n    def __init__(self, a, b, c, d, e, f, g): ..."
    other_method = "class Node:\n    def f(self, a, b, *, c, d, e, f, g): ..."
    other_class = by_keyword.replace("Node", "Other")
    author_module = "qmtl_sdk/nodes/node.py"

    def found(path: str, text: str) -> int:
        return len(list(layout.many_parameters(Module(path, text))))

    assert found(author_module, by_keyword) == 0
    assert [found(author_module, text) for text in (by_position, other_method, other_class)] == [1, 1, 1]
    assert found("qmtl_sdk/nodes/view.py", by_keyword) == 1


def test_each_constructor_for_authors_is_public_and_needs_its_exemption() -> None:
    for path, names in layout.AUTHOR_CONSTRUCTORS.items():
        text = (ROOT / path).read_text()
        unexempted = list(layout.many_parameters(Module("other.py", text)))
        assert len(unexempted) == len(names)
        assert names <= set(qmtl_sdk.__all__)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (layout.nested_conditionals, "x = 1 if a else (2 if b else 3)"),
        (layout.several_attributes, "class A:\n    def __init__(self):\n        self.a, self.b = 1, 2"),
        (layout.several_constants, "A, B = 1, 2"),
        (layout.many_parameters, "def f(a, b, c, d, *, e, f, g): ..."),
        (layout.long_module, "\n" * 301),
        (layout.long_classes, "class A:\n" + "    a = 1\n" * 200),
        (layout.imports_of_tests, "def f():\n    from tests.unit import test_x"),
        (layout.imports_of_tests, "import tests.conftest"),
    ],
)
def test_a_rule_finds_what_breaks_it(rule: Rule, text: str) -> None:
    assert len(list(rule(Module("api/x.py", text)))) == 1


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (layout.nested_conditionals, "x = [1 if a else 2, 3 if b else 4]"),
        (layout.several_attributes, "class A:\n    def __init__(self):\n        a, b = 1, 2"),
        (layout.several_constants, "A, B = divmod(7, 2)"),
        (layout.many_parameters, "class A:\n    def f(self, a, b, c, d, e, f, *rest): ..."),
        (layout.long_module, "\n" * 300),
        (layout.long_classes, "class A:\n" + "    a = 1\n" * 199),
        (layout.imports_of_tests, "from tests.support import machine"),
    ],
)
def test_a_rule_passes_what_keeps_it(rule: Rule, text: str) -> None:
    assert list(rule(Module("api/x.py", text))) == []


def test_no_folder_of_activities_holds_more_than_a_quarter_of_its_lines() -> None:
    lines = layout.lines_by_folder("activities")
    share = {folder: round(count / lines.total(), 3) for folder, count in lines.most_common(1)}
    assert [folder for folder, part in share.items() if part > LARGEST_SHARE] == [], share
