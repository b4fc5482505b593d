"""What the services need of the artifacts."""

from typing import Protocol


class ArtifactStore(Protocol):
    def put(self, content_hash: str, data: bytes) -> None:
        """Keep the bytes under their hash. Raises QmtlError (E_ARTIFACT_HASH) where they are not its. Doing it again changes nothing."""

    def get(self, content_hash: str) -> bytes:
        """Raises QmtlError (E_ARTIFACT_UNKNOWN)."""
