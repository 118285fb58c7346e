"""Health for machines and status for people: `/healthz`, `/readyz`, `/metrics`, `/v1/attune/status`."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from attune import halt
from attune.errors import RegistryError
from attune.registry import Registry
from attune.types import ArtifactKind
from serve.access import Known

router = APIRouter()


@router.get("/healthz")
async def healthz(request: Request) -> JSONResponse:
    """Say whether this process can still do its work."""
    dead = request.app.state.swapper.hopeless
    return JSONResponse({"status": "engine died" if dead else "ok"}, status_code=503 if dead else 200)


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """Say whether requests are answered, and by which versions."""
    state = request.app.state
    ready = not (state.engine.dead or state.slots.suspended)
    body = {"status": "ready" if ready else "restarting the engine"}
    versions = {"policy_version": state.slots.live, "reward_version": state.scorer.reward.version}
    return JSONResponse(body | versions, status_code=200 if ready else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Expose every metric in Prometheus' text form."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/attune/status")
async def status(request: Request, caller: Known) -> dict[str, Any]:
    """Show what is live, what was refused, and how far the votes have come."""
    state = request.app.state
    counts = await asyncio.to_thread(state.views.counts)
    on_their_way = state.pending.since(await asyncio.to_thread(state.views.newest_vote_at))
    learned = await asyncio.to_thread(_learned, state)
    halted = await asyncio.to_thread(halt.read, state.config.home)
    discarded = await asyncio.to_thread(halt.last_discarded, state.config.home, state.slots.live)
    return {
        "base_model": state.config.model_identity,
        "policy_version": state.slots.live,
        "reward_version": state.scorer.reward.version,
        "votes": {"received": counts.feedback + counts.orphans + on_their_way, "stored": counts.feedback, "learned": learned},
        "learner_stopped": list(halted.reasons) if halted else [],
        "update_discarded": discarded,
        "store": {"interactions": counts.interactions, "orphans": counts.orphans, "dead_letters": counts.dead_letters},
        "versions": await asyncio.to_thread(_versions, state),
        "refused": [{"kind": k, "number": n, "reason": why} for (k, n), why in state.swapper.refused.items()],
    }


def _learned(state: Any) -> int:
    """Return how many votes the policy that answers now has learned from."""
    live = state.slots.live
    return int(state.views.learned(state.registry.version("policy", live).trained_through)) if live else 0


def _versions(state: Any) -> list[dict[str, Any]]:
    registry: Registry = state.registry
    kinds: tuple[tuple[ArtifactKind, int], ...] = (("policy", 20), ("reward", 1))
    return [_version(state, kind, n) for kind, newest in kinds for n in reversed(registry.numbers(kind)[-newest:])]


def _version(state: Any, kind: ArtifactKind, number: int) -> dict[str, Any]:
    data = {
        "kind": kind,
        "number": number,
        "state": state.registry.state(kind, number),
        "live_since": state.registry.live_since(kind, number),
        "refused": state.swapper.refused.get((kind, number)),
    }
    try:
        version = state.registry.version(kind, number)
    except RegistryError as error:  # one damaged manifest must not hide all the others
        return data | {"votes": 0, "report": {}, "refused": str(error)}
    report = {key: value for key, value in version.report.items() if isinstance(value, int | float | str | bool)}
    return data | {"votes": len(version.events), "report": report}
