"""Who may act in a session: the actor who opened it, with the secret that its grant returned once.

The store keeps the hash of the secret only. A secret has 256 random bits, so that a plain hash of it can
neither be guessed nor reversed.
"""

import hmac
import secrets
from dataclasses import dataclass, field
from hashlib import sha256

# Random bytes of a secret.
_SECRET_BYTES = 32


@dataclass(frozen=True)
class SessionCaller:
    """Who calls: the subject of the token, and the secret that came with the request. Empty: none came."""

    subject: str
    secret: str = field(default="", repr=False)

    def holds(self, actor: str, secret_hash: str) -> bool:
        """Return whether this is who opened the session, and holds its secret."""
        return self.subject == actor and hmac.compare_digest(hash_secret(self.secret), secret_hash)


def new_secret() -> str:
    """Return a random secret, in characters that a header can carry."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def hash_secret(secret: str) -> str:
    """Return what the store keeps of a secret."""
    return sha256(secret.encode()).hexdigest()
