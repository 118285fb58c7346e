"""The learner's own requests: sent as they should be, ended at the first that serve turns away."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from attune.config import Config
from attune.types import Interaction, Sampling
from learner import top_up
from learner.top_up import TopUp
from tests.suites.events import interaction


def test_prompts_are_asked_again_until_serve_turns_one_away(tmp_path: Path) -> None:
    (tmp_path / "api-key").write_text("sk-attune-x\n")
    seen: list[dict[str, object]] = []

    def serve(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        assert request.headers["authorization"] == "Bearer sk-attune-x"
        return httpx.Response(200 if len(seen) < 3 else 503, json={})

    client = TopUp(Config(home=tmp_path), httpx.MockTransport(serve))
    asked = [interaction(f"i{n}") for n in range(5)]
    assert _made(client, asked) == 2
    assert len(seen) == 3
    assert (seen[0]["purpose"], seen[0]["messages"]) == ("learning", [dict(m) for m in asked[0].messages])


def test_where_nothing_was_left_to_chance_the_servers_own_temperature_draws(tmp_path: Path) -> None:
    (tmp_path / "api-key").write_text("sk-attune-x\n")
    seen: list[dict[str, object]] = []

    def serve(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json={})

    asked = [replace(interaction("i"), sampling=Sampling(temperature, top_p=0.9)) for temperature in (0.0, 0.4)]
    assert _made(TopUp(Config(home=tmp_path), httpx.MockTransport(serve)), asked) == 2
    assert [body["temperature"] for body in seen] == [None, 0.4]
    assert ["top_p" in body for body in seen] == [False, False]


def test_no_server_and_no_key_are_no_errors(tmp_path: Path) -> None:
    assert _made(TopUp(Config(home=tmp_path)), [interaction("i")]) == 0


def test_nobody_waits_for_answers_while_they_are_drawn_and_no_others_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "api-key").write_text("sk-attune-x\n")
    drawn, asked = threading.Event(), list[object]()

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        assert drawn.wait(10)
        return httpx.Response(200, json={})

    client = TopUp(Config(home=tmp_path), httpx.MockTransport(serve))
    assert [client.ask([interaction("i")]) for _ in range(3)] == [None] * 3
    drawn.set()
    assert _made(client, [interaction("j")]) == 1
    assert len(asked) == 1


def test_a_draw_that_nobody_came_back_for_does_not_stand_in_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "api-key").write_text("sk-attune-x\n")
    go, asked = threading.Event(), list[object]()

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        assert go.wait(10)
        return httpx.Response(200, json={})

    client = TopUp(Config(home=tmp_path), httpx.MockTransport(serve))
    assert client.ask([interaction("i")]) is None
    drawing = client._thread
    assert drawing is not None
    go.set()
    drawing.join(10)
    go.clear()
    monkeypatch.setattr(top_up, "FRESH_S", -1.0)
    assert client.ask([interaction("j")]) is None  # these are drawn now, and those of before are not counted for them
    monkeypatch.setattr(top_up, "FRESH_S", 60.0)
    go.set()
    assert _made(client, [interaction("j")]) == 1
    assert len(asked) == 2


def _made(client: TopUp, interactions: Sequence[Interaction]) -> int:
    deadline = time.monotonic() + 10
    while (made := client.ask(interactions)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return made
