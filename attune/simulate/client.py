"""The simulated people's line to the server: the unmodified `openai` client for chats, plain HTTP for votes and receipts.

Rides over a server that is away: it waits and asks again, and counts every request that failed on the way. A vote keeps its
idempotency key over its retries, so that it counts once however often it has to be sent.
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import openai

from attune.errors import RequestError, Unavailable
from attune.hosts import is_here
from attune.simulate.tastes import Answer
from attune.simulate.users import Vote

T = TypeVar("T")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0
_RETRIED = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class Question:
    """One chat request; what is None is left to the server."""

    text: str
    model: str = "attune"
    n: int = 1
    candidates: int | None = None
    rerank: str | None = None
    max_tokens: int = 48
    temperature: float | None = None
    seed: int | None = None
    user: str | None = None
    purpose: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the answers with their candidate indexes, who answered, and the token that a vote needs."""

    interaction_id: str
    answers: tuple[Answer, ...]
    candidates: tuple[int, ...]
    policy_version: int
    reward_version: int
    token: str | None


class Line:
    """Chats, votes and receipts over HTTP; `failures` counts what failed by operation and reason."""

    def __init__(self, url: str, api_key: str, patience_s: float = 120.0, timeout_s: float = 120.0) -> None:
        self.failures: Counter[str] = Counter()
        self.requests = 0
        self._patience_s = patience_s
        url, by_proxy = url.rstrip("/"), not is_here(url)
        chats = openai.DefaultAsyncHttpxClient(trust_env=by_proxy)
        self._openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0, timeout=timeout_s, http_client=chats)
        bearer = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(base_url=url, headers=bearer, timeout=20.0, trust_env=by_proxy)

    async def ask(self, question: Question) -> Reply:
        """Return the server's reply; raises `Unavailable` when patience ends and `RequestError` for a refusal."""

        async def call() -> Reply:
            named = ("candidates", "rerank", "user", "purpose")
            extra = {name: value for name in named if (value := getattr(question, name)) is not None}
            reply = await self._openai.chat.completions.create(
                model=question.model,
                messages=[{"role": "user", "content": question.text}],
                n=question.n,
                max_tokens=question.max_tokens,
                temperature=openai.omit if question.temperature is None else question.temperature,
                seed=openai.omit if question.seed is None else question.seed,
                extra_body=extra,
            )
            return _read(reply)

        return await self._patiently("chat", call)

    async def vote(self, reply: Reply, vote: Vote, user: str | None = None) -> str:
        """Return the feedback id once the server says that the vote is durable; same errors as `ask`."""
        body = {"interaction_id": reply.interaction_id, "kind": str(vote.kind), "value": vote.value, "choice": vote.choice}
        body |= {name: value for name, value in (("token", reply.token), ("user", user)) if value is not None}
        key = {"Idempotency-Key": uuid.uuid4().hex}

        async def call() -> str:
            answer = await self._http.post("/v1/feedback", json=body, headers=key)
            answer.raise_for_status()
            return str(answer.json()["id"])

        return await self._patiently("vote", call)

    async def receipt(self, feedback_id: str) -> dict[str, Any] | None:
        """Return the receipt of a vote, or None where the server knows no such vote."""

        async def call() -> dict[str, Any] | None:
            answer = await self._http.get(f"/v1/feedback/{feedback_id}")
            if answer.status_code == 404:
                return None
            answer.raise_for_status()
            return dict(answer.json())

        return await self._patiently("receipt", call)

    async def greet(self, patience_s: float = 5.0) -> None:
        """Return once the server has shown its status; raises `Unavailable` where none answers, `RequestError` if it refuses the key."""
        clock = asyncio.get_running_loop().time
        until = clock() + patience_s
        while True:
            try:
                answer = await self._http.get("/v1/attune/status")
                if answer.status_code < 500:
                    break
                away = f"it answers {answer.status_code}"
            except httpx.TransportError as error:
                away = str(error) or type(error).__name__
            if clock() >= until:
                raise Unavailable(f"no Attune at {self._http.base_url} ({away}): start it with `attune up`, or name it with --url")
            await asyncio.sleep(0.5)
        if answer.is_error:
            raise RequestError(f"{self._http.base_url} refused the request: {answer.text[:300]}", status=answer.status_code)

    async def status(self) -> dict[str, Any] | None:
        """Return the server's status at once, or None while it is away: this is for show, so it is neither repeated nor counted."""
        try:
            answer = await self._http.get("/v1/attune/status", timeout=5.0)
            answer.raise_for_status()
            return dict(answer.json())
        except (httpx.HTTPError, ValueError):
            return None

    async def close(self) -> None:
        """Close the connections."""
        await self._openai.close()
        await self._http.aclose()

    async def _patiently(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat the call over connection failures and 5xx with growing waits, for `patience_s` at most."""
        clock = asyncio.get_running_loop().time
        until, wait_s = clock() + self._patience_s, _FIRST_WAIT_S
        while True:
            self.requests += 1
            try:
                return await call()
            except (openai.APIStatusError, httpx.HTTPStatusError) as error:
                code = error.response.status_code
                self.failures[f"{operation}: {code}"] += 1
                if code < 500 and code not in _RETRIED:
                    raise RequestError(f"{operation} was refused: {error.response.text[:300]}", status=code) from error
                last: Exception = error
            except (openai.APIConnectionError, httpx.TransportError) as error:
                self.failures[f"{operation}: {type(error).__name__}"] += 1
                last = error
            if clock() >= until:
                raise Unavailable(f"{operation}: no answer for {self._patience_s:.0f} s ({last})") from last
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _read(reply: openai.types.chat.ChatCompletion) -> Reply:
    told = (reply.model_extra or {}).get("attune") or {}
    choices = sorted(reply.choices, key=lambda choice: choice.index)
    named = [entry["candidate"] for entry in told.get("choices", [])]
    return Reply(
        interaction_id=reply.id,
        answers=tuple(Answer(choice.message.content or "", choice.finish_reason == "stop") for choice in choices),
        candidates=tuple(named) if len(named) == len(choices) else tuple(range(len(choices))),
        policy_version=int(told.get("policy_version", 0)),
        reward_version=int(told.get("reward_version", 0)),
        token=told.get("feedback_token"),
    )
