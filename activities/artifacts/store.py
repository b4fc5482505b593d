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

        Raises QmtlError: E_ARTIFACT_HASH where the hash is malformed, E_ARTIFACT_UNKNOWN; E_ARTIFACT_DAMAGED
        where this artifact is damaged or cannot be read; E_UNAVAILABLE where the store cannot be read.
        """
