"""PPO's sums against brute force, and the promises of the scale and the hinge."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.advantages import gae, group_advantages, leave_one_out, scale, shaped

NUMBERS = st.lists(st.floats(-5, 5), min_size=1, max_size=8)


@given(NUMBERS, NUMBERS, st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_the_sum_it_stands_for(rewards: list[float], values: list[float], gamma: float, lam: float) -> None:
    count = min(len(rewards), len(values))
    r, v = rewards[:count], [*values[:count], 0.0]
    delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(count)]
    expected = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, count)) for t in range(count)]
    found = gae(torch.tensor(r, dtype=torch.float64), torch.tensor(v[:count], dtype=torch.float64), gamma, lam)
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_leave_one_out_is_the_others_mean(rewards: list[float]) -> None:
    expected = [r - (sum(rewards) - r) / (len(rewards) - 1) for r in rewards]
    assert leave_one_out(torch.tensor(rewards, dtype=torch.float64)).tolist() == pytest.approx(expected, abs=1e-9)


def test_one_answer_has_no_advantage() -> None:
    assert leave_one_out(torch.tensor([3.0])).tolist() == [0.0]


def test_group_advantages_equal_what_is_to_come_less_the_others_mean() -> None:
    rewards = [torch.tensor([0.1, 0.2, 1.0]), torch.tensor([-1.0]), torch.tensor([0.5, 0.5])]
    totals = [1.3, -1.0, 1.0]
    for k, found in enumerate(group_advantages(rewards, [torch.zeros_like(r) for r in rewards], 1.0)):
        others = [t for n, t in enumerate(totals) if n != k]
        expected = [float(rewards[k][t:].sum()) - sum(others) / 2 for t in range(len(rewards[k]))]
        assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_critics_values_are_of_what_the_baseline_leaves() -> None:
    rewards, values = [torch.tensor([0.1, 1.0]), torch.tensor([-1.0])], [torch.tensor([0.5, 0.25]), torch.tensor([0.75])]
    lam, baselines = 0.9, [-1.0, 1.1]
    last = 1.0 - baselines[0] - 0.25
    first, second = group_advantages(rewards, values, lam)
    assert first.tolist() == pytest.approx([0.1 + 0.25 - 0.5 + lam * last, last])
    assert second.tolist() == pytest.approx([-1.0 - baselines[1] - 0.75])


def test_the_scale_does_not_blow_up_noise() -> None:
    assert scale(2.0) == 2.0
    assert scale(0.001) == 0.6


def test_kl_and_terminal_reward_sum_up_within_the_budget() -> None:
    drift = torch.tensor([0.5, -0.25, 1.0])
    reward = shaped(2.0, drift, 4.0, beta=0.1, budget_nats=6.0, hinge=0.3)
    assert float(reward.sum()) == pytest.approx(2.0 - 0.1 * 1.25)


def test_the_hinge_takes_off_what_lies_beyond_the_budget() -> None:
    drift = torch.full((10,), 1.0)
    free, held = (shaped(0.0, drift, 10.0, beta=0.0, budget_nats=budget, hinge=0.3).sum() for budget in (20.0, 6.0))
    assert float(free) == 0.0
    assert float(held) == pytest.approx(-0.3 * 4)
