"""The policy objective on toys: what equal policies give, which way gradients point, what clipping and filters stop."""

import math

import pytest
import torch

from learner.losses import Sums, importance, policy_loss, sequence_kept

ONES = torch.ones(2)


def loss(logprob: torch.Tensor, prox: torch.Tensor, behaviour: torch.Tensor, advantage: list[float], keep: torch.Tensor = ONES):  # type: ignore[no-untyped-def]
    return policy_loss(logprob, prox, behaviour, torch.tensor(advantage), keep, clip_low=0.2, clip_high=0.28)


def test_equal_policies() -> None:
    logprob = torch.tensor([-1.0, -2.0])
    total, sums = loss(logprob, logprob, logprob, [1.0, -1.0])
    expected = {"policy_loss": 0.0, "approx_kl": 0.0, "clipfrac": 0.0, "importance_weight": 1.0, "ess": 1.0}
    assert sums.means() == pytest.approx(expected)
    assert float(total) == pytest.approx(0.0)


def test_gradient_raises_the_good_token_and_lowers_the_bad_one() -> None:
    logprob = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss(logprob, logprob.detach(), logprob.detach(), [1.0, -1.0])[0].backward()
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([-1.0, 1.0])


@pytest.mark.parametrize(("shift", "advantage"), [(0.5, 1.0), (-0.5, -1.0)])
def test_no_gradient_beyond_the_clip(shift: float, advantage: float) -> None:
    prox = torch.tensor([-1.0, -2.0])
    logprob = (prox + shift).requires_grad_(True)
    total, sums = loss(logprob, prox, prox, [advantage, advantage])
    total.backward()
    assert sums.means()["clipfrac"] == 1.0
    assert sums.means()["approx_kl"] == pytest.approx(math.exp(shift) - 1 - shift, rel=1e-5)
    assert logprob.grad is not None
    assert logprob.grad.abs().max() == 0


def test_dual_clip_bounds_a_negative_advantage() -> None:
    prox = torch.tensor([-9.0, -9.0])
    _, sums = loss(prox + 3.0, prox, prox, [-1.0, -1.0])
    assert sums.means()["policy_loss"] == pytest.approx(3.0)


def test_importance_is_truncated_and_nan_counts_as_no_change() -> None:
    weights = importance(torch.tensor([0.0, -1.0, -1.0]), torch.tensor([-9.0, float("nan"), -0.5]))
    assert weights.tolist() == pytest.approx([2.0, 1.0, 0.60653], rel=1e-4)


def test_a_filtered_answer_weakens_the_step_and_does_not_rescale_the_rest() -> None:
    logprob = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss(logprob, logprob.detach(), logprob.detach(), [1.0, 1.0], keep=torch.tensor([1.0, 0.0]))[0].backward()
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([-1.0, 0.0])


def test_sequences_too_unlikely_by_now_are_dropped() -> None:
    behaviour = torch.full((5,), -1.0)
    assert sequence_kept(behaviour + 0.1, behaviour)
    assert not sequence_kept(behaviour + 0.5, behaviour)
    assert not sequence_kept(behaviour - 0.5, behaviour)


def test_rows_add_up_to_their_batch() -> None:
    logprob, prox, behaviour = (torch.randn(7, generator=torch.Generator().manual_seed(k)) for k in range(3))
    advantage, keep = [1.0, -0.5, 2.0, 0.0, -1.0, 0.3, 0.1], torch.tensor([1.0, 1, 0, 1, 1, 1, 0])
    _, whole = loss(logprob, prox, behaviour, advantage, keep)
    parts = [loss(logprob[s], prox[s], behaviour[s], advantage[s], keep[s])[1] for s in (slice(0, 3), slice(3, 7))]
    joined = sum(parts, Sums())
    assert joined.means() == pytest.approx(whole.means(), rel=1e-5)
    assert joined.deviation == pytest.approx(float(torch.tensor(advantage).std(unbiased=False)), rel=1e-5)
