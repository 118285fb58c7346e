"""The adapter: version 0 is the base, the chunked head equals the plain one with its gradient, and a state comes back whole."""

from pathlib import Path

import pytest
import torch

from attune.config import LearnerSection, ModelSection
from attune.frozen import Answer, FrozenBase, load_base
from learner import ppo
from learner.policy import Policy
from learner.rollout import Rollout

PROMPT, ANSWERS = tuple(range(10, 25)), (tuple(range(40, 52)), tuple(range(60, 90)), tuple(range(70, 75)))


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    return Policy(load_base(str(tiny_model), None, torch.float32), ModelSection(), "tiny", 1e-2, 0)


def rollout(policy: Policy, rewards: tuple[float, ...]) -> Rollout:
    with torch.no_grad():
        packed = policy.row(PROMPT, ANSWERS)
        logprob_P, _ = policy.logprobs(packed, 0.7)
    rows = tuple(tuple(logprob_P[span].tolist()) for span in packed.spans)
    return Rollout("i", PROMPT, ANSWERS, rows, rows, rewards, 0.7, 0)


def total(policy: Policy, answer: int) -> float:
    with torch.no_grad():
        packed = policy.row(PROMPT, ANSWERS)
        return float(policy.logprobs(packed, 0.7)[0][packed.spans[answer]].sum())


def test_version_0_is_the_base(policy: Policy, tiny_model: Path) -> None:
    base = FrozenBase(load_base(str(tiny_model), None, torch.float32))
    expected = [x for seen in base.look(PROMPT, [Answer(a, True) for a in ANSWERS], 0.7) for x in seen.ref_logprobs]
    found, _ = policy.logprobs(policy.row(PROMPT, ANSWERS), 0.7)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_chunked_head_equals_the_plain_one_with_its_gradient(policy: Policy) -> None:
    policy.restore([m + 0.02 * torch.randn(m.shape, generator=torch.Generator().manual_seed(1)) for m in policy.masters], share=0.0)
    packed = policy.row(PROMPT, ANSWERS)
    weight_P = torch.linspace(-1, 1, len(packed.target_P))
    logprob_P, entropy_P = policy.logprobs(packed, 0.7)
    (logprob_P * weight_P).sum().backward()
    chunked = [w.grad.clone() for w in policy.weights if w.grad is not None]
    for weight in policy.weights:
        weight.grad = None
    logits_PV = policy.network(input_ids=packed.input_ids_1T, position_ids=packed.position_ids_1T, attention_mask=packed.mask_11TT).logits[
        0
    ][packed.predict_P]
    log_PV = (logits_PV / 0.7).log_softmax(-1)
    plain_P = log_PV.gather(1, packed.target_P[:, None])[:, 0]
    (plain_P * weight_P).sum().backward()
    plain = [w.grad for w in policy.weights if w.grad is not None]
    assert logprob_P.tolist() == pytest.approx(plain_P.tolist(), abs=1e-5)
    assert entropy_P.tolist() == pytest.approx((-(log_PV.exp() * log_PV).sum(1)).tolist(), abs=1e-4)
    assert len(chunked) == len(plain) > 0
    for a, b in zip(chunked, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-3)


def test_an_update_raises_the_rewarded_answer(policy: Policy) -> None:
    before = [total(policy, k) for k in range(3)]
    settings = LearnerSection(optimizer_steps=1, kl_beta=0.0, policy_lr=1e-2)
    report = ppo.update(policy, [rollout(policy, (2.0, -1.0, -1.0))], settings)
    after = [total(policy, k) for k in range(3)]
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert report["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert report["kl_to_ref"] == pytest.approx(0.0, abs=1e-3)


def test_the_hinge_pulls_a_strayed_answer_back(policy: Policy) -> None:
    far = rollout(policy, (0.0, 0.0, 0.0))
    shifted = (tuple(x - 2.0 for x in far.reference[0]), far.reference[1], far.reference[2])
    strayed = Rollout("i", PROMPT, ANSWERS, far.behaviour, shifted, far.rewards, 0.7, 0)
    before = total(policy, 0)
    ppo.update(policy, [strayed], LearnerSection(optimizer_steps=1, kl_beta=0.0, kl_hinge=0.3, kl_budget_nats=6.0, policy_lr=1e-2))
    assert total(policy, 0) < before


def test_state_comes_back_whole(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    settings = LearnerSection(optimizer_steps=1, policy_lr=1e-2)
    ppo.update(policy, [rollout(policy, (1.0, 0.0, -1.0))], settings)
    policy.save_state(tmp_path / "state.safetensors")
    again = Policy(load_base(str(tiny_model), None, torch.float32), ModelSection(), "tiny", 1e-2, 7)
    again.load_state(tmp_path / "state.safetensors")
    next_one = rollout(policy, (0.0, 1.0, -1.0))
    ppo.update(policy, [next_one], settings)
    ppo.update(again, [next_one], settings)
    for a, b in zip(policy.masters, again.masters, strict=True):
        assert torch.equal(a, b)


def test_a_published_adapter_loads_as_it_was(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    ppo.update(policy, [rollout(policy, (1.0, 0.0, -1.0))], LearnerSection(optimizer_steps=1, policy_lr=1e-2))
    for name, data in policy.adapter_files().items():
        (tmp_path / name).write_bytes(data)
    again = Policy(load_base(str(tiny_model), None, torch.float32), ModelSection(), "tiny", 1e-2, 7)
    again.load_adapter(tmp_path)
    assert [total(again, k) for k in range(3)] == pytest.approx([total(policy, k) for k in range(3)], abs=0.2)  # bf16
    again.reset()
    fresh = Policy(load_base(str(tiny_model), None, torch.float32), ModelSection(), "tiny", 1e-2, 0)
    assert total(again, 0) == pytest.approx(total(fresh, 0), abs=1e-5)


def test_half_a_step_back(policy: Policy) -> None:
    old = policy.snapshot()
    ppo.update(policy, [rollout(policy, (1.0, 0.0, -1.0))], LearnerSection(optimizer_steps=1, policy_lr=1e-2))
    new = policy.snapshot()
    policy.restore(old, share=0.5)
    for a, b, c in zip(policy.masters, old, new, strict=True):
        assert torch.allclose(a, (b + c) / 2)
