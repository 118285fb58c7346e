"""The chat API on real vLLM: what an unmodified openai client sees, and what is answered to mistakes."""

import json
import time

import httpx
import openai
import pytest

from tests.fixtures.engine import Bench

pytestmark = pytest.mark.engine
HELLO = [{"role": "user", "content": "Hello there."}]


def ask(bench: Bench, **more: object) -> openai.types.chat.ChatCompletion:
    with bench.client() as client:
        return client.chat.completions.create(model="attune", messages=HELLO, **{"max_tokens": 8, **more})  # type: ignore[call-overload, no-any-return]


def test_plain_reply_names_what_made_it(bench: Bench) -> None:
    reply = ask(bench, seed=1)  # which of the untrained model's answers are without a word is a matter of luck: such a one is never tied
    told = reply.model_extra["attune"]  # type: ignore[index]
    assert reply.id == told["interaction_id"]
    assert reply.model == "attune"
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage
    assert 0 < reply.usage.completion_tokens <= 8
    (choice,) = told["choices"]
    assert 0 <= choice["candidate"] < 4
    assert choice["propensity"] == pytest.approx(0.25)  # nothing is learned: all four are alike
    assert set(choice["scores"]) == {"utility", "spread", "total"}


def test_two_choices_are_two_candidates(bench: Bench) -> None:
    reply = ask(bench, n=2)
    told = reply.model_extra["attune"]["choices"]  # type: ignore[index]
    assert [c.index for c in reply.choices] == [0, 1]
    assert len({c["candidate"] for c in told}) == 2


def test_reranking_off_shows_the_first(bench: Bench) -> None:
    told = ask(bench, n=2, extra_body={"rerank": "off", "candidates": 3}).model_extra["attune"]  # type: ignore[index]
    assert [c["candidate"] for c in told["choices"]] == [0, 1]


def test_stream_equals_one_id_and_ends_with_the_extension(bench: Bench) -> None:
    with (
        bench.http() as http,
        http.stream("POST", "/v1/chat/completions", json={"messages": HELLO, "max_tokens": 8, "stream": True, "n": 2}) as response,
    ):
        assert response.headers["x-attune-feedback-token"]
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert {c["id"] for c in chunks} == {chunks[-1]["attune"]["interaction_id"]}
    assert [c for c in chunks[:-1] if "attune" in c] == []
    assert {choice["index"] for c in chunks for choice in c["choices"]} == {0, 1}


def test_seeded_requests_repeat_and_greedy_draws_once(bench: Bench) -> None:
    first, second = (ask(bench, seed=7, max_tokens=12, extra_body={"rerank": "off"}).choices[0].message.content for _ in range(2))
    assert first == second
    greedy = ask(bench, temperature=0)
    assert greedy.model_extra["attune"]["choices"][0]["candidate"] == 0  # type: ignore[index]


def test_logprobs_and_json_come_from_vllm(bench: Bench) -> None:
    reply = ask(bench, logprobs=True, top_logprobs=2)
    assert reply.choices[0].logprobs
    assert reply.choices[0].logprobs.content
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 2
    assert ask(bench).choices[0].logprobs is None
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    shaped = ask(bench, n=16, max_tokens=200, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    finished = [c for c in shaped.choices if c.finish_reason == "stop"]  # some fill their space with blanks, which the grammar allows
    assert finished
    for choice in finished:
        assert isinstance(json.loads(choice.message.content or "")["a"], bool)


def test_a_forced_tool_call_has_arguments_of_its_schema(bench: Bench) -> None:
    parameters = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "lamp", "parameters": parameters, "strict": True}}
    reply = ask(bench, n=16, max_tokens=200, tools=[tool], tool_choice={"type": "function", "function": {"name": "lamp"}})
    finished = [c for c in reply.choices if c.finish_reason != "length"]  # some fill their space with blanks, which the grammar allows
    assert finished
    for choice in finished:
        (call,) = choice.message.tool_calls or []
        assert call.function.name == "lamp"
        assert isinstance(json.loads(call.function.arguments)["on"], bool)


def test_a_conversation_of_parts_and_a_retry_are_nothing_special(bench: Bench) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}]},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "Four?"},
    ]
    body = {"messages": talk, "max_tokens": 4, "unknown_parameter": {"x": 1}, "conversation_id": "c-1", "user": "anna"}
    with bench.http() as http:
        replies = [http.post(CHAT, json=body, headers={"x-stainless-retry-count": str(n)}) for n in range(2)]
    assert [r.status_code for r in replies] == [200, 200]
    assert len({r.json()["id"] for r in replies}) == 2
    assert replies[0].headers["x-attune-feedback-token"] == replies[0].json()["attune"]["feedback_token"]


def test_the_largest_fan_out_is_scored_and_returned(bench: Bench) -> None:
    told = ask(bench, n=16, max_tokens=2).model_extra["attune"]["choices"]  # type: ignore[index]
    assert sorted(c["candidate"] for c in told) == list(range(16))
    assert all(c["scores"] for c in told)


def test_an_answer_that_only_measures_is_scored_where_it_is_ranked(bench: Bench) -> None:
    def scores(candidates: int) -> dict[str, float]:
        reply = ask(bench, extra_body={"purpose": "evaluation", "candidates": candidates})
        found: dict[str, float] = reply.model_extra["attune"]["choices"][0]["scores"]  # type: ignore[index]
        return found

    assert scores(1) == {}
    assert set(scores(2)) == {"utility", "spread", "total"}


def test_whoever_hangs_up_costs_nothing_more(bench: Bench) -> None:
    def sampled() -> str:
        return next(line for line in http.get("/metrics").text.splitlines() if line.startswith("attune_candidates_total"))

    with bench.http() as http:
        before = sampled()
        for stream in (False, True):
            with pytest.raises(httpx.ReadTimeout):
                http.post(CHAT, json={"messages": HELLO, "max_tokens": 450, "n": 16, "stream": stream}, timeout=0.15)
        deadline = time.monotonic() + 10
        while f'attune_requests_total{{route="{CHAT}",status="499"}}' not in (text := http.get("/metrics").text):
            assert time.monotonic() < deadline, text
        assert sampled() == before  # what nobody waited for is no interaction, and nobody can vote on it
        started = time.monotonic()
        assert http.post(CHAT, json={"messages": HELLO, "max_tokens": 2}).status_code == 200
        assert time.monotonic() - started < 5  # the engine is not busy with the requests of before


def test_models(bench: Bench) -> None:
    with bench.client() as client:
        names = {m.id for m in client.models.list()}
        assert {"attune", "attune@0"} <= names
        assert client.models.retrieve("attune").id == "attune"
        based = client.chat.completions.create(model="attune@0", messages=HELLO, max_tokens=4)  # type: ignore[arg-type]
    assert based.model_extra["attune"]["policy_version"] == 0  # type: ignore[index]


CHAT = "/v1/chat/completions"
MISTAKES = [
    ("POST", CHAT, {"messages": []}, 400, "messages"),
    ("POST", CHAT, {"messages": HELLO, "n": 17}, 400, "n"),
    ("POST", CHAT, {"messages": HELLO, "n": 3, "candidates": 2}, 400, None),
    ("POST", CHAT, {"messages": HELLO, "temperature": 9}, 400, "temperature"),
    ("POST", CHAT, {"messages": HELLO, "max_tokens": 100_000}, 400, None),
    ("POST", CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, None),
    ("POST", CHAT, {"messages": HELLO, "model": "gpt"}, 404, "model"),
    ("POST", CHAT, {"messages": HELLO, "model": "attune@999"}, 404, "model"),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "x" * 30_000}]}, 413, None),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "word " * 600}]}, 400, None),
    ("POST", CHAT, {"messages": HELLO, "logit_bias": {"99999999": 1}}, 400, "logit_bias"),
    ("POST", CHAT, {"messages": HELLO, "stop": [""]}, 400, None),
    ("POST", CHAT, {"messages": HELLO, "response_format": {"type": "nonsense"}}, 400, None),
    ("POST", CHAT, {"messages": HELLO, "stream": True, "tools": [{"bad": 1}]}, 400, None),
    ("GET", "/v1/nothing", None, 404, None),
    ("POST", "/tokenize", {"prompt": "x"}, 404, None),
    ("POST", "/pause", {}, 404, None),
    ("POST", "/v1/load_lora_adapter", {}, 404, None),
    ("POST", "/v1/completions", {"prompt": "x"}, 404, None),
    ("GET", CHAT, None, 405, None),
    ("POST", CHAT, {"messages": HELLO, "model": "attune@" + "9" * 5000}, 400, "model"),
    ("POST", CHAT, {"messages": HELLO, "model": "attune@" + "9" * 100}, 404, "model"),
    ("POST", CHAT, {"messages": HELLO, "model": "\ud800"}, 400, "model"),
    ("POST", CHAT, {"messages": HELLO, "conversation_id": "a\0"}, 400, "conversation_id"),
    ("POST", CHAT, {"messages": HELLO, "conversation_id": "attune:learning"}, 400, "conversation_id"),
    ("POST", CHAT, {"messages": HELLO, "top_k": 10**30}, 400, "top_k"),
    ("POST", CHAT, {"messages": HELLO, "objectives": {"nothing": 1.0}}, 400, "objectives"),
    (
        "POST",
        CHAT,
        {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
        400,
        None,
    ),
    ("POST", "/v1/feedback", {"interaction_id": "i", "kind": "comment", "value": "\ud800"}, 400, None),
    ("POST", "/v1/feedback", {"interaction_id": "i", "kind": "implicit", "value": {"dwell": 10**400}}, 400, None),
    ("POST", "/v1/feedback", {"interaction_id": "i", "kind": "thumb", "value": 1, "aspect": "a\0"}, 400, "aspect"),
    ("POST", CHAT, {"messages": HELLO, "max_tokens": 513}, 400, "max_tokens"),
    ("POST", CHAT, {"messages": HELLO, "top_logprobs": 21}, 400, "top_logprobs"),
    ("POST", CHAT, {"messages": HELLO, "logit_bias": {"99999": 1}}, 400, None),
    ("POST", CHAT, {"messages": HELLO * 300}, 400, "messages"),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "word " * 2000}]}, 400, None),
    (
        "POST",
        CHAT,
        {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}},
        400,
        None,
    ),
    ("POST", CHAT, {"messages": HELLO, "model": "attune@999", "stream": True}, 404, "model"),
    ("POST", CHAT, {"messages": HELLO, "model": "attune@x"}, 404, "model"),
    ("POST", CHAT, {"messages": HELLO, "max_tokens": 513, "stream": True}, 400, "max_tokens"),
    ("POST", "/v1/attune/versions/policy/0/promote", None, 409, None),
    ("POST", "/v1/attune/versions/reward/rollback", None, 409, None),
    ("POST", "/v1/attune/versions/policy/999/promote", None, 404, "number"),
    ("POST", "/v1/attune/versions/other/1/promote", None, 400, "kind"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "param"), MISTAKES)
def test_mistakes_are_answered_as_openai_does(bench: Bench, method: str, path: str, body: object, status: int, param: str | None) -> None:
    with bench.http() as http:
        response = http.request(method, path, content=json.dumps(body), headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if param:
        assert error["param"] == param
    assert response.headers["x-request-id"]
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("key", [None, "sk-attune-00000000-wrong", "nonsense"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/attune/status", "/v1/feedback/fb-1"])
def test_a_key_is_needed(bench: Bench, key: str | None, path: str) -> None:
    with bench.http(key) as http:
        response = http.get(path)
    assert response.status_code == 401
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_not_json(bench: Bench) -> None:
    with bench.http() as http:
        response = http.post(CHAT, content=b"{", headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"


def test_a_large_body_in_pieces_is_refused_too(bench: Bench) -> None:
    with bench.http() as http:
        response = http.post(CHAT, content=(b"x" * 5_000 for _ in range(10)), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_metrics_and_health_need_no_key(bench: Bench) -> None:
    with bench.http(None) as http:
        assert http.get("/healthz").json()["status"] == "ok"
        assert http.get("/readyz").json()["status"] == "ready"
        text = http.get("/metrics").text
    for name in ("attune_candidates_total", "attune_policy_version", "attune_request_seconds_bucket", "attune_scorer_seconds_bucket"):
        assert name in text
    for name in ("attune_feedback_lag_events", "attune_feedback_orphans", "attune_feedback_dead_letters", "attune_feedback_heartbeat"):
        assert name not in text  # counted in another process: it would be 0 here whatever happens
