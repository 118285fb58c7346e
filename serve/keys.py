"""Who is asking: the API key, the page's session, and the pseudonym under which a user's votes are kept.

One key is made at the first start and written to a file that only its owner can read; the server itself keeps a hash. Secrets for
tokens, sessions and pseudonyms lie beside it.
"""

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from attune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the server knows: the key's public id and hash, and secrets of its own."""

    key_id: str
    key_hash: str
    token_secret: str
    pseudonym_secret: str

    def accepts(self, presented: str) -> bool:
        """Whether this is the API key; takes the same time whatever is presented."""
        return hmac.compare_digest(_hash(presented), self.key_hash)

    def pseudonym(self, user: str | None) -> str | None:
        """Return the keyed hash under which a user's name is stored; the name itself is kept nowhere."""
        if not user:
            return None
        return "u-" + hmac.new(self.pseudonym_secret.encode(), user.encode(), hashlib.sha256).hexdigest()[:24]


def load(home: Path) -> Secrets:
    """Return the secrets of a home folder, making key and secrets at the first start; raises `ConfigError` if they are damaged."""
    file = home / "secrets.json"
    try:
        if not file.exists():
            _create(home)
        return Secrets(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} is damaged: remove it and api-key beside it, and a new key is made at the next start") from error
    except OSError as error:
        raise ConfigError(f"cannot keep the API key in {home}: {error.strerror}") from error


def _create(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    public, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    key = f"sk-attune-{public}-{secret}"
    _write_private(home / "api-key", key + "\n")
    kept = {"key_id": public, "key_hash": _hash(key), "token_secret": secrets.token_hex(32), "pseudonym_secret": secrets.token_hex(32)}
    _write_private(home / "secrets.json", json.dumps(kept))  # last: its presence says that both are there


def _write_private(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
