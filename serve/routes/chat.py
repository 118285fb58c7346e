"""`POST /v1/chat/completions`: OpenAI's contract with one extension object, plain and streamed."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from attune.config import Config
from attune.errors import AttuneError, RequestError
from attune.types import EVALUATION, LEARNING, Interaction
from serve import metrics
from serve.access import Known
from serve.answer import Ask
from serve.schemas import OWN, ChatRequest

router = APIRouter()

DONE = "data: [DONE]"
CONVERSATIONS = {"learning": LEARNING, "evaluation": EVALUATION}


@router.post("/v1/chat/completions")
async def chat(body: ChatRequest, request: Request, caller: Known) -> Response:
    """Answer with the best of several candidates."""
    state, started = request.app.state, time.perf_counter()
    config = state.config.serve
    if len(body.messages) > config.max_messages:
        raise RequestError(f"at most {config.max_messages} messages are accepted", param="messages")
    if body.purpose == "learning" and caller.by != "key":
        raise RequestError("Answers to learn from are asked for with the API key.", status=403, param="purpose", code="key_required")
    if body.purpose == "learning" and state.active:
        raise RequestError("People are being answered; learning has to wait.", status=503, code="people_first")
    if state.active >= config.max_concurrent_requests:
        raise RequestError("The server is busy; try again in a moment.", status=503, code="overloaded")
    ask = _ask(body, state, caller.user)
    state.active += 1
    state.proxy.asks[ask.interaction_id] = ask
    reply: Any = None
    try:
        until = time.monotonic() + config.request_timeout_s
        reply = await _unless_gone(request, state.chat.complete(_body(body, ask, state.config)), until)
        if isinstance(reply, dict):
            interaction = state.proxy.answered[ask.interaction_id]
            extension = _extension(interaction, state)
            reply |= {"model": body.model, "attune": extension}
            return JSONResponse(reply, headers=_headers(extension))
        first = await _unless_gone(request, anext(reply), until)
        _raise_if_error(first, state.proxy.failed.get(ask.interaction_id))
        extension = _extension(state.proxy.answered[ask.interaction_id], state)
        stream = _finish(state, ask, started, _with_extension(first, reply, body.model, extension))
        response = StreamingResponse(stream, media_type="text/event-stream", headers=_headers(extension) | {"cache-control": "no-cache"})
        reply = response
        return response
    finally:
        if not isinstance(reply, StreamingResponse):  # a stream's end is its own
            _forget(state, ask, started)


def _ask(body: ChatRequest, state: Any, session_user: str | None) -> Ask:
    candidates = body.candidates or max(state.config.serve.num_candidates, body.n)
    objectives = body.objectives or {}
    if unknown := state.scorer.terms.unknown(list(objectives)):
        raise RequestError(f"objectives: there is no term {unknown[0]!r}; the operator configures them as [[terms]]", param="objectives")
    return Ask(
        interaction_id=f"chatcmpl-{uuid.uuid4().hex}",
        messages=tuple(m.flat() for m in body.messages),
        version=_version(body.model),
        num_candidates=candidates,
        rerank=body.rerank == "full",
        user=state.secrets.pseudonym(body.user or session_user),
        conversation_id=CONVERSATIONS.get(body.purpose, body.conversation_id),
        objectives=objectives,
    )


def _version(model: str) -> int | None:
    name, _, number = model.partition("@")
    if name != "attune" or ("@" in model and not (number.isascii() and number.isdigit() and len(number) <= 18)):
        raise RequestError(f"The model `{model}` does not exist.", status=404, param="model", code="model_not_found")
    return int(number) if number else None


def _body(body: ChatRequest, ask: Ask, config: Config) -> dict[str, Any]:
    data = body.model_dump(exclude_none=True, exclude=OWN)
    data |= {"model": "attune", "messages": list(ask.messages), "request_id": ask.interaction_id.removeprefix("chatcmpl-")}
    context = config.model.max_context_tokens
    for name in ("max_tokens", "max_completion_tokens"):
        if data.get(name, 0) > context:
            raise RequestError(f"{name} is {data[name]}; prompt and reply have {context} tokens together", param=name)
    if "max_tokens" not in data and "max_completion_tokens" not in data:
        data["max_tokens"] = min(config.serve.default_max_tokens, context)
    return data


def _extension(interaction: Interaction, state: Any) -> dict[str, Any]:
    kept = state.recent.get(interaction.id) is not None  # a vote on what could not be recorded would wait for it in vain
    token = state.tokens.for_interaction(interaction.id, interaction.policy_version, interaction.user) if kept else None
    return {
        "interaction_id": interaction.id,
        "policy_version": interaction.policy_version,
        "reward_version": interaction.reward_version,
        "feedback_token": token,
        "choices": [
            {"candidate": index, "propensity": propensity, "scores": dict(interaction.candidates[index].scores)}
            for index, propensity in zip(interaction.shown, interaction.propensities, strict=True)
        ],
    }


def _headers(extension: dict[str, Any]) -> dict[str, str]:
    token = extension["feedback_token"]
    return {"x-attune-feedback-token": token} if token else {}


async def _with_extension(first: str, rest: AsyncIterator[str], model: str, extension: dict[str, Any]) -> AsyncIterator[str]:
    """Yield the stream's lines with our model name, and the extension in the last chunk before [DONE]."""
    held = first
    async for line in rest:
        if line.startswith(DONE):
            yield _edited(held, {"model": model, "attune": extension})
        else:
            yield _edited(held, {"model": model})
        held = line
    yield held


def _edited(line: str, extra: dict[str, Any]) -> str:
    data = json.loads(line.removeprefix("data: "))
    return line if "error" in data else f"data: {json.dumps(data | extra)}\n\n"


def _raise_if_error(line: str, ours: AttuneError | None) -> None:
    data = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}
    if "error" in data:
        if ours is not None:
            raise ours
        error = data["error"]
        raise RequestError(str(error.get("message")), status=int(error.get("code") or 500), param=error.get("param"))


async def _finish(state: Any, ask: Ask, started: float, lines: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for line in lines:
            yield line
    finally:
        _forget(state, ask, started)


def _forget(state: Any, ask: Ask, started: float) -> None:
    state.active -= 1
    if ask.interaction_id in state.proxy.answered:  # refusals are quick, and would make an outage look fast
        metrics.REQUEST_SECONDS.observe(time.perf_counter() - started)
    state.proxy.forget(ask.interaction_id)


async def _unless_gone(request: Request, work: Any, until: float) -> Any:
    """Return the result of `work`, or cancel it (and with it the engine's request) if the client hangs up or its time is up."""
    task: asyncio.Task[Any] = asyncio.ensure_future(work)
    watch = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED, timeout=max(0.0, until - time.monotonic()))
        if task.done():
            return task.result()
        if watch.done():
            raise RequestError("The client closed the connection.", status=499, code="client_closed_request")
        raise RequestError("The reply took too long.", status=504, code="timeout")
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
