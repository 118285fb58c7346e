"""The ways in which a trial of online learning broke, each in a closed loop in which it does break, until its guard is put in.

Every loop is run twice on the same seeds, with the guard and without, and both outcomes are promised: a test that a loop without its guard
would pass shows nothing. What keeps a rare taste from being diluted is in `test_rare_tastes`.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch

from attune.config import LearnerSection, ServeSection
from attune.reward import RewardModel
from learner import advantages, ppo
from learner.rollout import make_rollout
from tests.fixtures.toy_language import (
    DEEP,
    END,
    HIDDEN,
    RAMBLING_T,
    SETTINGS,
    SUM_OF_LOGPROBS,
    WORDS,
    Answer,
    Town,
    Vector,
    always,
    spoken,
)

DIRECTION = np.random.default_rng(5).normal(size=HIDDEN)
"""In which features of the deep layer a trait shows."""
LENGTH = 12
FRIENDLY = (1, 2, 3, 4)


@dataclass(frozen=True)
class Day:
    """What people met, and where it left the policy."""

    liked: float
    """Share of answers of a length that people like."""
    empty: float
    """Chance that the policy says nothing, at the end of the day."""


def far_from_three_to_twelve(answer: Answer) -> float:
    count = spoken(answer)
    return -10.0 if count == 0 else -2.0 * max(0, 3 - count) - 0.15 * max(0, count - 12)


def length_in_a_straight_line(answer: Answer, vector: Vector) -> None:
    vector[DEEP] += spoken(answer) / 8 * DIRECTION
    vector[SUM_OF_LOGPROBS:] = 0.0
    vector[SUM_OF_LOGPROBS] = -3.0 * spoken(answer)


def pays_without_limit(model: RewardModel) -> RewardModel:
    return replace(model, anchors=replace(model.anchors, low=-1e6, high=1e6))


@cache
def shrinking(seed: int, held: bool, nothing_is_worst: bool, gated: bool = False, wired: bool = False, days: int = 16) -> tuple[Day, ...]:
    """Return a loop in which people vote for two days, on answers too long for them, so that to the model shorter is always better."""
    silence = "" if nothing_is_worst else "---"
    town = Town(
        far_from_three_to_twelve, length_in_a_straight_line, RAMBLING_T, seed=seed, learning_rate=0.25, requests=16, silence=silence
    )
    past: list[Day] = []
    while len(past) < days and not (wired and town.wires()):
        met = town.traffic()
        if len(past) < 2:
            town.vote(met)
        decision = town.learn(met, town.model if held else pays_without_limit(town.model))
        if gated and decision and not decision.promote:
            town.refuse()
        lengths = [spoken(c.token_ids) for i in met for c in i.candidates]
        past.append(Day(float(np.mean([3 <= n <= 12 for n in lengths])), float(town.policy.table().detach()[0, END].exp())))
    return tuple(past)


def final(held: bool, nothing_is_worst: bool) -> Day:
    """Return the last six days of two loops on average."""
    last = [day for seed in range(2) for day in shrinking(seed, held, nothing_is_worst)[-6:]]
    return Day(float(np.mean([day.liked for day in last])), float(np.mean([day.empty for day in last])))


def test_answers_end_where_people_like_them_and_not_where_the_model_extrapolates() -> None:
    guarded, bare = final(held=True, nothing_is_worst=True), final(held=False, nothing_is_worst=False)
    assert guarded.liked > 0.7
    assert guarded.empty < 0.05
    assert bare.liked < 0.1
    assert bare.empty > 0.5


def test_an_empty_answer_below_every_other_helps_by_itself() -> None:
    guarded, bare = final(held=True, nothing_is_worst=True), final(held=True, nothing_is_worst=False)
    assert guarded.liked > bare.liked + 0.2
    assert guarded.empty < 0.05 < bare.empty


def test_no_champion_that_mostly_says_nothing_passes_the_gate() -> None:
    gated, bare = shrinking(0, held=False, nothing_is_worst=False, gated=True), shrinking(0, held=False, nothing_is_worst=False)
    assert max(day.empty for day in gated) < 0.3
    assert max(day.empty for day in bare) > 0.6


def test_tripwires_stop_a_learner_that_is_on_its_way_to_silence() -> None:
    wired, bare = shrinking(0, held=False, nothing_is_worst=False, wired=True), shrinking(0, held=False, nothing_is_worst=False)
    assert len(wired) < 10 < len(bare)
    assert wired[-1].empty < 0.6 < max(day.empty for day in bare)


@dataclass(frozen=True)
class Evening:
    """Where a policy stands at the end of a day."""

    kl: float
    """To the base, in nats per answer: exact."""
    friendly: float
    """Chance that a word is one of those that people like."""


def friendliness(answer: Answer) -> float:
    return sum(token in FRIENDLY for token in answer) / spoken(answer)


def friendly_words_show(answer: Answer, vector: Vector) -> None:
    vector[:HIDDEN] += 4.0 * friendliness(answer) * DIRECTION


def kl_to_base(town: Town) -> float:
    """Return the KL of answers that are `LENGTH` words long."""
    now_V, base_V = town.policy.table().detach()[0, 1:], town.base_TV[0, 1:]
    return LENGTH * float((now_V.exp() * (now_V - base_V)).sum())


class Fixed:
    """A penalty that stays as it is."""

    def __init__(self, beta: float, hinge: float) -> None:
        self.settings = SETTINGS.model_copy(update={"kl_beta": beta, "kl_hinge": hinge})

    def after(self, kl_nats: float) -> LearnerSection:
        """Return the settings for the next day."""
        return self.settings


class Multiplying(Fixed):
    """The controller that was given up: 1.3 times the penalty for every day beyond the budget, less again within it."""

    def after(self, kl_nats: float) -> LearnerSection:
        """Return the settings for the next day."""
        over, beta = kl_nats > self.settings.kl_budget_nats, self.settings.kl_beta
        self.settings = SETTINGS.model_copy(update={"kl_beta": beta * 1.3 if over else max(SETTINGS.kl_beta, beta / 1.3), "kl_hinge": 0.0})
        return self.settings


def befriended(penalty: Fixed, seed: int, *, voting: int = 20, held: bool = True, days: int = 20) -> list[Evening]:
    """Return a loop in which people vote for friendly words on the first `voting` days: the more, the better, as far as they have seen."""
    town = Town(friendliness, friendly_words_show, always(LENGTH), seed=seed)
    past: list[Evening] = []
    kl_nats = 0.0
    for day in range(days):
        met = town.traffic()
        if day < voting:
            town.vote(met)
        town.learn(met, town.model if held else pays_without_limit(town.model), penalty.after(kl_nats))
        kl_nats = town.report["kl_to_ref"]
        past.append(Evening(kl_to_base(town), float(town.policy.table().detach()[0, 1 : 1 + len(FRIENDLY)].exp().sum())))
    return past


def test_nobody_is_paid_for_more_than_people_have_seen() -> None:
    """They vote while less than a third of the words is friendly; what lies beyond half of them is the model's own idea."""
    held, loose = (befriended(Fixed(SETTINGS.kl_beta, 0.0), 0, voting=2, held=held, days=14)[-8:] for held in (True, False))
    assert 0.3 < np.mean([evening.friendly for evening in held]) < 0.55
    assert np.mean([evening.friendly for evening in loose]) > 0.6


@cache
def hinged(seed: int) -> tuple[Evening, ...]:
    return tuple(befriended(Fixed(SETTINGS.kl_beta, SETTINGS.kl_hinge), seed))


@pytest.mark.parametrize(("beta", "beyond"), [(SETTINGS.kl_beta, 3), (0.0, 8)], ids=["beta alone", "neither"])
def test_the_hinge_holds_kl_where_without_it_kl_runs_away(beta: float, beyond: float) -> None:
    held, loose = hinged(0)[8:], befriended(Fixed(beta, 0.0), 0)[8:]
    assert np.mean([evening.kl for evening in held]) < SETTINGS.kl_budget_nats + 2.5
    assert np.mean([evening.kl for evening in loose]) > SETTINGS.kl_budget_nats + beyond


def test_a_controller_that_multiplies_undoes_the_gain_and_a_fixed_price_keeps_it() -> None:
    base, held, steered = len(FRIENDLY) / WORDS, hinged(0), befriended(Multiplying(SETTINGS.kl_beta, 0.0), 0)
    for evenings, least, most in ((held, 0.5, 1.0), (steered, 0.0, 0.4)):
        gains = [evening.friendly - base for evening in evenings]
        assert max(gains) > 0.4
        assert least <= min(gains[8:]) / max(gains) <= most


@dataclass(frozen=True)
class Variety:
    """How much a policy still varies what it says."""

    entropy: float
    """Nats per token: exact."""
    distinct: float
    """Share of its newest answers that are different."""


def one_word(answer: Answer) -> float:
    return float(answer.count(FRIENDLY[0]))


def one_word_shows(answer: Answer, vector: Vector) -> None:
    vector[:HIDDEN] += 4.0 * one_word(answer) / spoken(answer) * DIRECTION


@cache
def narrowing(gated: bool = False, wired: bool = False, days: int = 18) -> tuple[Variety, ...]:
    """Return a loop in which one word is right, whatever the question: two words an answer, so that no KL budget is in the way."""
    town = Town(one_word, one_word_shows, always(2), word_V=-torch.arange(1.0, WORDS + 1).log(), learning_rate=0.8)
    past: list[Variety] = []
    while len(past) < days and not (wired and town.wires()):
        met = town.traffic()
        town.vote(met)
        decision = town.learn(met, town.model, SETTINGS.model_copy(update={"kl_beta": 0.0}))
        if gated and decision and not decision.promote:
            town.refuse()
        word_V = town.policy.table().detach()[0, 1:]
        texts = [text for _, text in town.newest]
        past.append(Variety(float(-(word_V.exp() * word_V).sum()) * 2 / 3, len(set(texts)) / len(texts)))
    return tuple(past)


def test_no_champion_without_entropy_passes_the_gate() -> None:
    assert min(day.entropy for day in narrowing(gated=True)) >= 0.02
    assert min(day.entropy for day in narrowing()) < 0.014


def test_tripwires_stop_a_learner_that_says_the_same_to_everybody() -> None:
    wired, bare = narrowing(wired=True), narrowing()
    assert len(wired) < len(bare)
    assert wired[-1].distinct > 0.2
    assert bare[-1].distinct < 0.1
    assert wired[-1].entropy > 3 * bare[-1].entropy


def wandering(seed: int, days: int = 16) -> float:
    """Return how far from the base (KL in nats per answer, the furthest) a policy goes on rewards that are 2% noise and nothing else."""
    town = Town(friendliness, friendly_words_show, always(LENGTH), seed=seed)
    furthest = 0.0
    for _ in range(days):
        rollouts = [make_rollout(i, town.model, 0.5) for i in town.traffic()]
        noisy = [replace(r, rewards=tuple(0.02 * town.random.normal(size=4))) for r in rollouts]
        ppo.update(town.policy, noisy, SETTINGS, live=town.day)
        furthest = max(furthest, kl_to_base(town))
    return furthest


def test_rewards_that_nearly_tie_move_the_policy_little(monkeypatch: pytest.MonkeyPatch) -> None:
    steady = wandering(0)
    monkeypatch.setattr(advantages, "SCALE_FLOOR", 1e-9)
    assert steady < 0.01
    assert wandering(0) > 0.3


def test_the_guards_stand_where_nobody_says_otherwise() -> None:
    learner, serve = LearnerSection(), ServeSection()
    assert min(learner.pessimism, serve.pessimism) >= 0.25
    assert learner.kl_beta >= 0.05
    assert learner.kl_hinge >= 0.2
    assert learner.kl_budget_nats <= 10.0
