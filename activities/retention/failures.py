"""What retention could not do: one world or chain keeps its own rows back, and no others."""

import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from threading import Lock

from qmtl_sdk.contracts.errors import QmtlError

# Seconds for which a failure is reported. The upkeep runs hourly, on any of the workers: whoever ran it last
# reports what still fails, and nobody reports for long what another has done since.
_REPORTED_S = 3 * 3600.0


class Failures(Container[str]):
    """The errors of worlds or chains, by name, of one call."""

    def __init__(self) -> None:
        self._found: dict[str, QmtlError] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._found

    @property
    def names(self) -> list[str]:
        """What failed."""
        return list(self._found)

    @contextmanager
    def contained(self, name: str) -> Iterator[None]:
        """Note the error of a world or chain, instead of raising it. Raises QmtlError (E_UNAVAILABLE)."""
        try:
            yield
        except QmtlError as error:
            if error.code == "E_UNAVAILABLE":  # the others would fail as well
                raise
            self._found.setdefault(name, error)
        except (TypeError, ValueError) as error:  # such as a number where the table has texts
            found = QmtlError("E_ARCHIVE", f"rows of {name} can't be read: {error}", "compare with a backup")
            self._found.setdefault(name, found)

    def raise_first(self) -> None:
        """Raise the first error, which says how many others there are. Raises QmtlError."""
        if not self._found:
            return
        first, *others = self._found.values()
        more = f" ({len(others)} more failed: {', '.join(self.names[1:6])})" if others else ""
        raise QmtlError(first.code, first.message + more, first.remedy, **first.details) from first


class FailedKinds:
    """The kinds of rows that failed when this process last archived them, for its heartbeat."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._found: dict[str, tuple[float, str]] = {}

    @contextmanager
    def noting(self, kind: str) -> Iterator[None]:
        """Note the error that the block raises, until the kind succeeds."""
        try:
            yield
        except Exception as error:
            code, text = (error.code, error.message) if isinstance(error, QmtlError) else ("", str(error))
            with self._lock:
                # Who has no token sees what is before the colon (`/health`).
                found = f"retention of {kind} {code or type(error).__name__}: {text}"
                self._found[kind] = (time.monotonic(), found)
            raise
        with self._lock:
            self._found.pop(kind, None)

    def text(self) -> str:
        """Describe the first kind that fails; empty where none does."""
        with self._lock:
            newest = time.monotonic() - _REPORTED_S
            return next((text for at, text in self._found.values() if at > newest), "")
