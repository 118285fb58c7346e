"""What the HTTP border refuses while all is well behind it. The engine is a fake here: it answers, or keeps one waiting, on demand."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from attune.config import Config, ServeSection
from attune.errors import RequestError, Unavailable
from attune.registry import Registry
from attune.terms import Terms
from serve import keys
from serve.app import make_app
from serve.recent import RecentInteractions
from serve.routes.chat import _unless_gone
from serve.slot import Slots
from serve.tokens import Tokens
from tests.suites.events import interaction

ASK = {"messages": [{"role": "user", "content": "Hi."}]}
CHAT = "/v1/chat/completions"
HERE = "http://127.0.0.1:8000"


class Border:
    """Our application in front of an engine that does what a test wants."""

    def __init__(self, home: Path, **serve: Any) -> None:
        secrets = keys.load(home)
        self.key = (home / "api-key").read_text().strip()
        self.tokens, self.recent = Tokens(secrets.token_secret, 60), RecentInteractions()
        self.proxy = SimpleNamespace(asks={}, answered={}, failed={}, forget=lambda ident: None)
        self.gate, self.error, self.recorded = asyncio.Event(), None, True
        self.gate.set()
        state = {
            "config": Config(home=home, serve=ServeSection(**serve)), "secrets": secrets, "registry": Registry(home / "registry"),
            "slots": Slots(), "recent": self.recent, "proxy": self.proxy, "chat": self, "active": 0, "tokens": self.tokens,
            "scorer": SimpleNamespace(terms=Terms()),
        }  # fmt: skip
        self.app = make_app(state)

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        done = interaction(f"chatcmpl-{body['request_id']}")
        self.proxy.answered[done.id] = done
        if self.recorded:
            self.recent.remember(done)
        return {"id": done.id}

    def http(self, key: str | None = "", **headers: str) -> httpx.AsyncClient:
        given = self.key if key == "" else key
        headers |= {"authorization": f"Bearer {given}"} if given else {}
        transport = httpx.ASGITransport(self.app, client=("127.0.0.1", 1))
        return httpx.AsyncClient(transport=transport, base_url=HERE, headers=headers)


@pytest.fixture
def border(tmp_path: Path) -> Border:
    return Border(tmp_path, max_concurrent_requests=2, request_timeout_s=1.0, allowed_origins=["https://chat.example"])


async def waiting(http: httpx.AsyncClient, border: Border, number: int) -> list["asyncio.Task[httpx.Response]"]:
    """Return requests that have come as far as the engine."""
    border.gate.clear()
    tasks = [asyncio.create_task(http.post(CHAT, json=ASK)) for _ in range(number)]
    while border.app.state.active < number:
        await asyncio.sleep(0.001)
    return tasks


async def test_learning_waits_while_people_are_answered(border: Border) -> None:
    async with border.http() as http:
        (task,) = await waiting(http, border, 1)
        refused = await http.post(CHAT, json=ASK | {"purpose": "learning"})
        border.gate.set()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "people_first")
        assert refused.headers["retry-after"] == "2"
        assert (await task).status_code == 200
        assert (await http.post(CHAT, json=ASK | {"purpose": "learning"})).status_code == 200


async def test_answers_to_learn_from_take_the_key(border: Border) -> None:
    async with border.http(None, cookie=f"attune_session={border.tokens.new_session('page-1')}", origin=HERE) as http:
        assert (await http.post(CHAT, json=ASK)).status_code == 200
        refused = await http.post(CHAT, json=ASK | {"purpose": "learning"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "key_required")


async def test_requests_beyond_the_limit_are_told_to_come_again(border: Border) -> None:
    async with border.http() as http:
        tasks = await waiting(http, border, 2)
        refused = await http.post(CHAT, json=ASK)
        border.gate.set()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "2"
        assert [(await task).status_code for task in tasks] == [200, 200]
        assert (await http.post(CHAT, json=ASK)).status_code == 200  # those that ended make room


async def test_a_reply_that_takes_too_long_is_given_up(border: Border) -> None:
    border.gate.clear()
    async with border.http() as http:
        late = await http.post(CHAT, json=ASK)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
    assert border.app.state.active == 0


async def test_whoever_hangs_up_ends_the_work() -> None:
    async def hung_up() -> dict[str, str]:
        return {"type": "http.disconnect"}

    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(RequestError, match="closed the connection"):
        await _unless_gone(SimpleNamespace(receive=hung_up), work(), time.monotonic() + 60)  # type: ignore[arg-type]
    await asyncio.wait_for(ended.wait(), 1)


async def test_while_the_engine_is_away_clients_are_told_when_to_come_again(border: Border) -> None:
    border.error = Unavailable("The engine is being restarted.")
    async with border.http() as http:
        refused = await http.post(CHAT, json=ASK)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert refused.headers["retry-after"] == "5"
    assert "Try again" in refused.json()["error"]["message"]


async def test_the_page_may_not_move_versions(border: Border) -> None:
    border.app.state.registry.publish(
        "policy", {"x": b""}, parent=0, base_model="m", base_revision="", trained_through=0, report={}
    )  # fmt: skip
    for move, champion in (("1/promote", 1), ("rollback", 0)):
        path = f"/v1/attune/versions/policy/{move}"
        async with border.http(None, cookie=f"attune_session={border.tokens.new_session('page-1')}", origin=HERE) as http:
            refused = await http.post(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "key_required")
        async with border.http() as http:
            assert (await http.post(path)).json() == {"kind": "policy", "champion": champion}


async def test_only_the_origins_that_are_listed_are_let_in(border: Border) -> None:
    async with border.http() as http:
        for origin, allowed in (("https://chat.example", "https://chat.example"), ("https://evil.example", None)):
            reply = await http.post(CHAT, json=ASK, headers={"origin": origin})
            assert reply.headers.get("access-control-allow-origin") == allowed
            asked = await http.options(CHAT, headers={"origin": origin, "access-control-request-method": "POST"})
            assert asked.headers.get("access-control-allow-origin") == allowed
            assert asked.status_code == (200 if allowed else 400)


@pytest.mark.parametrize("recorded", [True, False])
async def test_only_a_reply_that_is_recorded_brings_a_token(border: Border, recorded: bool) -> None:
    border.recorded = recorded
    async with border.http() as http:
        reply = await http.post(CHAT, json=ASK)
    token = reply.json()["attune"]["feedback_token"]
    assert (token is not None) is recorded
    assert reply.headers.get("x-attune-feedback-token") == token
