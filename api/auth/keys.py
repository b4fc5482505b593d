"""The signing keys of an installation: a file of Ed25519 keys that its Gateways share.

Only the file's owner can read it. The newest key signs. An older key is accepted until its `retires_at`, so
that a rotation invalidates no token at once.
"""

import base64
import json
import os
import threading
import time
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

LOOK_S = 0.05
"""Seconds after which the file is looked at again: requests of the meantime cost no access to it."""


class SigningKey(Model):
    """An Ed25519 key. `secret`: the 32 bytes of the private key, base64url."""

    kid: str
    secret: str
    created_at: UtcTime
    retires_at: UtcTime | None = None

    @property
    def private(self) -> Ed25519PrivateKey:
        """The key that signs."""
        return Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(self.secret))

    @property
    def public(self) -> Ed25519PublicKey:
        """The key that verifies."""
        return self.private.public_key()

    @property
    def accepted(self) -> bool:
        """Whether its signatures are accepted now."""
        return self.retires_at is None or self.retires_at > datetime.now(UTC)

    def jwk(self) -> dict[str, Any]:
        """Return the public key as a JSON Web Key (RFC 8037). (Any: JSON.)"""
        raw = base64.urlsafe_b64encode(self.public.public_bytes_raw()).rstrip(b"=").decode()
        return {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": raw}


class KeyRing:
    """The keys of a file, which is created with one key where it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._version: tuple[int, int] | None = None
        """Modification time (ns) and inode of the file as last read."""
        self._keys: list[SigningKey] = []
        self._looked_at = float("-inf")
        with self._exclusive():
            if not path.exists():
                self._write([_new_key()])

    def signing(self) -> SigningKey:
        """Return the key that signs."""
        return self._current()[-1]

    def accepted(self) -> list[SigningKey]:
        """Return the keys whose signatures are accepted now."""
        return [key for key in self._current() if key.accepted]

    def find(self, kid: str) -> SigningKey | None:
        """Return the accepted key of an id; None where there is none."""
        found = self._find(kid)
        if found is None:  # another process may have made it just now
            self._looked_at = float("-inf")
            found = self._find(kid)
        return found

    def _find(self, kid: str) -> SigningKey | None:
        return next((key for key in self._current() if key.kid == kid and key.accepted), None)

    def rotate(self, overlap: timedelta) -> SigningKey:
        """Sign with a new key from now on; accept the others for `overlap` at most."""
        with self._exclusive():
            retires = datetime.now(UTC) + overlap
            older = [
                key
                if key.retires_at is not None and key.retires_at < retires
                else key.model_copy(update={"retires_at": retires})
                for key in self.accepted()
            ]
            created = _new_key()
            self._write([*older, created])
            return created

    def _current(self) -> list[SigningKey]:
        """Return the keys; read the file again where a process wrote it. Raises QmtlError: E_CONFIG."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at < LOOK_S:
                return self._keys
            try:
                stat = self._path.stat()
                version = (stat.st_mtime_ns, stat.st_ino)
                if self._version != version:
                    self._keys = [
                        SigningKey.model_validate(item) for item in json.loads(self._path.read_text())
                    ]
                    self._version = version
                self._looked_at = now
            except (OSError, ValueError) as error:
                raise QmtlError(
                    "E_CONFIG",
                    f"the signing keys can't be read: {error}",
                    f"restore {self._path.name}; without it a new key is created, and every token is invalid",
                ) from error
            return self._keys

    def _write(self, keys: list[SigningKey]) -> None:
        """Replace the file in one step, so that no process reads half of it."""
        aside = self._path.with_name(f"{self._path.name}.new")
        write_secret(aside, json.dumps([key.json_dict() for key in keys], indent=1))
        os.replace(aside, self._path)
        self._looked_at = float("-inf")

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the lock that all processes of the installation take before they write."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(f"{self._path.name}.lock").open("w") as file:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE)
            yield


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _new_key() -> SigningKey:
    secret = base64.urlsafe_b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()
    return SigningKey(kid=uuid.uuid4().hex[:16], secret=secret, created_at=datetime.now(UTC))
