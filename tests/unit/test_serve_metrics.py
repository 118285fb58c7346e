"""What is counted of an answered request: its tokens, and apart from them those that were sampled for learning alone."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from attune.frozen import FrozenBase
from attune.registry import Registry
from attune.types import LEARNING, ArtifactKind
from feedback.views import Views
from serve import metrics
from serve.announcer import Announcer
from serve.scorer import Scorer, Wish
from tests.suites.events import interaction

KINDS: tuple[ArtifactKind, ...] = ("reward", "policy")


class Votes:
    """The store's view of when votes were received: all of them a while ago."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def received_at(self, feedback_ids: Sequence[str]) -> list[float]:
        self.asked.append(list(feedback_ids))
        return [time.time() - 3.0] * len(feedback_ids)


def test_votes_of_a_version_that_was_passed_over_are_counted_with_the_one_that_went_live(tmp_path: Path) -> None:
    registry, votes = Registry(tmp_path), Votes()
    announcer = Announcer(registry, cast(Views, votes))
    for number in range(1, 5):
        registry.publish(
            "reward", {"x": b""}, parent=number - 1, base_model="m", base_revision="", trained_through=number,
            report={"thumb_ece": number / 10, "correlation_with_length": -number / 10},
            events=(f"fb-{number}",),
        )  # fmt: skip
        registry.promote("reward", number, by="learner", reason="refitted")
    for number in (1, 4):  # while another version was proved, two came and went
        asyncio.run(announcer("reward", number))
    assert votes.asked == [["fb-1"], ["fb-4", "fb-3", "fb-2"]]
    asyncio.run(announcer("reward", 4))  # the engine died, or what came after it was rolled back
    assert len(votes.asked) == 2
    assert metrics.REWARD_QUALITY.labels("thumb", "ece")._value.get() == 0.4
    assert metrics.REWARD_STYLE.labels("length")._value.get() == -0.4


def test_votes_of_a_version_that_went_live_before_this_server_started_are_not_counted_again(tmp_path: Path) -> None:
    registry, votes = Registry(tmp_path), Votes()
    for number in (1, 2):
        if number == 2:
            announcer = Announcer(registry, cast(Views, votes))
        registry.publish(
            "policy", {"x": b""}, parent=0, base_model="m", base_revision="", trained_through=0, report={}, events=(str(number),)
        )
        registry.promote("policy", number, by="learner", reason="passed")
    for number in (1, 2):
        asyncio.run(announcer("policy", number))
    assert votes.asked == [["2"]]


def test_votes_are_counted_once_whatever_was_rolled_back_and_for_each_kind_apart(tmp_path: Path) -> None:
    registry, votes = Registry(tmp_path), Votes()
    announcer = Announcer(registry, cast(Views, votes))
    for number, parent in ((1, 0), (2, 1), (3, 2), (4, 2), (5, 4), (6, 5)):  # 3 was rolled back: its votes are 4's
        for kind in KINDS:
            registry.publish(
                kind, {"x": b""}, parent=parent, base_model="m", base_revision="", trained_through=number, report={},
                events=(f"{kind}-{number}",),
            )  # fmt: skip
            registry.promote(kind, number, by="learner", reason="made")
    live: list[tuple[ArtifactKind, int]] = [("reward", 1), ("reward", 5), ("policy", 2), ("reward", 6), ("policy", 5)]
    for kind, number in live:
        asyncio.run(announcer(kind, number))
    assert votes.asked == [["reward-1"], ["reward-5", "reward-4", "reward-2"], ["policy-2"], ["reward-6"], ["policy-5", "policy-4"]]


def test_a_report_is_shown_for_as_long_as_its_version_is_live(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    announcer = Announcer(registry, cast(Views, Votes()))
    shown = []
    for number, report in ((1, {"kl_to_ref": 2.0, "entropy": 1.0}), (2, {"loss": 0.5})):  # as of PPO, as of demonstrations
        registry.publish("policy", {"x": b""}, parent=0, base_model="m", base_revision="", trained_through=number, report=report)
        asyncio.run(announcer("policy", number))
        shown.append({sample.labels["figure"] for sample in metrics.POLICY_FIGURE.collect()[0].samples})
    asyncio.run(announcer("policy", 0))
    assert shown == [{"kl_to_ref", "entropy"}, {"loss"}]
    assert not metrics.POLICY_FIGURE.collect()[0].samples


class Broken:
    """A frozen pass that fails, as it might where memory runs out."""

    feature_width = 4

    def look(self, *what: object) -> None:
        raise MemoryError


async def test_a_reply_whose_ranking_fails_is_given_unranked_and_counted() -> None:
    candidates, before = interaction("i1").candidates, metrics.SCORER_FAILURES._value.get()
    scored = await Scorer(cast(FrozenBase, Broken()), 1.0).score([1], candidates, 0.7, Wish("Hi.", {}))
    assert (scored.candidates, scored.reward_version) == (candidates, 0)
    assert metrics.SCORER_FAILURES._value.get() == before + 1


def sampled() -> tuple[float, float]:
    return metrics.TOKENS._value.get(), metrics.LEARNING_TOKENS._value.get()


def test_the_share_of_generation_that_learning_takes_is_in_two_counters() -> None:
    asked = interaction("i1", candidates=4)
    tokens = sum(len(c.token_ids) for c in asked.candidates)
    assert tokens > 0
    before = sampled()
    metrics.observe(asked)
    assert sampled() == (before[0] + tokens, before[1])
    metrics.observe(replace(asked, conversation_id=LEARNING))
    assert sampled() == (before[0] + 2 * tokens, before[1] + tokens)
