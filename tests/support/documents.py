"""Find the code blocks of README and docs.

A block runs unless the line above it is a comment `<!-- not run: WHY -->`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support import ROOT

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.S | re.M
)


@dataclass(frozen=True)
class Block:
    """A code block; `not_run` is the reason why it does not run, empty where it does."""

    page: str
    line: int
    language: str
    text: str
    not_run: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def blocks(*languages: str, page: str = "") -> list[Block]:
    """Return the blocks of one page or all, in some languages or all."""
    names = [page] if page else pages()
    return [
        block for name in names for block in _blocks(name) if not languages or block.language in languages
    ]


def fences(page: str) -> int:
    """Count the blocks of a page by their fences alone."""
    lines = (ROOT / page).read_text().splitlines()
    return sum(line.lstrip().startswith("```") for line in lines) // 2


def _blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text()
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(page, line, found["language"], found["text"], found["why"] or "")
