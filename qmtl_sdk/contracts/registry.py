"""Extension points: data sources, brokers, buses and metrics are found by name.

A registry knows the built-in extensions and those that installed packages offer as Python entry points.
Nothing is imported before it is used.
"""

import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from qmtl_sdk.contracts.errors import QmtlError, nearest

OptionName = Annotated[str, Field(min_length=1, max_length=64)]
OptionValue = (
    bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | FiniteFloat | Annotated[str, Field(max_length=8192)]
)
Options = Annotated[dict[OptionName, OptionValue], Field(max_length=32)]
"""What a configuration or a world passes to an extension of a package."""


class Registry:
    """The extensions of one kind.

    `group` is the entry point group, `kind` the word for people; `built_in` maps names to `module:attribute`;
    `unknown` is the error code of a name that is not known.
    """

    def __init__(
        self, group: str, kind: str, built_in: dict[str, str], unknown: str = "E_EXTENSION_UNKNOWN"
    ) -> None:
        self.group = group
        self.kind = kind
        self._unknown = unknown
        self._built_in = {name: EntryPoint(name, value, group) for name, value in built_in.items()}
        self._points = cache(self._find)
        self._load = cache(self._import)

    def names(self) -> tuple[str, ...]:
        """List the known names: built-in ones first, then those of installed packages."""
        return tuple(self._points())

    def require(self, name: str) -> None:
        """Raises QmtlError: the code `unknown`, with the known names, where there is no such extension."""
        if name not in self._points():
            known = ", ".join(self.names())
            raise QmtlError(
                self._unknown,
                f"there is no {self.kind} {name[:80]!r}{nearest(name, list(self.names()))}",
                f"known: {known}; a package adds one with an entry point of the group {self.group}",
            )

    def load(self, name: str) -> Any:
        """Import an extension. (Any: each kind has its own interface.)

        Raises QmtlError: E_EXTENSION_UNKNOWN; E_EXTENSION where its package cannot be imported.
        """
        self.require(name)
        return self._load(name)

    def is_built_in(self, name: str) -> bool:
        """Whether QMTL itself brings this extension."""
        return name in self._built_in

    def _find(self) -> dict[str, EntryPoint]:
        """Find every extension.

        The first of a name stands, built-in ones before all: a package replaces nothing.
        """
        found = dict(self._built_in)
        for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, _package(point))):
            if point.name in found:
                warnings.warn(
                    f"{_package(point)} offers a {self.kind} {point.name!r}, and there is one already",
                    stacklevel=2,
                )
            else:
                found[point.name] = point
        return found

    def _import(self, name: str) -> Any:
        point = self._points()[name]
        try:
            return point.load()
        except Exception as error:  # a package of others may fail in any way
            raise QmtlError(
                "E_EXTENSION",
                f"the {self.kind} {name!r} of {_package(point)} cannot be loaded: {error!r}"[:500],
                f"mend or uninstall it; it is {point.value}",
            ) from error


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "QMTL"
