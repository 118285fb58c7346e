"""Votes over HTTP: durable before they are acknowledged, changeable, revocable, and only by who may."""

import json
import time
from typing import Any

import pytest

from attune.types import Feedback, Kind
from feedback.store import Store
from serve.tokens import Tokens
from tests.fixtures.engine import Bench

pytestmark = pytest.mark.engine


def answer(bench: Bench, **more: Any) -> dict[str, Any]:
    with bench.http() as http:
        body = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 4} | more
        return dict(http.post("/v1/chat/completions", json=body).json()["attune"])


def vote(bench: Bench, interaction: str, key: str | None = "", headers: dict[str, str] | None = None, **body: Any) -> Any:
    with bench.http(key) as http:
        return http.post("/v1/feedback", json={"interaction_id": interaction, "kind": "thumb", "value": 1} | body, headers=headers)


def receipt(bench: Bench, ident: str, status: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    with bench.http() as http:
        while True:
            found = http.get(f"/v1/feedback/{ident}").json()
            if found.get("status") == status:
                return dict(found)
            assert time.monotonic() < deadline, found
            time.sleep(0.05)


def test_a_vote_is_received_then_stored(bench: Bench) -> None:
    told = answer(bench)
    response = vote(bench, told["interaction_id"])
    assert response.status_code == 202
    assert response.json()["status"] == "received"
    stored = receipt(bench, response.json()["id"], "stored")
    assert stored["interaction_id"] == told["interaction_id"]
    assert stored["stored_at"] >= stored["received_at"]
    assert stored["policy_version"] is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("thumb", -1),
        ("rating", 4),
        ("comparison", {"better": 0, "worse": 3}),
        ("comparison", {"tie": "bad", "between": [0, 1]}),
        ("ranking", [2, 0, 1, 3]),
        ("edit", "Better."),
        ("comment", "<script>alert(1)</script>"),
        ("implicit", "copied"),
        ("implicit", {"dwell": 3.5}),
        ("outcome", 0.5),
    ],
)
def test_every_kind_is_stored(bench: Bench, kind: str, value: Any) -> None:
    response = vote(bench, answer(bench)["interaction_id"], kind=kind, value=value)
    assert response.status_code == 202
    kept = receipt(bench, response.json()["id"], "unusable" if kind in ("comment", "implicit", "outcome") else "stored")
    assert kept["value"] == value


def test_changing_a_vote_keeps_its_id_and_the_last_word_counts(bench: Bench) -> None:
    ident = answer(bench)["interaction_id"]
    first, second = vote(bench, ident, user="anna"), vote(bench, ident, user="anna", value=-1)
    other = vote(bench, ident, user="ben")
    assert first.json()["id"] == second.json()["id"] != other.json()["id"]
    assert receipt(bench, first.json()["id"], "stored")["value"] == -1


def test_withdrawing(bench: Bench) -> None:
    ident = vote(bench, answer(bench)["interaction_id"]).json()["id"]
    receipt(bench, ident, "stored")
    with bench.http() as http:
        assert http.delete(f"/v1/feedback/{ident}").status_code == 202
        assert http.delete("/v1/feedback/fb-unknown").status_code == 404
    receipt(bench, ident, "withdrawn")


def test_a_repeated_idempotency_key_counts_once_and_a_change_of_mind_under_it_counts(bench: Bench) -> None:
    ident, headers = answer(bench)["interaction_id"], {"Idempotency-Key": "k-1"}
    ids = {vote(bench, ident, headers=headers).json()["id"] for _ in range(3)}
    assert len(ids) == 1
    first = receipt(bench, ids.pop(), "stored")
    with bench.http() as http:
        before = http.get("/v1/attune/status").json()
    vote(bench, ident, headers=headers)  # sent again because its answer was lost on the way
    for value in (-1, 1, -1):  # the same key, and yet acknowledged: so it must count
        assert vote(bench, ident, value=value, headers=headers).status_code == 202
    deadline = time.monotonic() + 10
    while (now := receipt(bench, first["id"], "stored"))["value"] != -1:
        assert time.monotonic() < deadline, now
    with bench.http() as http:
        after = http.get("/v1/attune/status").json()
    assert after["votes"] == before["votes"]  # six requests, one vote
    assert after["store"] == before["store"]


def test_a_token_is_enough_for_an_interaction_that_nobody_remembers(bench: Bench) -> None:
    secret = json.loads((bench.config.home / "secrets.json").read_text())["token_secret"]
    forgotten = "chatcmpl-forgotten"
    token = Tokens(secret, 60).for_interaction(forgotten, 0, None)
    taken = vote(bench, forgotten, key=None, token=token)
    assert taken.status_code == 202
    assert receipt(bench, taken.json()["id"], "received")["interaction_id"] == forgotten
    assert vote(bench, forgotten).status_code == 404  # the key alone proves no interaction


def test_a_vote_that_waits_for_its_interaction_can_be_taken_back_by_a_server_that_never_saw_it(bench: Bench) -> None:
    lost = Feedback("fb-elsewhere", "e-elsewhere", "chatcmpl-lost", Kind.THUMB, 1, 0, 1.0)
    store = Store.open(bench.config.store_url)
    store.write([lost])
    store.close()
    receipt(bench, lost.id, "received")
    with bench.http() as http:
        assert http.delete(f"/v1/feedback/{lost.id}").status_code == 202


def test_a_token_votes_without_a_key_and_only_for_its_interaction(bench: Bench) -> None:
    told, other = answer(bench), answer(bench)
    token = told["feedback_token"]
    assert vote(bench, told["interaction_id"], key=None, token=token).status_code == 202
    for interaction, given in [
        (other["interaction_id"], token),
        (told["interaction_id"], token[:-2] + "xx"),
        (told["interaction_id"], "x"),
    ]:
        refused = vote(bench, interaction, key=None, token=given)
        assert refused.status_code == 401
        assert refused.json()["error"]["param"] == "token"
    assert vote(bench, told["interaction_id"], key=None).status_code == 401


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"value": 2}, 400, None),
        ({"kind": "applause"}, 400, "kind"),
        ({"kind": "comparison", "value": {"better": 0, "worse": 9}}, 400, "value"),
        ({"kind": "ranking", "value": [0, 0]}, 400, None),
        ({"choice": 3}, 400, "choice"),
        ({"interaction_id": "chatcmpl-none"}, 404, "interaction_id"),
        ({"surprise": 1}, 400, "surprise"),
    ],
)
def test_mistakes(bench: Bench, body: dict[str, Any], status: int, param: str | None) -> None:
    ident = answer(bench)["interaction_id"]
    response = vote(bench, body.pop("interaction_id", ident), **body)
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    if param:
        assert response.json()["error"]["param"] == param


def test_the_page_has_a_session_of_its_own_on_this_machine_only(bench: Bench) -> None:
    with bench.http(None) as http:
        page = http.get("/")
        assert page.status_code == 200
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "httponly" in page.headers["set-cookie"].lower()
        assert http.get("/v1/models").status_code == 200  # the cookie
        body = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2}
        assert http.post("/v1/chat/completions", json=body).status_code == 403  # not from the page
        assert http.post("/v1/chat/completions", json=body, headers={"Origin": bench.url}).status_code == 200
        assert http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 401
    with bench.http(None) as http:
        assert "set-cookie" not in http.get("/", headers={"Host": "evil.example"}).headers
        assert "set-cookie" not in http.get("/", headers={"X-Real-IP": "203.0.113.7"}).headers


def test_a_vote_given_again_after_it_was_taken_back_counts(bench: Bench) -> None:
    ident, headers = answer(bench)["interaction_id"], {"Idempotency-Key": "k-again"}
    first = vote(bench, ident, headers=headers).json()["id"]
    receipt(bench, first, "stored")
    with bench.http() as http:
        assert http.delete(f"/v1/feedback/{first}").status_code == 202
    receipt(bench, first, "withdrawn")
    assert vote(bench, ident, headers=headers).json() == {"id": first, "status": "received"}
    receipt(bench, first, "stored")


def test_votes_that_are_replaced_or_taken_back_are_received_once(bench: Bench) -> None:
    ident = answer(bench)["interaction_id"]
    with bench.http() as http:
        before = http.get("/v1/attune/status").json()["votes"]
        for value in (1, -1, 1):
            last = vote(bench, ident, value=value).json()["id"]
        receipt(bench, last, "stored")
        now = http.get("/v1/attune/status").json()["votes"]
        assert now["received"] - before["received"] == now["stored"] - before["stored"] == 1
        assert http.delete(f"/v1/feedback/{last}").status_code == 202
        receipt(bench, last, "withdrawn")
        assert http.get("/v1/attune/status").json()["votes"] == before  # what was taken back counts no more
