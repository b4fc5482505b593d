"""Artifacts as files of a folder: one file for each hash, in subfolders named by its first two digits."""

import errno
import os
import re
import uuid
from pathlib import Path

from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.identity import PREFIX

# Errors that say nothing about the file: too many open files, no memory, a file system that went away.
_OF_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT)

_HASH = re.compile(r"blake3:[0-9a-f]{64}")


class FolderArtifacts:
    """Writes a file under another name first, so that a crash leaves no half-written artifact.

    A file that has other bytes than its name says is replaced when they are stored again.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def put(self, hash: str, data: bytes) -> None:
        """Store bytes under their hash. Raises QmtlError (E_ARTIFACT_HASH), and OSError of the disk."""
        path = self._path(hash)
        found = content_hash(data)
        if found != hash:
            raise QmtlError(
                "E_ARTIFACT_HASH",
                f"the bytes hash to {found}, not to {hash}",
                "send the bytes that were hashed",
                expected=hash,
                received=found,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _holds(path, data):
            _write(path, data)
        # The names as well: whoever removes rows because of this file relies on it after a power cut.
        for folder in (path.parent, self._root):
            _sync_folder(folder)

    def get(self, hash: str) -> bytes:
        """Read an artifact.

        Raises QmtlError: E_ARTIFACT_HASH where the hash is malformed, E_ARTIFACT_UNKNOWN; E_ARTIFACT_DAMAGED
        where this file has other bytes or cannot be read; E_UNAVAILABLE where the folder cannot be.
        """
        path = self._path(hash)
        try:
            data = path.read_bytes()
        except OSError as error:
            self._require_folder(error)
            if not isinstance(error, FileNotFoundError):
                raise QmtlError(
                    "E_ARTIFACT_DAMAGED",
                    f"artifact {hash} can't be read: {error.strerror}",
                    "mend its file, or restore it from a backup",
                ) from error
            raise QmtlError(
                "E_ARTIFACT_UNKNOWN",
                f"there is no artifact {hash}",
                "upload it first with PUT /artifacts/{hash}",
            ) from error
        if content_hash(data) != hash:
            raise QmtlError("E_ARTIFACT_DAMAGED", f"artifact {hash} is damaged", "restore it from a backup")
        return data

    def _require_folder(self, error: OSError) -> None:
        """Check that the fault is one file's and not the folder's or this process's. Raises QmtlError."""
        try:
            os.scandir(self._root).close()
        except OSError as folder_error:
            error = folder_error
        else:
            if error.errno not in _OF_PROCESS:
                return
        raise QmtlError(
            "E_UNAVAILABLE",
            f"the folder {self._root} can't be read: {error.strerror}",
            "mount it, or check home",
        ) from error

    def _path(self, hash: str) -> Path:
        if not _HASH.fullmatch(hash):
            raise QmtlError(
                "E_ARTIFACT_HASH", f"{hash[:80]!r} is not a content hash", "write blake3: and 64 hex digits"
            )
        digest = hash.removeprefix(PREFIX)
        return self._root / digest[:2] / digest


def _holds(path: Path, data: bytes) -> bool:
    """Return whether a file has these bytes."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:  # such as a file that is not there, or a sector that can't be read
        return False


def _write(path: Path, data: bytes) -> None:
    """Write a whole file, or leave nothing."""
    partial = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
