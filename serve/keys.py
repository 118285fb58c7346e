"""Who is asking: the API key, the page's session, and the pseudonym under which a user's votes are kept.

One key is made at the first start and written to a file that only its owner can read; the server itself keeps a hash. Secrets for
tokens, sessions and pseudonyms lie beside it.
"""

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass
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
    """Return the secrets of a home folder, making key and secrets at the first start; raises `ConfigError` if they are damaged.

    Where the file `api-key` alone was removed, a new key is made: the old one is refused from then on, people's votes stay theirs.
    """
    file, key_file = home / "secrets.json", home / "api-key"
    try:
        known = Secrets(**json.loads(file.read_text())) if file.exists() else None
        return known if known and key_file.exists() else _with_new_key(known, file, key_file)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} is damaged: remove it and api-key beside it, and a new key is made at the next start") from error
    except OSError as error:
        raise ConfigError(f"cannot keep the API key in {home}: {error.strerror}") from error


def _with_new_key(known: Secrets | None, file: Path, key_file: Path) -> Secrets:
    file.parent.mkdir(parents=True, exist_ok=True)
    public = secrets.token_hex(4)
    key = f"sk-attune-{public}-{secrets.token_urlsafe(32)}"
    token, pseudonym = (known.token_secret, known.pseudonym_secret) if known else (secrets.token_hex(32), secrets.token_hex(32))
    made = Secrets(public, _hash(key), token, pseudonym)
    _write_private(file, json.dumps(asdict(made)))
    _write_private(key_file, key + "\n")  # last: its presence says that both are there
    return made


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
