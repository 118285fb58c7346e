"""`GET /v1/models`: `attune` and every version that is loaded."""

from typing import Any

from fastapi import APIRouter, Request

from attune.errors import RequestError
from serve.access import Known

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request, caller: Known) -> dict[str, Any]:
    """List the models that can be asked for."""
    state = request.app.state
    names = ["attune", *(f"attune@{n}" for n in state.slots.numbers)]
    return {"object": "list", "data": [_card(name, state.started_at) for name in names]}


@router.get("/v1/models/{name}")
async def model(name: str, request: Request, caller: Known) -> dict[str, Any]:
    """Describe one model."""
    state = request.app.state
    if name != "attune" and name not in {f"attune@{n}" for n in state.slots.numbers}:
        raise RequestError(f"The model `{name}` does not exist.", status=404, param="model", code="model_not_found")
    return _card(name, state.started_at)


def _card(name: str, created: float) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created), "owned_by": "attune"}
