"""The pure parts of serve: choice and propensities, leases, keys, tokens, pseudonyms, fingerprints."""

import random
import stat
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from attune.config import Config
from attune.errors import AdapterError, ConfigError, RequestError, Unavailable
from attune.terms import Terms
from attune.types import EVALUATION, LEARNING, Candidate, Feedback, Kind, Sampling
from serve import keys
from serve.access import Caller
from serve.adapter import AdapterSettings, Fingerprint, FingerprintSequence, expected_shapes, judge
from serve.answer import Answerer, Ask, Draw
from serve.pending import Pending
from serve.recent import RecentInteractions, Summary
from serve.rerank import choose
from serve.routes import chat, feedback
from serve.schemas import ChatRequest, FeedbackRequest
from serve.slot import Policy, Slots
from serve.tokens import Tokens


def test_the_best_is_shown() -> None:
    choice = choose([0.1, 0.9, 0.5], 2, rerank=True, rng=random.Random(0))
    assert (choice.shown, choice.propensities) == ((1, 2), (1.0, 1.0))


def test_ties_are_shown_alike_and_their_propensity_says_so() -> None:
    rng = random.Random(0)
    shown = Counter(choose([0.0] * 4, 1, rerank=True, rng=rng).shown[0] for _ in range(4000))
    assert all(abs(n / 4000 - 0.25) < 0.03 for n in shown.values())
    assert choose([0.0] * 4, 1, rerank=True, rng=rng).propensities == (0.25,)


def test_reranking_off_shows_the_first() -> None:
    assert choose([0.0, 9.0, 5.0], 2, rerank=False, rng=random.Random(0)).shown == (0, 1)


def test_a_leased_version_stays_while_new_requests_get_the_next() -> None:
    slots = Slots()
    slots.add(Policy(1, "one"))
    slots.flip(1, 10.0)
    with slots.lease() as held:
        slots.add(Policy(2, "two"))
        slots.flip(2, 20.0)
        assert held.number == 1
        with slots.lease() as fresh:
            assert fresh.number == 2
        slots.retire(keep=0)
        assert slots.drained() == []  # somebody still reads from it
        with pytest.raises(RequestError), slots.lease(1):  # but nobody new may
            pass
    assert slots.drained() == [held]
    assert slots.drained() == []  # it is handed over once
    assert slots.numbers == [2, 0]
    with pytest.raises(RequestError) as error, slots.lease(7):
        pass
    assert error.value.status == 404


def test_the_oldest_are_retired_and_never_live_or_base() -> None:
    slots = Slots()
    for number in range(1, 7):
        slots.add(Policy(number, number))
    slots.flip(2, 0.0)  # after a roll-back the live version need not be the newest
    slots.retire(keep=2)
    assert slots.numbers == [6, 5, 2, 0]
    assert sorted(p.number for p in slots.drained()) == [1, 3, 4]


def test_a_version_loaded_again_is_another_one() -> None:
    slots = Slots()
    slots.add(Policy(1, "first"))
    with slots.lease(1) as held:
        slots.retire(keep=0)
        slots.add(Policy(1, "second"))
        slots.retire(keep=0)
        assert slots.drained() == [Policy(1, "second")]
    assert slots.drained() == [held]


def test_nobody_is_let_in_while_the_engine_is_away() -> None:
    slots = Slots()
    slots.add(Policy(1, "one"))
    slots.flip(1, 0.0)
    with slots.lease():
        slots.forget_all()  # its lease ends without a trace
    assert slots.numbers == [0]
    assert slots.drained() == []
    with pytest.raises(Unavailable), slots.lease():
        pass


def test_the_key_is_made_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    first, second = keys.load(tmp_path), keys.load(tmp_path)
    key = (tmp_path / "api-key").read_text().strip()
    assert first == second
    assert key.startswith("sk-attune-")
    assert first.accepts(key)
    assert not first.accepts(key[:-1])
    assert key.removeprefix("sk-attune-") not in (tmp_path / "secrets.json").read_text()
    for name in ("api-key", "secrets.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    (tmp_path / "secrets.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        keys.load(tmp_path)


def test_removing_the_key_changes_the_key_and_nothing_else(tmp_path: Path) -> None:
    first = keys.load(tmp_path)
    old = (tmp_path / "api-key").read_text().strip()
    (tmp_path / "api-key").unlink()
    second = keys.load(tmp_path)
    new = (tmp_path / "api-key").read_text().strip()
    assert (second.accepts(new), second.accepts(old)) == (True, False)
    assert keys.load(tmp_path) == second
    assert (second.token_secret, second.pseudonym_secret) == (first.token_secret, first.pseudonym_secret)


def test_a_pseudonym_hides_the_name_and_stays_the_same(tmp_path: Path) -> None:
    secrets = keys.load(tmp_path)
    assert secrets.pseudonym("anna") == secrets.pseudonym("anna") != secrets.pseudonym("ben")
    assert "anna" not in str(secrets.pseudonym("anna"))
    assert secrets.pseudonym(None) is None


def test_a_vote_with_key_and_token_is_of_whom_the_request_named(tmp_path: Path) -> None:
    tokens, known = Tokens("secret", lifetime_s=100), keys.load(tmp_path)
    state = SimpleNamespace(tokens=tokens, secrets=known)
    body = FeedbackRequest(interaction_id="i1", kind=Kind.THUMB, value=1, token=tokens.for_interaction("i1", 1, "u-asked"))
    assert feedback._user(body, state, Caller("key", None)) == "u-asked"
    assert feedback._user(body, state, None) == "u-asked"
    assert feedback._user(body.model_copy(update={"user": "anna"}), state, Caller("key", None)) == known.pseudonym("anna")
    assert feedback._user(body.model_copy(update={"user": "anna"}), state, None) == "u-asked"


def test_what_speaks_of_the_whole_answer_is_one_vote_however_it_is_said() -> None:
    said = [FeedbackRequest(interaction_id="i1", kind=Kind.THUMB, value=1, aspect=aspect) for aspect in (None, "", "overall", "tone")]
    assert [body.aspect for body in said] == [None, None, None, "tone"]


def test_a_vote_that_names_candidates_is_of_no_choice() -> None:
    known = Summary(shown=(2,), num_candidates=4, user=None, policy_version=0)
    compared = FeedbackRequest(interaction_id="i1", kind=Kind.COMPARISON, value={"better": 2, "worse": 0}, choice=1)
    feedback._check_against(compared, known)
    with pytest.raises(RequestError, match="candidates 0 to 3"):
        feedback._check_against(compared.model_copy(update={"value": {"better": 4, "worse": 0}}), known)
    with pytest.raises(RequestError, match="choices 0 to 0"):
        feedback._check_against(FeedbackRequest(interaction_id="i1", kind=Kind.THUMB, value=1, choice=1), known)


def test_null_means_not_said() -> None:
    names = set(ChatRequest.model_fields) - {"messages"}
    asked = [{"role": "user", "content": "Hi."}]
    assert ChatRequest.model_validate({"messages": asked} | dict.fromkeys(names)) == ChatRequest.model_validate({"messages": asked})


def test_tokens_rate_one_interaction_until_they_expire() -> None:
    tokens = Tokens("secret", lifetime_s=100)
    token = tokens.for_interaction("chatcmpl-1", 3, "u-1")
    assert tokens.check(token, "chatcmpl-1") == "u-1"
    for wrong, interaction in [(token, "chatcmpl-2"), (token[:-3] + "abc", "chatcmpl-1"), ("", "chatcmpl-1")]:
        with pytest.raises(RequestError) as error:
            tokens.check(wrong, interaction)
        assert error.value.status == 401
    with pytest.raises(RequestError, match="expired"):
        Tokens("secret", lifetime_s=-1).check(token, "chatcmpl-1")
    with pytest.raises(RequestError):
        Tokens("other", lifetime_s=100).check(token, "chatcmpl-1")
    assert tokens.session(tokens.new_session("page-1")) == "page-1"
    assert tokens.session(token) is None  # a feedback token opens no session


def test_expected_tensors_come_from_the_base_model() -> None:
    base = {
        "model.layers.0.self_attn.q_proj.weight": (8, 4),
        "model.layers.1.self_attn.q_proj.weight": (8, 4),
        "model.layers.0.input_layernorm.weight": (4,),
        "lm_head.weight": (9, 4),
    }
    settings = AdapterSettings(peft_type="LORA", r=2, lora_alpha=4, target_modules=["q_proj", "lm_head"], layers_to_transform=[1])
    assert expected_shapes(settings, base) == {
        "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight": (2, 4),
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight": (8, 2),
    }


def fingerprint(new: np.ndarray, parent: np.ndarray) -> Fingerprint:
    ids = list(range(len(new)))
    return Fingerprint(
        sequences=[FingerprintSequence(prompt_token_ids=[1], token_ids=ids, logprobs=new.tolist(), parent_logprobs=parent.tolist())]
    )


def test_fingerprints_tell_the_new_policy_from_its_parent() -> None:
    rng = np.random.default_rng(0)
    parent = -rng.exponential(2.0, 120)
    new = parent + rng.normal(0, 0.3, 120)
    noise = rng.normal(0, 0.02, 120)
    mark = fingerprint(new, parent)
    assert judge(mark, [(new + noise).tolist()], 0.15) < 0.05
    with pytest.raises(AdapterError, match="nats from the learner"):
        judge(mark, [(parent + noise).tolist()], 0.15)
    small = parent + 0.2 * (new - parent)
    with pytest.raises(AdapterError, match="like the parent"):  # within the tolerance, and yet stale
        judge(fingerprint(small, parent), [(parent + 0.2 * noise).tolist()], 0.15)
    with pytest.raises(AdapterError, match="nats"):
        judge(mark, [[float("nan")] * 120], 0.15)


@pytest.mark.parametrize("seed", range(20))
def test_a_change_that_drowns_in_rounding_is_no_sign_of_a_stale_adapter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true_parent = -rng.exponential(2.0, 72)
    true_new = true_parent + rng.normal(0, 0.03, 72)
    ours, parent, engine = (true + rng.normal(0, 0.04, 72) for true in (true_new, true_parent, true_new))
    assert judge(fingerprint(ours, parent), [engine.tolist()], 0.15) < 0.1


def test_an_idempotency_key_marks_repetitions_only() -> None:
    pending = Pending(limit=2)
    first = pending.event("k", "up", 1.0)
    assert pending.event("k", "up", 2.0) == first
    assert Pending().event("k", "up", 1.0) == first  # after a restart as well
    second = pending.event("k", "down", 3.0)
    assert second[0] != first[0]
    assert pending.event("k", "down", 4.0) == second
    ids = (first[0], second[0])
    assert pending.event("k", "up", 5.0)[0] not in ids  # up, down, up: the last word counts
    assert pending.event("other", "up", 6.0)[0] not in ids
    again = Pending()
    assert again.event("k", "up", 7.0, fresh=True)[0] != first[0]  # taken back since: no repetition


def test_a_late_repetition_does_not_undo_a_change_of_mind() -> None:
    pending = Pending()

    def give(key: str, value: int, now: float) -> None:
        event_id, at = pending.event(key, str(value), now)
        pending.add(Feedback("fb", event_id, "chatcmpl-1", Kind.THUMB, value, 0, at))

    give("k-1", 1, 1.0)
    give("k-2", -1, 2.0)
    give("k-1", 1, 3.0)  # sent again because its answer was lost on the way
    held = pending.get("fb")
    assert held is not None
    assert (held.value, held.received_at) == (-1, 2.0)


def test_the_last_word_on_a_vote_counts_also_where_the_clock_was_set_back() -> None:
    pending = Pending()
    for value, now in ((1, 1000.0), (-1, 400.0)):
        pending.add(Feedback("fb", f"event-{value}", "chatcmpl-1", Kind.THUMB, value, 0, pending.after("fb", now)))
    held = pending.get("fb")
    assert held is not None
    assert held.value == -1
    assert 1000.0 < held.received_at < 1000.01
    pending.withdraw("fb", taken_back := pending.after("fb", 401.0))
    assert held.received_at < taken_back < pending.after("fb", 402.0) < 1000.01
    assert pending.after("other", 403.0) == 403.0


@pytest.mark.parametrize(("purpose", "kept"), [("answer", "c-1"), ("evaluation", EVALUATION), ("learning", LEARNING)])
def test_what_an_answer_is_for_is_kept_with_it(purpose: str, kept: str) -> None:
    body = ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], "purpose": purpose, "conversation_id": "c-1"})
    state = SimpleNamespace(
        config=Config(), scorer=SimpleNamespace(terms=Terms()), secrets=SimpleNamespace(pseudonym=lambda user: user)
    )  # fmt: skip
    assert chat._ask(body, state, None).conversation_id == kept


@pytest.mark.parametrize("taken", [True, False])
async def test_a_reply_that_could_not_be_recorded_is_not_vouched_for(taken: bool) -> None:
    recent, asked = RecentInteractions(), Ask("chatcmpl-1", (), None, 1, False, None, EVALUATION)
    outlet = SimpleNamespace(offer=lambda record: taken)
    answerer = Answerer(Slots(), SimpleNamespace(), outlet, recent, "v1", 0)  # type: ignore[arg-type]  # nothing here is ranked
    said = Candidate(0, "Hi.", (1, 2), (-0.1, -0.2), "stop")

    async def sample(policy: Policy, number: int) -> Draw:
        return Draw((5,), Sampling(0.7), None, (said,))

    interaction = await answerer.answer(asked, 1, sample)
    assert interaction.shown == (0,)
    assert (recent.get("chatcmpl-1") is not None) is taken
