"""The gate, the state table's neighbour: what may go live, and what a rollout must be to be learned from."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from attune.packing import MAX_ROW_TOKENS
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
    long = tuple(replace(c, token_ids=(1,) * (MAX_ROW_TOKENS // 2)) for c in good.candidates)
    assert unusable(replace(good, candidates=long), 4, 8) == "long"


def group(*rewards: float) -> Rollout:
    rows = tuple((-1.0, -1.0) for _ in rewards)
    return Rollout("i", (5,), tuple((1, 2) for _ in rewards), rows, rows, rewards, 0.7, 0)


def test_ties_teach_nothing() -> None:
    assert tied(group(1.0, 1.0))
    assert not tied(group(1.0, 1.1))
    assert tied(group(1.0, 2.0, math.nan)), "nor does a reward that is no number"
    assert tied(group(1.0, math.inf))


def test_held_out_reward_follows_where_the_policy_went() -> None:
    one, zero = group(1.0, 0.0), torch.zeros(2)
    same = {one.interaction_id: Seen(tuple(torch.tensor([[-1.0, -1.0], [-1.0, -1.0]])), zero, 0.0)}
    moved = {one.interaction_id: Seen(tuple(torch.tensor([[-0.5, -0.5], [-2.0, -2.0]])), zero, 0.0)}
    assert held_out_reward([one], same) == pytest.approx(0.5)
    assert held_out_reward([one], moved) == pytest.approx(math.exp(1) / (math.exp(1) + math.exp(-2)))
    assert kl_to_base([one], same) == pytest.approx(0.0)
    expected = (math.exp(1) * 1.0 + math.exp(-2) * -2.0) / (math.exp(1) + math.exp(-2))
    assert kl_to_base([one], moved) == pytest.approx(expected)
    certain = {one.interaction_id: Seen(tuple(torch.tensor([[-1.0, -1.0], [6.0, 6.0]])), zero, 0.0)}
    assert held_out_reward([one], certain) == pytest.approx(1 / 11), "however likely an answer became, it counts for ten"
    assert step_kl([one], same, same) == 0.0
    assert step_kl([one], same, moved) > 0.5


def every_answer(first_V: torch.Tensor, then_VV: torch.Tensor) -> Seen:
    """Return what a policy over two tokens thinks of all answers of that length, in order."""
    size = len(first_V)
    rows = tuple(torch.stack([first_V[i], then_VV[i, j]]) for i in range(size) for j in range(size))
    return Seen(rows, torch.zeros(1), 0.0)


def test_the_step_of_an_update_is_the_divergence_of_the_old_policy_from_the_new() -> None:
    noise = torch.Generator().manual_seed(0)
    old, new = ([torch.randn(shape, generator=noise).log_softmax(-1) for shape in ((4,), (4, 4))] for _ in range(2))
    before, after = every_answer(*old), every_answer(*new)
    likely_N = before.totals().exp()
    divergence = float((likely_N * (before.totals() - after.totals())).sum())
    expected = 0.0
    for likely, before_T, after_T in zip(likely_N, before.logprob_NT, after.logprob_NT, strict=True):
        alone = [{"i": Seen((row,), torch.zeros(1), 0.0)} for row in (before_T, after_T)]
        expected += float(likely) * step_kl([group(0.0)], *alone)
    assert expected == pytest.approx(divergence, rel=1e-5)


def test_one_long_answer_that_drifted_a_little_at_each_token_is_no_far_step() -> None:
    before = {"i": Seen((torch.full((40,), -1.0),), torch.zeros(1), 0.0)}
    after = {"i": Seen((torch.full((40,), -0.9),), torch.zeros(1), 0.0)}
    assert step_kl([group(0.0)], before, before) == 0.0
    assert 0.1 < step_kl([group(0.0)], before, after) < 0.3  # over the whole answer, now 55 times as likely, it would be 50 nats
