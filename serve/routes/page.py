"""The page at `/`: static files of this package, a strict content policy, and a session for browsers on this machine."""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from attune.errors import RequestError
from serve.access import open_session

router = APIRouter()

FOLDER = Path(__file__).parent.parent / "page"
FILES = {p.name: p for p in FOLDER.glob("*") if p.suffix in (".html", ".css", ".js", ".svg")}
POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"


@router.get("/")
async def page(request: Request) -> Response:
    """Show the page, and open a session if the browser runs on this machine."""
    response = _file("index.html")
    open_session(request, response)
    return response


@router.get("/page/{name}")
async def part(name: str) -> Response:
    """Serve one of the page's files."""
    return _file(name)


def _file(name: str) -> Response:
    if name not in FILES:
        raise RequestError(f"There is no page file `{name}`.", status=404)
    headers = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
    return FileResponse(FILES[name], headers=headers)
