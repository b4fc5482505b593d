"""The folders that data files are read from.

In an author's process any file may be read: it is the author's. A service reads what others name, so it calls
`restrict` when it starts: then files lie under one of its roots, and errors name places and no content.
"""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.worlds import SAMPLE

_roots: tuple[Path, ...] | None = None


def restrict(folders: Iterable[Path] | None) -> None:
    """Read files under these folders only from now on, in the whole process; None: any file."""
    global _roots
    _roots = None if folders is None else tuple(folder.resolve() for folder in folders)


def restricted() -> bool:
    """Return whether files are read for others, so that errors show no content."""
    return _roots is not None


def shown(content: object) -> str:
    """Return the content of a file as an error may show it."""
    return repr(content) if _roots is None else "a value"


def shown_names(names: Iterable[object]) -> str:
    """Return names from a file, such as columns, as an error may show them."""
    return ", ".join(map(str, names)) if _roots is None else "not shown"


def resolved(path: str) -> Path:
    """Return the file of a path. `sample:NAME` is one that QMTL ships.

    Raises QmtlError: E_DATA_NOT_FOUND where it is no sample; E_DATA_FORBIDDEN where it lies outside of the
    roots, its symbolic links resolved.
    """
    if path.startswith(SAMPLE):
        folder = Path(str(files("qmtl_sdk.samples") / "prices")).resolve()
        file = (folder / path.removeprefix(SAMPLE)).resolve()
        if not file.is_relative_to(folder):
            raise QmtlError(
                "E_DATA_NOT_FOUND", f"there is no sample {path[:200]}", "name one that QMTL ships"
            )
        return file
    if _roots is None:
        return Path(path)
    file = Path(path).resolve()
    if not any(file.is_relative_to(root) for root in _roots):
        raise QmtlError(
            "E_DATA_FORBIDDEN",
            f"{path[:200]} lies outside of the folders that data is read from",
            "move it into one of data.roots, or let an operator add its folder there",
        )
    return file
