"""`/v1/attune/versions`: the operator's hand on the promotion log. What the state table does not allow is answered 409."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from attune.errors import RequestError
from attune.registry import Registry
from attune.types import ArtifactKind
from serve.access import Operator

router = APIRouter(prefix="/v1/attune/versions")


@router.post("/{kind}/{number}/promote")
async def promote(kind: ArtifactKind, number: int, request: Request, caller: Operator) -> dict[str, Any]:
    """Make a published version the champion; it serves once this server has proved it."""
    registry: Registry = request.app.state.registry

    def move() -> int:
        if number not in (0, *registry.numbers(kind)):
            raise RequestError(f"There is no {kind} version {number}.", status=404, param="number", code="version_not_found")
        registry.promote(kind, number, by="operator", reason="HTTP")
        return registry.champion(kind)

    return {"kind": kind, "champion": await asyncio.to_thread(move)}


@router.post("/{kind}/rollback")
async def roll_back(kind: ArtifactKind, request: Request, caller: Operator) -> dict[str, Any]:
    """Take the champion out of service; the one before it serves again."""
    registry: Registry = request.app.state.registry
    champion = await asyncio.to_thread(lambda: registry.roll_back(kind, by="operator", reason="HTTP"))
    return {"kind": kind, "champion": champion}
