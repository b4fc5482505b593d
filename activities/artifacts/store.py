"""The interface of the artifact store."""

from typing import Protocol


class ArtifactStore(Protocol):
    """Immutable bytes by content hash."""

    def put(self, content_hash: str, data: bytes) -> None:
        """Store bytes under their hash. Idempotent.

        Raises QmtlError: E_ARTIFACT_HASH where the bytes have another hash.
        """

    def get(self, content_hash: str) -> bytes:
        """Read an artifact.

        Raises QmtlError: E_ARTIFACT_HASH where the hash is malformed or the bytes are damaged,
        E_ARTIFACT_UNKNOWN, E_UNAVAILABLE.
        """
