"""The signing keys of an installation: a file of Ed25519 keys, readable by its owner alone, that its Gateways share.

The newest key signs. An older one is still believed until `retires_at`, so that a rotation takes no token away; after that its tokens are refused.
"""

import base64
import json
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import portalocker
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.worlds import UtcTime


class SigningKey(Model):
    """`secret`: the 32 bytes of an Ed25519 private key, base64url."""

    kid: str
    secret: str
    created_at: UtcTime
    retires_at: UtcTime | None = None

    @property
    def private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(self.secret))

    @property
    def public(self) -> Ed25519PublicKey:
        return self.private.public_key()

    def jwk(self) -> dict[str, Any]:
        """RFC 8037."""
        raw = base64.urlsafe_b64encode(self.public.public_bytes_raw()).rstrip(b"=").decode()
        return {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": raw}


class KeyRing:
    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._keys: list[SigningKey] = []
        with self._alone():
            if not path.exists():
                self._write([_new()])

    def signing(self) -> SigningKey:
        return self._current()[-1]

    def believed(self) -> list[SigningKey]:
        """The keys whose signatures count now."""
        now = datetime.now(UTC)
        return [key for key in self._current() if key.retires_at is None or key.retires_at > now]

    def find(self, kid: str) -> SigningKey | None:
        return next((key for key in self.believed() if key.kid == kid), None)

    def rotate(self, overlap: timedelta) -> SigningKey:
        """A new key signs from now on; the others are believed for `overlap`."""
        with self._alone():
            retires = datetime.now(UTC) + overlap
            kept = [
                key
                if key.retires_at is not None and key.retires_at < retires
                else key.model_copy(update={"retires_at": retires})
                for key in self.believed()
            ]
            fresh = _new()
            self._write([*kept, fresh])
            return fresh

    def _current(self) -> list[SigningKey]:
        """The file's keys, read again when another process has written it."""
        with self._lock:
            try:
                stat = self._path.stat()
                if self._seen != (stat.st_mtime_ns, stat.st_ino):
                    self._keys = [
                        SigningKey.model_validate(item) for item in json.loads(self._path.read_text())
                    ]
                    self._seen = (stat.st_mtime_ns, stat.st_ino)
            except (OSError, ValueError) as error:
                raise QmtlError(
                    "E_CONFIG",
                    f"the signing keys can't be read: {error}",
                    f"mend {self._path.name}; without it a new key is made, and every token is void",
                ) from error
            return self._keys

    def _write(self, keys: list[SigningKey]) -> None:
        aside = self._path.with_name(f"{self._path.name}.new")
        write_secret(aside, json.dumps([key.json_dict() for key in keys], indent=1))
        os.replace(aside, self._path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(f"{self._path.name}.lock").open("w") as file:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE)
            yield


def write_secret(path: Path, text: str) -> None:
    """A file that its owner alone can read, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _new() -> SigningKey:
    secret = base64.urlsafe_b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()
    return SigningKey(kid=uuid.uuid4().hex[:16], secret=secret, created_at=datetime.now(UTC))
