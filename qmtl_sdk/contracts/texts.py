"""Texts of people and of other programs that end in terminals, logs and pages.

A sign counts as printable where Unicode says so: no control character, no escape sequence of a terminal, no
mark that changes the direction of what follows it, no half of a surrogate pair. A name with any other sign is
refused where it comes in (`PlainLine`). A report of a fault is accepted, with `�` for such signs (`Report`),
since refusing it would lose it. Whatever is printed passes `printable` once more.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

_SHOWN = 40
"""Characters of a refused text that its error shows."""

_REPLACEMENT = "\ufffd"
"""What stands for a sign that is not printable: Unicode's replacement character."""


def printable(text: str, length: int | None = None, keep: str = "") -> str:
    """Return a text with `�` for every sign that is not printable, cut to `length` characters.

    It never grows longer, so what fitted a limit fits it still. `keep`: signs to leave as they are, such as
    the line feeds of a text of several lines.
    """
    text = text[:length]
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in keep else _REPLACEMENT for sign in text)


def _require_printable(text: str) -> str:
    if not text.isprintable():
        sign = next(sign for sign in text if not sign.isprintable())
        raise ValueError(
            f"{printable(text, _SHOWN)!r} contains U+{ord(sign):04X}, not printable: write plain text"
        )
    return text


PlainLine = Annotated[str, AfterValidator(_require_printable)]
"""One line of printable text: a name, a reason, a symbol, a tag, a host. Anything else is refused."""

Report = Annotated[str, AfterValidator(printable)]
"""One line that a program reports: `�` stands for what is not printable."""

Message = Annotated[str, AfterValidator(lambda text: printable(text, keep="\n"))]
"""Lines that a program reports, such as those of an exception."""

Identifier = Annotated[PlainLine, Field(max_length=128)]
"""The id of a node, strategy, session or the like, as a client sends it."""

Count = Annotated[int, Field(ge=0, lt=2**53)]
"""A count that a client reports: below the integers that are exact in every JSON parser."""
