"""The learner's own requests: sent as they should be, ended at the first that serve turns away."""

import json
from pathlib import Path

import httpx

from attune.config import Config
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
    assert client.ask(asked) == 2
    assert len(seen) == 3
    assert (seen[0]["purpose"], seen[0]["messages"]) == ("learning", [dict(m) for m in asked[0].messages])


def test_no_server_and_no_key_are_no_errors(tmp_path: Path) -> None:
    assert TopUp(Config(home=tmp_path)).ask([interaction("i")]) == 0
