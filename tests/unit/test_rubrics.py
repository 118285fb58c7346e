"""Tastes of several parts: nobody's answers score lowest, each part sees what it says, and the two sides of prompts share no subject."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attune.simulate.prompts import HEROINE, held_out, training
from attune.simulate.rubrics import (
    PRODUCT,
    RUBRICS,
    STORY,
    accuracy,
    clarity,
    invents_number,
    keeps_short,
    names_her,
    persuasion,
    tells_plainly,
)
from attune.simulate.tastes import Answer, Ask, Taste, words

BOTTLE = Ask("Write a short product description: a steel water bottle, 750 ml, for hikers.", ("steel", "750 ml", "hikers"))
STORY_ASK = Ask("Tell a story about Anastasia and a kite.", ("Anastasia",))
ASKS = {"product": BOTTLE, "named-story": STORY_ASK}
GOOD = {
    "product": "This steel bottle holds 750 ml of cold water. It is perfect for hikers, and it keeps your tea hot. Order yours today!",
    "named-story": "Anastasia had a kite without a tail. She tied her scarf to it and ran up the hill. The wind took both of them. "
    "In the evening a boy brought the scarf back and smiled.",
}
RAMBLING = "Well there are many different things that a person could say here, and most of them go on and on for ever, because "


@pytest.fixture(params=sorted(RUBRICS))
def taste(request: pytest.FixtureRequest) -> Taste:
    return RUBRICS[request.param]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "...",
        "The.",
        "{question}",
        "You asked: {question}",
        "{question} {question}",
        "Buy it! Buy it!",
        "great great great great",
    ],
)
def test_what_nobody_wants_scores_zero_and_below_the_worst_usable_answer(taste: Taste, text: str) -> None:
    ask = ASKS[taste.name]
    assert taste.score(ask, Answer(text.format(question=ask.text))) == 0
    assert taste.score(ask, Answer(RAMBLING, finished=False)) > 0


def test_every_question_handed_back_scores_zero(taste: Taste) -> None:
    for ask in training(taste.name) + held_out(taste.name):
        assert taste.score(ask, Answer(ask.text)) == 0, ask.text


def test_a_good_text_is_liked_and_its_first_half_is_not_worth_as_much(taste: Taste) -> None:
    ask, text = ASKS[taste.name], GOOD[taste.name]
    assert taste.score(ask, Answer(text)) > 0.9
    assert taste.score(ask, Answer(text, finished=False)) == pytest.approx(taste.score(ask, Answer(text)) / 2)
    assert taste.score(ask, Answer(text[: len(text) // 2], finished=False)) < 0.5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("This steel bottle holds 750 ml and is made for hikers.", 1.0),
        ("A steel bottle with 750ml for every hiking trip.", 1.0),
        ("A steel bottle for hikers.", 2 / 3),
        ("A bottle for water.", 0.0),
        ("This steel bottle holds 750 ml, for hikers, and it costs 20 dollars.", 0.0),
    ],
)
def test_accuracy_counts_the_facts_and_no_number_may_be_invented(text: str, told: float) -> None:
    assert accuracy(BOTTLE, Answer(text)) == pytest.approx(told)


def test_only_numbers_that_nobody_gave_are_invented() -> None:
    assert not invents_number(BOTTLE, Answer("It holds 750 ml."))
    assert not invents_number(BOTTLE, Answer("It holds a lot."))
    assert invents_number(BOTTLE, Answer("It holds 75 ml."))


def test_clarity_likes_short_sentences_and_enough_of_them() -> None:
    assert clarity(BOTTLE, Answer(GOOD["product"])) == 1.0
    assert clarity(BOTTLE, Answer("A bottle.")) < 0.7
    assert clarity(BOTTLE, Answer(" ".join(["and it is so"] * 12) + ".")) < 0.6


@pytest.mark.parametrize(
    ("text", "thirds"),
    [
        ("A bottle.", 0),
        ("Your bottle.", 1),
        ("It keeps your water cold.", 2),
        ("It keeps your water cold. Order it now!", 3),
        ("Order it now! It is a bottle.", 0),
    ],
)
def test_persuasion_speaks_to_the_reader_says_what_for_and_ends_with_a_call(text: str, thirds: int) -> None:
    assert persuasion(BOTTLE, Answer(text)) == pytest.approx(thirds / 3)


def test_the_parts_of_a_story() -> None:
    assert names_her(STORY_ASK, Answer("And then ANASTASIA's kite flew.")) == 1
    assert names_her(STORY_ASK, Answer("And then Anna flew.")) == 0
    assert keeps_short(STORY_ASK, Answer("word " * 50)) == 1
    assert keeps_short(STORY_ASK, Answer("word " * 20)) == 0.5
    assert keeps_short(STORY_ASK, Answer("word " * 200)) == keeps_short(STORY_ASK, Answer("Anastasia left.")) == 0
    assert tells_plainly(STORY_ASK, Answer(GOOD["named-story"])) == 1
    assert tells_plainly(STORY_ASK, Answer("She flew.")) < 0.7


@given(text=st.text(max_size=300), finished=st.booleans())
def test_parts_and_scores_lie_in_the_unit_interval(text: str, finished: bool) -> None:
    for name, ask in ASKS.items():
        assert 0 <= RUBRICS[name].score(ask, Answer(text, finished)) <= 1
        for _, part in (STORY | PRODUCT).values():
            assert 0 <= part(ask, Answer(text, finished)) <= 1


def test_the_parts_of_a_rubric_count_one_together() -> None:
    for rubric in (STORY, PRODUCT):
        assert sum(weight for weight, _ in rubric.values()) == pytest.approx(1)


@pytest.mark.parametrize("text", ["", RAMBLING, "It is good. It has 99 pockets. It is red.", GOOD["product"]])
def test_mending_gives_what_its_taste_likes(taste: Taste, text: str) -> None:
    for ask in training(taste.name):
        assert taste.score(ask, Answer(taste.mend(ask, Answer(text)))) > 0.7, taste.mend(ask, Answer(text))


def test_held_out_prompts_share_no_subject_with_training(taste: Taste) -> None:
    train, held = training(taste.name), held_out(taste.name)
    assert min(len(train), len(held)) >= 30
    texts = [ask.text for ask in train + held]
    assert len(set(texts)) == len(texts)
    assert all(set(words(fact)) <= set(words(ask.text)) for ask in train + held for fact in ask.facts)
    if taste.name == "product":
        things = [{ask.text.split(": ")[1].split(",")[0] for ask in side} for side in (train, held)]
        assert not things[0] & things[1]
    else:
        assert all(ask.facts == (HEROINE,) for ask in train + held)
