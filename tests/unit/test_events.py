"""Events over the border and back: nothing changes on the way, what does not fit is refused, the schemas are published."""

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attune.errors import InvalidRecord
from attune.events import IMPLICIT, TOPICS, Record, candidates_named, check_value, decode, encode, schemas
from attune.types import Candidate, Feedback, Interaction, Kind, Sampling, Withdrawal
from tests.suites.events import interaction, vote, withdrawal

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
# Lone surrogates are no text that UTF-8 can carry; what hypothesis makes of `text()` leaves them out.
finite = st.floats(-1e6, 1e6, allow_nan=False)
moments = st.floats(0, 4e9)
indexes = st.integers(0, 15)
values: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.THUMB: st.sampled_from([1, -1]),
    Kind.RATING: st.integers(1, 5),
    Kind.COMPARISON: st.lists(indexes, min_size=2, max_size=2, unique=True).flatmap(
        lambda pair: st.sampled_from(
            [{"better": pair[0], "worse": pair[1]}, {"tie": "good", "between": pair}, {"tie": "bad", "between": pair}]
        )
    ),
    Kind.RANKING: st.lists(indexes, min_size=2, max_size=16, unique=True),
    Kind.EDIT: words,
    Kind.COMMENT: words,
    Kind.IMPLICIT: st.sampled_from(IMPLICIT) | st.builds(lambda seconds: {"dwell": seconds}, st.floats(0, 1e6)),
    Kind.OUTCOME: st.floats(0, 1),
}


@st.composite
def candidates(draw: st.DrawFn, index: int) -> Candidate:
    tokens = draw(st.lists(st.integers(0, 200_000), max_size=6))
    numbers = st.lists(finite, min_size=len(tokens), max_size=len(tokens)).map(tuple)
    return Candidate(
        index=index,
        text=draw(st.text(max_size=40)),
        token_ids=tuple(tokens),
        logprobs=draw(numbers),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        ref_logprobs=draw(st.none() | numbers),
        features=draw(st.none() | st.binary(max_size=12)),
        scores=draw(st.dictionaries(st.sampled_from(["overall", "spread", "total"]), finite)),
        sharp_logprobs=draw(st.none() | numbers),
    )


@st.composite
def interactions(draw: st.DrawFn) -> Interaction:
    some = tuple(draw(candidates(index)) for index in range(draw(st.integers(1, 4))))
    shown = draw(st.lists(st.integers(0, len(some) - 1), min_size=1, max_size=3))
    return Interaction(
        id=draw(words),
        created_at=draw(moments),
        messages=tuple(draw(st.lists(st.fixed_dictionaries({"role": words, "content": st.none() | st.text(max_size=20)}), max_size=3))),
        prompt_token_ids=tuple(draw(st.lists(st.integers(0, 200_000), max_size=5))),
        sampling=Sampling(draw(st.floats(0, 2)), draw(st.floats(0, 1)), draw(st.integers(-1, 50)), max_tokens=draw(st.integers(0, 99))),
        candidates=some,
        shown=tuple(shown),
        propensities=tuple(draw(st.floats(0, 1)) for _ in shown),
        policy_version=draw(st.integers(0, 10**6)),
        reward_version=draw(st.integers(0, 10**6)),
        prompt_version=draw(words),
        seed=draw(st.none() | st.integers(0, 2**32)),
        conversation_id=draw(st.none() | words),
        turn=draw(st.integers(0, 50)),
        user=draw(st.none() | words),
    )


votes = st.sampled_from(list(Kind)).flatmap(
    lambda kind: st.builds(
        Feedback, words, words, words, st.just(kind), values[kind], indexes, moments, st.none() | words, st.none() | words
    )
)
withdrawals = st.builds(Withdrawal, words, words, words, moments)


@settings(max_examples=150, deadline=None)
@given(interactions() | votes | withdrawals)
def test_what_is_encoded_is_decoded_to_the_same(event: Interaction | Feedback | Withdrawal) -> None:
    record = encode(event)
    assert decode(record) == event
    assert record.key == (event.id if isinstance(event, Interaction) else event.interaction_id)
    assert record.type in TOPICS
    assert {"ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time"} <= set(record.headers)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=200),
    st.dictionaries(st.sampled_from(["ce_id", "ce_type", "ce_specversion"]), st.text(max_size=30) | st.sampled_from([*TOPICS, "1.0"])),
)
def test_whatever_bytes_arrive_the_answer_is_an_event_or_a_reason(body: bytes, headers: dict[str, str]) -> None:
    with suppress(InvalidRecord):
        decode(Record("key", headers, body))


def test_log_probs_that_are_no_numbers_travel_as_null() -> None:
    odd = replace(interaction().candidates[0], logprobs=(-0.5, math.nan, -math.inf))
    [back] = decode(encode(replace(interaction(), candidates=(odd,), shown=(0,), propensities=(1.0,)))).candidates  # type: ignore[union-attr]
    assert back.logprobs[0] == -0.5
    assert all(math.isnan(x) for x in back.logprobs[1:])


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (replace(interaction(), shown=(4,), propensities=(1.0,)), "must name the same existing candidates"),
        (replace(interaction(), propensities=(1.0,)), "must name the same existing candidates"),
        (replace(interaction(), propensities=(1.0, 1.5)), "propensities.1"),
        (replace(interaction(), candidates=interaction().candidates[1:]), "numbered 0, 1, 2"),
        (replace(interaction(), candidates=()), "candidates"),
        (replace(vote("e1"), value=0), "the value of a thumb must be 1 or -1"),
        (replace(vote("e1"), choice=16), "choice"),
        (replace(vote("e1"), received_at=math.inf), "received_at"),
        (replace(withdrawal("e1"), feedback_id=""), "feedback_id"),
    ],
)
def test_an_event_that_does_not_fit_is_refused_before_it_travels(event: Any, reason: str) -> None:
    with pytest.raises(InvalidRecord, match=reason):
        encode(event)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.THUMB, True),
        (Kind.THUMB, 2),
        (Kind.THUMB, "1"),
        (Kind.RATING, 0),
        (Kind.RATING, 2.5),
        (Kind.RATING, math.nan),
        (Kind.COMPARISON, {"better": 0, "worse": 0}),
        (Kind.COMPARISON, {"better": 0, "worse": -1}),
        (Kind.COMPARISON, {"tie": "ugly", "between": [0, 1]}),
        (Kind.COMPARISON, {"tie": "good", "between": [0, 1, 2]}),
        (Kind.COMPARISON, [0, 1]),
        (Kind.RANKING, [0]),
        (Kind.RANKING, [0, 0]),
        (Kind.RANKING, [0, 16]),
        (Kind.EDIT, ""),
        (Kind.COMMENT, 7),
        (Kind.IMPLICIT, "stared"),
        (Kind.IMPLICIT, {"dwell": -1}),
        (Kind.OUTCOME, 1.5),
        (Kind.OUTCOME, None),
    ],
)
def test_a_value_of_the_wrong_form_is_refused_with_the_form_that_is_wanted(kind: Kind, value: Any) -> None:
    with pytest.raises(ValueError, match=f"the value of a {kind} must be"):
        check_value(kind, value)


def test_comparisons_and_rankings_name_their_candidates() -> None:
    assert candidates_named(Kind.COMPARISON, {"better": 3, "worse": 1}) == (3, 1)
    assert candidates_named(Kind.COMPARISON, {"tie": "bad", "between": [2, 0]}) == (2, 0)
    assert candidates_named(Kind.RANKING, [2, 0, 1]) == (2, 0, 1)
    assert candidates_named(Kind.THUMB, 1) == ()


def test_the_published_schemas_are_those_of_the_code() -> None:
    assert {path.name: path.read_text() for path in SCHEMAS.glob("*.json")} == schemas()


@pytest.mark.parametrize("text", ["a\0b", "half of a pair: \ud800"])
def test_what_no_database_takes_is_refused_before_it_is_acknowledged(text: str) -> None:
    plain = Feedback("f", "e", "i", Kind.THUMB, 1, 0, 1.0)
    for bad in (replace(plain, aspect=text), replace(plain, user=text), replace(plain, interaction_id=text)):
        with pytest.raises(InvalidRecord):
            encode(bad)


def test_numbers_and_texts_that_json_can_say_and_nobody_can_keep() -> None:
    with pytest.raises(ValueError, match="dwell"):
        check_value(Kind.IMPLICIT, {"dwell": 10**400})
    with pytest.raises(ValueError, match="surrogate"):
        check_value(Kind.COMMENT, "\ud800")
