"""Extension points: data sources, brokers, buses and metrics are found by name.

A registry knows the built-in extensions and those that installed packages offer as Python entry points. Nothing is
imported before it is used.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from qmtl_sdk.contracts.errors import QmtlError, nearest


class Registry:
    """The extensions of one kind.

    `group` is the entry point group, `kind` the word for people; `built_in` maps names to `module:attribute`.
    """

    def __init__(self, group: str, kind: str, built_in: dict[str, str]) -> None:
        self.group = group
        self.kind = kind
        self._built_in = {name: EntryPoint(name, value, group) for name, value in built_in.items()}
        self._points = cache(self._find)
        self._load = cache(self._import)

    def names(self) -> tuple[str, ...]:
        """List the known names: built-in ones first, then those of installed packages.

        Raises QmtlError: E_EXTENSION where two packages offer the same name.
        """
        return tuple(self._points())

    def require(self, name: str) -> None:
        """Raises QmtlError: E_EXTENSION_UNKNOWN, with the known names, where there is no such extension."""
        if name not in self._points():
            known = ", ".join(self.names())
            raise QmtlError(
                "E_EXTENSION_UNKNOWN",
                f"there is no {self.kind} {name[:80]!r}{nearest(name, list(self.names()))}",
                f"known: {known}; a package adds one with an entry point of the group {self.group}",
            )

    def load(self, name: str) -> Any:
        """Import an extension. (Any: each kind has its own interface.)

        Raises QmtlError: E_EXTENSION_UNKNOWN; E_EXTENSION where its package cannot be imported.
        """
        self.require(name)
        return self._load(name)

    def _find(self) -> dict[str, EntryPoint]:
        found = dict(self._built_in)
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            if point.name in found:
                raise QmtlError(
                    "E_EXTENSION",
                    f"{_package(point)} offers a {self.kind} {point.name!r}, and there is one already",
                    "rename it, or uninstall that package",
                )
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
