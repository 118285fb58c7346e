"""`/v1/feedback`: take a vote, show its receipt, take it back. A vote is acknowledged only when it is durable."""

import asyncio
import hashlib
import json
import time
from contextlib import suppress
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse

from attune.errors import RequestError, Unavailable
from attune.events import candidates_named, encode, new_event_id
from attune.types import Feedback, Kind, Withdrawal
from feedback.views import StoredFeedback
from serve import metrics
from serve.access import Anyone, Caller, Known
from serve.pending import STEP_S
from serve.receipts import receipt
from serve.recent import Summary
from serve.schemas import FeedbackRequest

log = structlog.get_logger()
router = APIRouter()


@router.post("/v1/feedback", status_code=202)
async def give(
    body: FeedbackRequest, request: Request, caller: Anyone, idempotency_key: Annotated[str | None, Header(max_length=200)] = None
) -> JSONResponse:
    """Store one vote durably, then acknowledge it."""
    state = request.app.state
    user = _user(body, state, caller)
    summary = await _summary(state, body)
    if summary is not None:
        _check_against(body, summary)
        user = user or summary.user
    ident = feedback_id(body.interaction_id, user, body.kind, body.aspect, body.choice)
    event_id, received_at = new_event_id(), state.pending.after(ident, time.time())
    if idempotency_key is not None:
        event_id, received_at = await _event(state, ident, idempotency_key, body, user)
    feedback = Feedback(
        id=ident,
        event_id=event_id,
        interaction_id=body.interaction_id,
        kind=body.kind,
        value=body.value,
        choice=body.choice,
        received_at=received_at,
        aspect=body.aspect,
        user=user,
    )
    await state.outbox.put(encode(feedback))
    state.pending.add(feedback)
    metrics.FEEDBACK.labels(body.kind).inc()
    return JSONResponse({"id": feedback.id, "status": "received"}, status_code=202)


@router.get("/v1/feedback/{ident}")
async def show(ident: str, request: Request, caller: Known) -> JSONResponse:
    """Show how far a vote has come."""
    state = request.app.state
    held, stored = await _known(state, ident)
    found = await asyncio.to_thread(receipt, ident, stored, held, state.registry, state.slots)  # it may read many manifests
    if found is None:
        raise RequestError(f"There is no feedback `{ident}`.", status=404, param="id", code="feedback_not_found")
    return JSONResponse(found)


@router.delete("/v1/feedback/{ident}", status_code=202)
async def withdraw(ident: str, request: Request, caller: Known) -> JSONResponse:
    """Take a vote back: what is trained from now on leaves it out."""
    state = request.app.state
    held, stored = await _known(state, ident)
    feedback = held or (stored.feedback if stored else None)
    if feedback is None:
        raise RequestError(f"There is no feedback `{ident}`.", status=404, param="id", code="feedback_not_found")
    now = max(time.time(), feedback.received_at + STEP_S)
    withdrawal = Withdrawal(new_event_id(), ident, feedback.interaction_id, now)
    await state.outbox.put(encode(withdrawal))
    state.pending.withdraw(ident, now)
    metrics.WITHDRAWALS.inc()
    return JSONResponse({"id": ident, "status": "withdrawn"}, status_code=202)


def feedback_id(interaction_id: str, user: str | None, kind: Kind, aspect: str | None, choice: int) -> str:
    """Return the identity of a vote: whoever says the same kind of thing of the same answer again changes the first."""
    place = 0 if kind in (Kind.COMPARISON, Kind.RANKING) else choice
    text = json.dumps([interaction_id, user or "", kind, aspect or "", place])
    return "fb-" + hashlib.sha256(text.encode()).hexdigest()[:24]


def _user(body: FeedbackRequest, state: Any, caller: Caller | None) -> str | None:
    if caller is None and not body.token:
        raise RequestError("Send an API key, or the feedback token that came with the reply.", status=401, code="missing_credentials")
    asked = str(state.tokens.check(body.token, body.interaction_id) or "") or None if body.token else None
    if caller is None:
        return asked  # never the name that the body claims
    return state.secrets.pseudonym(body.user or caller.user) or asked


async def _summary(state: Any, body: FeedbackRequest) -> Summary | None:
    """Return what the vote has to fit; None if only the token (checked before) says that there is such an interaction."""
    known = state.recent.get(body.interaction_id)
    if known is not None:
        return known  # type: ignore[no-any-return]
    try:
        row = await asyncio.to_thread(state.views.interaction, body.interaction_id)
    except Unavailable:
        if not body.token:
            raise
        row = None
    if row is not None:
        return Summary(tuple(row.shown), row.num_candidates, row.user, row.policy_version)
    if not body.token:
        raise RequestError(
            f"There is no interaction `{body.interaction_id}`.", status=404, param="interaction_id", code="interaction_not_found"
        )
    metrics.UNCHECKED.inc()
    log.warning("vote_taken_on_its_token", interaction_id=body.interaction_id)
    return None


async def _known(state: Any, ident: str) -> tuple[Feedback | None, StoredFeedback | None]:
    """Return what is known of a vote: as this server holds it, or as it waits for its interaction; and as the store has it.

    While the store is away, what this server holds has to do.
    """
    held = state.pending.get(ident)
    try:
        stored = await asyncio.to_thread(state.views.receipt, ident)
        if held is None and stored is None:
            held = await asyncio.to_thread(state.views.orphan, ident)
    except Unavailable:
        if held is None:
            raise
        stored = None
    return held, stored


def _check_against(body: FeedbackRequest, summary: Summary) -> None:
    named = candidates_named(body.kind, body.value)
    if any(index >= summary.num_candidates for index in named):
        raise RequestError(f"this interaction has candidates 0 to {summary.num_candidates - 1}", param="value")
    if not named and body.choice >= len(summary.shown):
        raise RequestError(f"this reply has choices 0 to {len(summary.shown) - 1}", param="choice")


async def _event(state: Any, ident: str, key: str, body: FeedbackRequest, user: str | None) -> tuple[str, float]:
    """Return the same event id and time for a repeated request; a vote that was withdrawn since is no repetition."""
    content = json.dumps([body.interaction_id, user, body.kind, body.value, body.choice, body.aspect], sort_keys=True)
    withdrawn = state.pending.withdrawn(ident)
    with suppress(Unavailable):  # the store is away: the memory of this server has to do
        stored = await asyncio.to_thread(state.views.receipt, ident)
        withdrawn = withdrawn or (stored is not None and not stored.in_force and state.pending.get(ident) is None)
    return state.pending.event(f"{state.secrets.key_id}:{key}", content, state.pending.after(ident, time.time()), fresh=withdrawn)  # type: ignore[no-any-return]
