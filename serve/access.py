"""Dependencies that let a request in: by API key, by the page's session on loopback, or (for votes) by a signed token."""

import secrets
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response

from attune.errors import RequestError
from attune.hosts import is_loopback

COOKIE = "attune_session"
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""What a reverse proxy adds, if it adds anything: behind one everybody's address is this machine's."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request: `key` (the whole API) or `session` (a browser on this machine), with its default user."""

    by: str
    user: str | None


def caller_or_none(request: Request) -> Caller | None:
    """Return who is calling, None if the request brings no credentials; raises a 401 for wrong ones."""
    scheme, _, presented = request.headers.get("authorization", "").partition(" ")
    if scheme:
        if scheme.lower() == "bearer" and request.app.state.secrets.accepts(presented.strip()):
            return Caller("key", None)
        raise RequestError("Incorrect API key provided. `attune up` prints the key of this server.", status=401, code="invalid_api_key")
    cookie = request.cookies.get(COOKIE)
    name = request.app.state.tokens.session(cookie) if cookie and is_local(request) else None
    if name is None:
        return None
    if request.method not in ("GET", "HEAD") and not _same_origin(request):
        raise RequestError("This request does not come from the page itself.", status=403, code="wrong_origin")
    return Caller("session", name)


def caller(request: Request) -> Caller:
    """Return who is calling; raises a 401 unless a key or session is there."""
    found = caller_or_none(request)
    if found is None:
        raise RequestError(
            "You didn't provide an API key. Send it as `Authorization: Bearer sk-attune-...`.", status=401, code="missing_api_key"
        )
    return found


def operator(request: Request) -> Caller:
    """Return who is calling; raises a 401 without a key or session, and a 403 for the page: moving versions takes the key."""
    found = caller(request)
    if found.by != "key":
        raise RequestError("This needs the API key.", status=403, code="key_required")
    return found


def is_local(request: Request) -> bool:
    """Whether both ends are this machine: the peer's address and the host name that the browser asked for (DNS rebinding)."""
    if not request.app.state.config.serve.local_sessions or any(name in request.headers for name in FORWARDED):
        return False
    return is_loopback(request.client.host if request.client else "") and is_loopback(request.url.hostname or "")


def open_session(request: Request, response: Response) -> None:
    """Give a browser on this machine a session of its own, unless it has one."""
    cookie = request.cookies.get(COOKIE)
    if is_local(request) and not (cookie and request.app.state.tokens.session(cookie)):
        value = request.app.state.tokens.new_session("page-" + secrets.token_hex(8))
        response.set_cookie(COOKIE, value, httponly=True, samesite="strict", max_age=30 * 24 * 3600)


def _same_origin(request: Request) -> bool:
    return request.headers.get("origin") == f"{request.url.scheme}://{request.headers.get('host')}"


Known = Annotated[Caller, Depends(caller)]
Operator = Annotated[Caller, Depends(operator)]
Anyone = Annotated[Caller | None, Depends(caller_or_none)]
