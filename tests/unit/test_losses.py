"""The policy objective on toys: what equal policies give, which way gradients point, what clipping and filters stop."""

import pytest
import torch

from learner.losses import importance, policy_loss, sequence_kept

ONES = torch.ones(2)


def loss(logprob: torch.Tensor, prox: torch.Tensor, behaviour: torch.Tensor, advantage: list[float], keep: torch.Tensor = ONES):  # type: ignore[no-untyped-def]
    return policy_loss(logprob, prox, behaviour, torch.tensor(advantage), keep, clip_low=0.2, clip_high=0.28)


def test_equal_policies() -> None:
    logprob = torch.tensor([-1.0, -2.0])
    result = loss(logprob, logprob, logprob, [1.0, -1.0])
    assert (result.approx_kl, result.clipfrac, result.importance_weight, result.ess) == pytest.approx((0.0, 0.0, 1.0, 1.0))
    assert float(result.loss) == pytest.approx(0.0)


def test_gradient_raises_the_good_token_and_lowers_the_bad_one() -> None:
    logprob = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss(logprob, logprob.detach(), logprob.detach(), [1.0, -1.0]).loss.backward()
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize(("shift", "advantage"), [(0.5, 1.0), (-0.5, -1.0)])
def test_no_gradient_beyond_the_clip(shift: float, advantage: float) -> None:
    prox = torch.tensor([-1.0, -2.0])
    logprob = (prox + shift).requires_grad_(True)
    result = loss(logprob, prox, prox, [advantage, advantage])
    result.loss.backward()
    assert result.clipfrac == 1.0
    assert logprob.grad is not None
    assert logprob.grad.abs().max() == 0


def test_dual_clip_bounds_a_negative_advantage() -> None:
    prox = torch.tensor([-9.0, -9.0])
    result = loss(prox + 3.0, prox, prox, [-1.0, -1.0])
    assert float(result.loss) == pytest.approx(3.0)


def test_importance_is_truncated_and_nan_counts_as_no_change() -> None:
    weights = importance(torch.tensor([0.0, -1.0, -1.0]), torch.tensor([-9.0, float("nan"), -0.5]))
    assert weights.tolist() == pytest.approx([2.0, 1.0, 0.60653], rel=1e-4)


def test_a_filtered_answer_weakens_the_step_and_does_not_rescale_the_rest() -> None:
    logprob = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss(logprob, logprob.detach(), logprob.detach(), [1.0, 1.0], keep=torch.tensor([1.0, 0.0])).loss.backward()
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([-0.5, 0.0])


def test_sequences_too_unlikely_by_now_are_dropped() -> None:
    behaviour = torch.full((5,), -1.0)
    assert sequence_kept(behaviour + 0.1, behaviour)
    assert not sequence_kept(behaviour + 0.5, behaviour)
    assert not sequence_kept(behaviour - 0.5, behaviour)
