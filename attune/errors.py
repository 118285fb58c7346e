"""Every error that crosses a room, sorted by what its catcher does.

A class exists here only because someone catches it by name.
"""

from typing import Any


class AttuneError(Exception):
    """The root: whatever Attune raises on purpose."""


class ConfigError(AttuneError, ValueError):
    """The operator has to change something before a program can start: exit 2 with one line that says what."""


class RequestError(AttuneError):
    """A client's mistake, answered with its HTTP `status` and OpenAI's four error fields."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error body: message, type, param and code are always there."""
        kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 503: "service_unavailable"}
        name = kind.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": name, "param": self.param, "code": self.code}}


class Unavailable(AttuneError):
    """A part that we need is away for now: retry with back-off; 503 at the HTTP border."""


class InvalidRecord(AttuneError, ValueError):
    """One event cannot be read: it goes to the dead letters with this reason, and the next one is read."""


class TooManyDeadLetters(AttuneError):
    """So many bad events in a row that the fault is probably ours: the consumer stops instead of discarding them."""


class RegistryError(AttuneError):
    """A version or promotion record is missing, damaged or not allowed."""


class IllegalMove(RegistryError):
    """The state table has no such move (409 at the HTTP border)."""


class Conflict(RegistryError):
    """Somebody else wrote the promotion log first: read it again and decide anew (409 at the HTTP border)."""


class AdapterError(AttuneError):
    """A published version must not be served: the old one goes on, and the reason is reported."""


class Diverged(AttuneError):
    """An update is not to be trusted (NaN, KL or ESS out of bounds): discard it, report, back off."""
