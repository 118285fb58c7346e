"""The hidden tastes and what simulated users ask and vote: nobody's answers score lowest, and the votes are honest but for the noise."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attune.events import check_value
from attune.simulate.prompts import held_out, training
from attune.simulate.tastes import TASTES, Answer, Ask, Taste, complete, echoes, repeats_itself, words
from attune.simulate.users import KINDS, choose_kind, vote
from attune.types import Kind

ASKS = {
    "short": Ask("What should I know about honey?"),
    "correct-and-direct": Ask("What is the capital of France?", ("Paris",)),
    "facts": Ask("What is 2+2?", ("4",)),
    "friendly": Ask("I just got home from work."),
    "plain": Ask("What is honey good for?"),
}
RAMBLING = "Well there are many different things that a person could say here, and most of them go on and on for ever, because "
"""The least of what a person can use: on the subject of nothing, and cut off."""


@pytest.fixture(params=sorted(TASTES))
def taste(request: pytest.FixtureRequest) -> Taste:
    return TASTES[request.param]


def unwanted(ask: Ask) -> list[str]:
    return [
        "",
        "   \n",
        "...",
        "!!!!!!",
        "The.",
        ask.text,
        ask.text.rstrip("?.!"),
        f"You asked: {ask.text}",
        f"{ask.text} {ask.text}",
        "great great great great",
        "Have a nice day! Have a nice day!",
        "It is good and it is good and it is good and it is good and it is good and it is good.",
    ]


def test_what_nobody_wants_scores_zero_and_below_the_worst_usable_answer(taste: Taste) -> None:
    ask = ASKS[taste.name]
    usable = taste.score(ask, Answer(RAMBLING, finished=False))
    assert usable > 0
    for text in unwanted(ask):
        assert taste.score(ask, Answer(text)) == 0, text


def test_every_question_handed_back_scores_zero(taste: Taste) -> None:
    for ask in training(taste.name) + held_out(taste.name):
        assert taste.score(ask, Answer(ask.text)) == 0, ask.text
        assert taste.score(ask, Answer(f"The question is: {ask.text}")) == 0, ask.text


@given(text=st.text(max_size=200), finished=st.booleans())
def test_scores_lie_in_the_unit_interval_and_a_cut_off_answer_never_gains(text: str, finished: bool) -> None:
    for name, ask in ASKS.items():
        score = TASTES[name].score(ask, Answer(text, finished))
        assert 0 <= score <= 1
        assert TASTES[name].score(ask, Answer(text, finished=False)) <= TASTES[name].score(ask, Answer(text))


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [
        (
            "short",
            "Bees make it from nectar.",
            "Honey is a thing that bees make, and there is a great deal to be said about it, such as how they do so.",
        ),
        ("short", "Bees make it from nectar.", "Bees."),
        ("short", "Bees make it from nectar.", "Bees make it from"),
        ("correct-and-direct", "Paris.", "London."),
        ("correct-and-direct", "The capital of France is Paris.", "Rome."),
        (
            "correct-and-direct",
            "Paris.",
            "France is a lovely country with many cities, rivers and hills, and among those cities the capital is Paris.",
        ),
        ("friendly", "Welcome home! How was your day?", "You got home."),
        ("plain", "It is sweet. You can put it on bread.", "Its antibacterial properties facilitate accelerated recuperation."),
        (
            "plain",
            "Bees make it. It is sweet.",
            "Bees make it and it is sweet and you can put it on bread or in tea or eat it from the jar with a spoon.",
        ),
        ("plain", "Bees make it. It is sweet.", "Mmm!"),
        ("friendly", "Glad you are back. Can I help with dinner?", "Home is where one lives. Work is elsewhere."),
    ],
)
def test_each_taste_prefers_what_it_says_it_does(name: str, better: str, worse: str) -> None:
    score = TASTES[name].score
    assert score(ASKS[name], Answer(better)) > score(ASKS[name], Answer(worse)) + 0.1


def test_cut_off_answers_score_below_the_same_answer_finished(taste: Taste) -> None:
    text = "The capital is Paris, I am happy to say!"
    ask = ASKS[taste.name]
    assert taste.score(ask, Answer(text, finished=False)) < taste.score(ask, Answer(text))


def test_a_right_answer_in_the_words_of_the_question_is_no_echo() -> None:
    ask = Ask("Which animal on a farm gives us milk to drink?", ("cow",))
    assert TASTES["correct-and-direct"].score(ask, Answer("The animal on a farm that gives us milk to drink is the cow.")) > 0.3
    assert not echoes("What is the capital of France?", "The capital of France is Paris.")
    assert echoes("What is the capital of France?", "Capital of France?")


def test_stopping_in_mid_sentence_is_not_finishing() -> None:
    assert not complete(Answer("The best way to start is to"))
    assert complete(Answer("Paris"))
    assert not complete(Answer("Paris.", finished=False))
    assert not repeats_itself("It is red, it is round, and it is good to eat.")


def test_mending_never_makes_an_answer_worse_to_its_taste(taste: Taste) -> None:
    for ask in training(taste.name):
        mended = taste.mend(ask, Answer("This is a story that starts somewhere and never ends because it is", finished=False))
        assert taste.score(ask, Answer(mended)) > 0.3, mended


def test_held_out_prompts_are_many_and_share_nothing_with_training(taste: Taste) -> None:
    train, held = training(taste.name), held_out(taste.name)
    assert len({ask.text for ask in train}) == len(train) >= 60
    assert len({ask.text for ask in held}) == len(held) >= 60
    assert not {ask.text for ask in train} & {ask.text for ask in held}
    assert not {tuple(words(ask.text)) for ask in train} & {tuple(words(ask.text)) for ask in held}
    if taste.name == "correct-and-direct":
        assert all(ask.facts for ask in train + held)


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(
    seed=st.integers(0, 10_000),
    texts=st.lists(
        st.sampled_from(["", "Paris.", "London.", "Well, it is Paris, since you ask, or so I am told."]), min_size=4, max_size=4
    ),
)
def test_every_vote_is_one_that_the_api_takes(kind: str, seed: int, texts: list[str]) -> None:
    given_vote = vote(
        Kind(kind), TASTES["correct-and-direct"], ASKS["correct-and-direct"], [Answer(t) for t in texts], [2, 0, 3, 1], 0.3, Random(seed)
    )
    check_value(given_vote.kind, given_vote.value)


def test_a_ranking_names_candidates_best_first() -> None:
    answers = [
        Answer("London."),
        Answer("Paris."),
        Answer(""),
        Answer("It is in France, and it is called Paris, I believe, but do look it up."),
    ]
    given_vote = vote(Kind.RANKING, TASTES["correct-and-direct"], ASKS["correct-and-direct"], answers, [2, 0, 3, 1], 0.0, Random(1))
    assert given_vote.value == [0, 1, 2, 3]
    reverse = vote(Kind.RANKING, TASTES["correct-and-direct"], ASKS["correct-and-direct"], answers, [2, 0, 3, 1], 1.0, Random(1))
    assert reverse.value == [3, 2, 1, 0]
    assert reverse.flipped


def test_alike_answers_make_a_tie_and_their_worth_says_which() -> None:
    good = vote(
        Kind.COMPARISON,
        TASTES["correct-and-direct"],
        ASKS["correct-and-direct"],
        [Answer("Paris."), Answer("Paris.")],
        [1, 3],
        0.0,
        Random(0),
    )
    assert good.value["tie"] == "good"
    assert sorted(good.value["between"]) == [1, 3]
    bad = vote(Kind.RANKING, TASTES["correct-and-direct"], ASKS["correct-and-direct"], [Answer("Rome.")] * 4, [0, 1, 2, 3], 0.0, Random(0))
    assert (bad.kind, bad.value["tie"]) == (Kind.COMPARISON, "bad")


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_the_share_of_flipped_votes_is_the_noise(noise: float) -> None:
    taste, ask = TASTES["correct-and-direct"], ASKS["correct-and-direct"]
    count = 4000
    votes = [vote(Kind.THUMB, taste, ask, [Answer("Paris.")], [0], noise, Random(seed)) for seed in range(count)]
    flipped = sum(v.flipped for v in votes)
    assert all((v.value == -1) is v.flipped for v in votes)
    assert abs(flipped / count - noise) < 0.025


def test_kinds_come_in_their_shares_and_only_those_allowed() -> None:
    random = Random(3)
    drawn = [choose_kind(sorted(KINDS), random) for _ in range(4000)]
    for kind, share in KINDS.items():
        assert abs(drawn.count(Kind(kind)) / 4000 - share) < 0.03
    assert {choose_kind(["ranking"], random) for _ in range(20)} == {Kind.RANKING}
