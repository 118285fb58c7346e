"""The whole loop with the three programs and the real demo model: votes go in, and a policy that learned them answers."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import openai
import pytest

from attune.simulate.client import Line, Question
from attune.simulate.prompts import training
from attune.simulate.tastes import TASTES
from attune.simulate.users import vote
from attune.types import Kind
from tests.e2e.looping import LoopingClient
from tests.fixtures.running import Running

pytestmark = pytest.mark.e2e
SHORT = TASTES["short"]
MOVE_S = 60.0
"""A vote has to be answered by a policy that learned it within this time."""


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0) as made:
        yield made


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "attune", "messages": [{"role": "user", "content": text}], "max_tokens": 24} | more


async def eight_votes(running: Running, start: int = 0) -> list[str]:
    """Rank four answers to eight questions each by the taste for brevity, without noise, and return the feedback ids."""
    line, ids = Line(running.url, running.key), []
    try:
        for number, question in enumerate(training("short")[start : start + 8]):
            reply = await line.ask(Question(question.text, n=4, candidates=4, user=f"person-{number % 4}"))
            given = vote(Kind.RANKING, SHORT, question, reply.answers, reply.candidates, 0.0, Random(number))
            ids.append(await line.vote(reply, given, f"person-{number % 4}"))
        assert not line.failures
    finally:
        await line.close()
    return ids


async def test_eight_votes_reach_a_live_policy_within_a_minute_and_nobody_notices(running: Running) -> None:
    before = running.status()
    with LoopingClient(running) as looping:
        ids = await eight_votes(running)
        last_vote = time.monotonic()
        while looping.newest() <= before["policy_version"] and time.monotonic() < last_vote + MOVE_S + 10:
            time.sleep(0.2)
        answered_at, version = next((reply for reply in looping.replies if reply[1] > before["policy_version"]), (0.0, 0))
        time.sleep(2.0)  # some replies past the swap, in flight on the old version or fresh on the new one
    assert version > before["policy_version"], running.logs()
    assert answered_at - last_vote < MOVE_S
    assert looping.failures == []
    assert len(looping.replies) > 5
    first = _receipt(running, ids[0])
    assert first["status"] == "live"
    assert before["policy_version"] < first["policy_version"] <= version
    assert first["reward_version"] > before["reward_version"]
    assert first["received_at"] <= first["stored_at"] <= first["live_since"]
    now = running.status()
    assert now["votes"]["learned"] - before["votes"]["learned"] >= 8
    assert now["policy_version"] >= version
    with running.http() as http:
        shown = http.get("/metrics").text
    for kind in ("reward", "policy"):
        (count,) = (line for line in shown.splitlines() if line.startswith(f'attune_vote_to_live_seconds_count{{kind="{kind}"}}'))
        assert float(count.split()[-1]) >= 8
    assert 'attune_policy_figure{figure="kl_to_ref"}' in shown


def _receipt(running: Running, feedback_id: str) -> dict[str, Any]:
    with running.http() as http:
        return dict(http.get(f"/v1/feedback/{feedback_id}").raise_for_status().json())


def test_three_programs_are_running(running: Running) -> None:
    pids = {running.pid(name) for name in ("serve", "feedback", "learner")}
    assert len(pids) == 3
    for pid in pids:
        os.kill(pid, 0)


def test_the_learner_stands_back(running: Running) -> None:
    pid = running.pid("learner")
    assert os.getpriority(os.PRIO_PROCESS, pid) == 10
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists():  # or the kernel would weigh whole sessions against each other, whatever their processes say
        assert group.read_text().split()[-1] == "10"


def test_the_openai_client_works_plain(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**ask("What is the capital of Italy?", n=2))
    told = (reply.model_extra or {})["attune"]
    assert reply.id == told["interaction_id"]
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert all(choice.message.content is not None for choice in reply.choices)
    assert len({entry["candidate"] for entry in told["choices"]}) == 2
    assert told["feedback_token"]
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 0


def test_the_openai_client_works_streamed(client: openai.OpenAI) -> None:
    text, told, finish, ids = "", None, None, set()
    for chunk in client.chat.completions.create(**ask("Why is the sky blue?"), stream=True, stream_options={"include_usage": True}):
        ids.add(chunk.id)
        told = (chunk.model_extra or {}).get("attune") or told
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert told is not None
    assert ids == {told["interaction_id"]}
    assert finish in ("stop", "length")
    assert text.strip()


def test_the_base_model_stays_reachable_and_an_unknown_version_is_refused(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**ask("What is 2 + 2?", extra_body={"candidates": 1}) | {"model": "attune@0"})
    assert (reply.model_extra or {})["attune"]["policy_version"] == 0
    assert "attune@0" in {model.id for model in client.models.list()}
    with pytest.raises(openai.APIStatusError) as refusal:
        client.chat.completions.create(**ask("What is 2 + 2?") | {"model": "attune@999999"})
    assert refusal.value.status_code in (400, 404)


def test_a_vote_can_be_changed_and_taken_back(running: Running, client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**ask("Name a fruit."))
    told = (reply.model_extra or {})["attune"]
    body = {"interaction_id": reply.id, "kind": "thumb", "token": told["feedback_token"]}
    with running.http() as http:
        first = http.post("/v1/feedback", json=body | {"value": 1})
        second = http.post("/v1/feedback", json=body | {"value": -1})
        assert (first.status_code, second.status_code) == (202, 202)
        assert first.json()["id"] == second.json()["id"]
        until = time.monotonic() + 10
        while _receipt(running, first.json()["id"])["value"] != -1 and time.monotonic() < until:
            time.sleep(0.2)
        assert _receipt(running, first.json()["id"])["value"] == -1
        assert http.delete(f"/v1/feedback/{first.json()['id']}").status_code == 202
        while _receipt(running, first.json()["id"])["status"] != "withdrawn" and time.monotonic() < until + 10:
            time.sleep(0.2)
        assert _receipt(running, first.json()["id"])["status"] == "withdrawn"


def test_nobody_votes_without_a_key_or_with_a_foreign_token(running: Running, client: openai.OpenAI) -> None:
    import httpx

    one, other = (client.chat.completions.create(**ask("Name a colour.")) for _ in range(2))
    body = {"interaction_id": one.id, "kind": "thumb", "value": 1}
    foreign = (other.model_extra or {})["attune"]["feedback_token"]
    with httpx.Client(base_url=running.url) as stranger:
        assert stranger.post("/v1/feedback", json=body).status_code in (401, 403)
        assert stranger.post("/v1/feedback", json=body | {"token": foreign}).status_code in (401, 403)
        assert stranger.post("/v1/chat/completions", json=ask("Hello")).status_code == 401
