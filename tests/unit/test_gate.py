"""The gate, the state table's neighbour: what may go live, and what a rollout must be to be learned from."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from attune.types import Candidate, Interaction, Sampling
from learner.evaluate import Seen, held_out_reward, kl_to_base, step_kl
from learner.gate import judge
from learner.rollout import Rollout, tied, unusable

GOOD: dict[str, Any] = {
    "kl_before": 4.0, "kl_after": 5.0, "entropy_before": 1.0, "entropy_after": 0.9, "held_out_before": 0.2, "held_out_after": 0.3,
    "empty_share_before": 0.0, "empty_share_after": 0.01, "policy_loss": 0.1,
}  # fmt: skip


def test_a_good_report_passes() -> None:
    assert judge(GOOD, 30.0).promote


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"policy_loss": math.nan}, "finite"),
        ({"kl_after": 31.0}, "KL"),
        ({"entropy_after": 0.001}, "entropy"),
        ({"held_out_after": -0.5}, "held-out"),
        ({"empty_share_after": 0.5}, "empty"),
    ],
)
def test_each_reason_alone_is_enough(change: dict[str, Any], word: str) -> None:
    decision = judge(GOOD | change, 30.0)
    assert not decision.promote
    assert word in " ".join(decision.reasons)


@pytest.mark.parametrize(
    "change",
    [
        {"kl_before": 40.0, "kl_after": 35.0},
        {"entropy_before": 0.005, "entropy_after": 0.01},
        {"empty_share_before": 0.9, "empty_share_after": 0.5},
    ],
)
def test_a_champion_beyond_a_limit_may_be_mended(change: dict[str, Any]) -> None:
    assert judge(GOOD | change, 30.0).promote


def interaction(**more: Any) -> Interaction:
    candidates = tuple(Candidate(k, "x", (1, 2), (-1.0, -1.0), "stop", (-1.0, -1.0), b"\0\0") for k in range(2))
    return Interaction("i", 0.0, (), (5,), Sampling(0.7), candidates, (0,), (0.5,), 3, 1, "t", **more)


def test_what_ppo_may_learn_from() -> None:
    good = interaction()
    assert unusable(good, live=4, max_staleness=8) is None
    assert unusable(good, live=12, max_staleness=8) == "stale"
    assert unusable(good, live=2, max_staleness=8) == "stale"  # sampled from a version that was rolled back
    assert unusable(replace(good, sampling=Sampling(0.7, top_p=0.9)), 4, 8) == "sampling"
    assert unusable(replace(good, sampling=Sampling(0.0)), 4, 8) == "sampling"
    assert unusable(replace(good, candidates=good.candidates[:1]), 4, 8) == "single"
    unseen = tuple(replace(c, features=None) for c in good.candidates)
    assert unusable(replace(good, candidates=unseen), 4, 8) == "unscored"


def group(*rewards: float) -> Rollout:
    rows = tuple((-1.0, -1.0) for _ in rewards)
    return Rollout("i", (5,), tuple((1, 2) for _ in rewards), rows, rows, rewards, 0.7, 0)


def test_ties_teach_nothing() -> None:
    assert tied(group(1.0, 1.0))
    assert not tied(group(1.0, 1.1))


def test_held_out_reward_follows_where_the_policy_went() -> None:
    one, zero = group(1.0, 0.0), torch.zeros(2)
    same = {one.interaction_id: Seen(torch.tensor([-2.0, -2.0]), zero, 0.0)}
    moved = {one.interaction_id: Seen(torch.tensor([-1.0, -4.0]), zero, 0.0)}
    assert held_out_reward([one], same) == pytest.approx(0.5)
    assert held_out_reward([one], moved) == pytest.approx(math.exp(1) / (math.exp(1) + math.exp(-2)))
    assert kl_to_base([one], same) == pytest.approx(0.0)
    expected = (math.exp(1) * 1.0 + math.exp(-2) * -2.0) / (math.exp(1) + math.exp(-2))
    assert kl_to_base([one], moved) == pytest.approx(expected)
    assert step_kl([one], same, same) == 0.0
    assert step_kl([one], same, moved) > 0.5
