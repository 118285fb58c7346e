"""The adapter: version 0 is the base, the chunked head equals the plain one with its gradient, and a state comes back whole."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attune.config import LearnerSection, ModelSection
from attune.errors import ConfigError, Diverged
from attune.frozen import Answer, FrozenBase, load_base, twin
from learner import challenger, evaluate, ppo
from learner.advantages import leave_one_out, scale
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
    generator = torch.Generator().manual_seed(1)
    policy.restore(replace(policy.snapshot(), masters=[m + 0.02 * torch.randn(m.shape, generator=generator) for m in policy.masters]))
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


def test_later_steps_are_clipped_around_the_policy_before_the_first(policy: Policy) -> None:
    policy.learning_rate = 1.5e-3
    settings = LearnerSection(optimizer_steps=2, kl_beta=0.0, max_groups_per_update=2)
    report = ppo.update(policy, [rollout(policy, (2.0, -1.0, -1.0)), rollout(policy, (2.0, -1.0, -1.0))], settings)
    assert report["steps"] == 2
    assert report["approx_kl"] > 0
    assert report["clipfrac"] > 0


def test_the_samplers_logprobs_stand_in_for_a_pass_of_our_own(policy: Policy) -> None:
    policy.learning_rate = 1e-4
    settings = LearnerSection(optimizer_steps=2, kl_beta=0.0, max_groups_per_update=2)
    groups, old = [rollout(policy, (2.0, -1.0, -1.0)), rollout(policy, (0.0, -1.0, 1.0))], policy.snapshot()
    figures = []
    for live in (None, 0):
        policy.restore(old)
        figures.append(ppo.update(policy, groups, settings, live=live))
    assert figures[0] == pytest.approx(figures[1], rel=1e-4, abs=1e-6)
    blind = replace(groups[1], behaviour=tuple(tuple(float("nan") for _ in row) for row in groups[1].behaviour))
    policy.restore(old)
    blinded = ppo.update(policy, [groups[0], blind], settings, live=0)
    assert (blinded["kept"], blinded["importance_weight"]) == (1.0, 1.0)  # what is not known of the sampler is taken for our own
    assert blinded["policy_loss"] == pytest.approx(figures[0]["policy_loss"], abs=0.01)


def test_steps_stop_once_the_policy_has_moved_too_far(policy: Policy) -> None:
    policy.learning_rate = 1.0
    settings = LearnerSection(optimizer_steps=2, kl_beta=0.0, max_groups_per_update=2)
    first = rollout(policy, (2.0, -1.0, -1.0))
    report = ppo.update(policy, [first, rollout(policy, (2.0, -1.0, -1.0))], settings)
    assert report["steps"] == 1
    assert all(weight.grad is None for weight in policy.weights)


def test_a_gradient_that_is_not_finite_changes_nothing_and_a_snapshot_mends_anything(policy: Policy) -> None:
    old = policy.snapshot()
    policy.weights[0].grad = torch.full_like(policy.weights[0], float("nan"))
    assert math.isnan(policy.step(1.0))
    assert all(torch.equal(m, o) for m, o in zip(policy.masters, old.masters, strict=True))
    with torch.no_grad():
        policy.masters[0].fill_(float("nan"))
    policy.restore(old)
    assert all(torch.equal(m, o) for m, o in zip(policy.masters, old.masters, strict=True))


def test_a_loss_or_a_gradient_that_is_not_finite_ends_the_update(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    old, group = policy.snapshot(), rollout(policy, (2.0, -1.0, -1.0))
    with pytest.raises(Diverged, match="loss is not finite"):
        ppo.update(policy, [replace(group, rewards=(math.nan, 1.0, 2.0))], LearnerSection())
    policy.restore(old)
    real = Policy.step

    def burst(self: Policy, *given: float) -> float:
        self.weights[0].grad = torch.full_like(self.weights[0], math.inf)
        return real(self, *given)

    monkeypatch.setattr(Policy, "step", burst)
    with pytest.raises(Diverged, match="gradient is not finite"):
        challenger.train(policy, [group], [], LearnerSection(), live=0, end_token=2, about={})
    assert all(torch.equal(a, b) for a, b in zip(policy.masters, old.masters, strict=True))


def test_a_challenger_that_moved_too_far_goes_back_by_halves_and_at_last_altogether(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, old = rollout(policy, (2.0, -1.0, -1.0)), policy.snapshot()
    settings = LearnerSection(optimizer_steps=1, kl_beta=0.0, max_groups_per_update=1)

    def moved(bound: float) -> tuple[float, float]:
        """Return how far a challenger is from its parent, in nats per answer and in its weights."""
        policy.restore(old)
        monkeypatch.setattr(ppo, "MAX_STEP_KL_NATS", bound)
        made = challenger.train(policy, [group], [], settings, live=0, end_token=2, about={})
        far = max(float((m.detach() - o).abs().max()) for m, o in zip(policy.masters, old.masters, strict=True))
        return made.report["step_kl"], far

    free, far = moved(1e9)
    held, near = moved(0.6 * free)
    assert held <= 0.6 * free
    assert far / near in [pytest.approx(2.0**halvings) for halvings in (1, 2, 3)]
    with pytest.raises(Diverged, match="even after halving it"):
        moved(1e-6 * free)
    assert all(torch.equal(m, o) for m, o in zip(policy.masters, old.masters, strict=True))


def test_a_smaller_update_takes_a_smaller_step(policy: Policy) -> None:
    one, old = rollout(policy, (2.0, -1.0, -1.0)), policy.snapshot()
    moved = []
    for groups in (1, 16):
        policy.restore(old)
        ppo.update(policy, [one], LearnerSection(optimizer_steps=1, max_groups_per_update=groups))
        moved.append(max(float((m.detach() - o).abs().max()) for m, o in zip(policy.masters, old.masters, strict=True)))
    assert moved[1] == pytest.approx(moved[0] / 4, rel=1e-3)


def test_rows_one_by_one_give_the_gradient_of_the_whole_batch(policy: Policy) -> None:
    groups = [rollout(policy, rewards) for rewards in ((2.0, -1.0, -1.0), (0.0, 1.5, 0.0))]
    total = torch.tensor(0.0)
    advantages, tokens = [], 0
    for group in groups:
        packed = policy.row(group.prompt, group.answers)
        logprob_P, _ = policy.logprobs(packed, group.temperature)
        reward_N = torch.tensor(group.rewards)
        flat_P = torch.cat([torch.full((s.stop - s.start,), float(a)) for s, a in zip(packed.spans, leave_one_out(reward_N), strict=True)])
        advantages.append(flat_P)
        total = total - (logprob_P * flat_P).sum()
        tokens += len(flat_P)
    (total / tokens / scale(float(torch.cat(advantages).std(unbiased=False)))).backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([w.grad.flatten() for w in policy.weights if w.grad is not None]).norm()
    policy.forget_gradients()
    report = ppo.update(policy, groups, LearnerSection(optimizer_steps=1, kl_beta=0.0))
    assert report["grad_norm"] == pytest.approx(float(expected), rel=1e-3)


def test_told_to_stop_in_the_middle(policy: Policy) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    old = policy.snapshot()
    with pytest.raises(KeyboardInterrupt):
        challenger.train(policy, [rollout(policy, (2.0, -1.0, -1.0))], [], LearnerSection(), live=0, end_token=2, about={}, between=stop)
    assert all(torch.equal(a, b) for a, b in zip(policy.masters, old.masters, strict=True))


def test_rollouts_too_old_for_the_policy_are_refused_and_leave_no_trace(policy: Policy) -> None:
    fresh, old = rollout(policy, (2.0, -1.0, -1.0)), policy.snapshot()
    strange = replace(fresh, behaviour=tuple(tuple(x - 3.0 for x in row) for row in fresh.behaviour))
    with pytest.raises(Diverged, match="too old"):
        challenger.train(policy, [strange], [], LearnerSection(), live=0, end_token=2, about={})
    assert all(torch.equal(a, b) for a, b in zip(policy.masters, old.masters, strict=True))
    assert all(weight.grad is None for weight in policy.weights)


def test_a_few_rollouts_too_old_for_the_policy_do_not_keep_it_from_learning_from_the_others(policy: Policy) -> None:
    fresh = rollout(policy, (2.0, -1.0, -1.0))
    strange = replace(fresh, behaviour=tuple(tuple(x - 3.0 for x in row) for row in fresh.behaviour))
    half = replace(fresh, behaviour=(fresh.behaviour[0], *strange.behaviour[1:]))
    settings, before, likely = LearnerSection(optimizer_steps=2, max_groups_per_update=2), policy.snapshot(), total(policy, 0)
    report = ppo.update(policy, [strange, fresh], settings)
    assert report["steps"] == 1
    assert total(policy, 0) > likely
    policy.restore(before)
    report = ppo.update(policy, [half], settings)  # one answer of three is kept, and it counts in full
    assert report["steps"] == 1
    assert report["kept"] < 0.5 < report["ess"]


def test_two_networks_share_one_memory(tiny_model: Path) -> None:
    network = load_base(str(tiny_model), None, torch.float32)
    base = FrozenBase(twin(network))
    seen = base.look(PROMPT, [Answer(ANSWERS[0], True)], 0.7)
    policy = Policy(network, ModelSection(), "tiny", 1e-2, 0)
    ppo.update(policy, [rollout(policy, (1.0, 0.0, -1.0))], LearnerSection(optimizer_steps=1, policy_lr=1e-2))
    assert base.look(PROMPT, [Answer(ANSWERS[0], True)], 0.7) == seen
    assert base.network.get_input_embeddings().weight is policy.base.get_input_embeddings().weight


def test_the_probability_of_saying_nothing_is_exact(policy: Policy) -> None:
    with torch.no_grad():
        logits_V = policy.network(torch.tensor([list(PROMPT)])).logits[0, -1] / 0.7
    group = rollout(policy, (0.0, 0.0, 0.0))
    (seen,) = evaluate.look(policy, [group], 2).values()
    (without,) = evaluate.look(policy, [group]).values()
    assert seen.empty == pytest.approx(float(logits_V.softmax(-1)[2]), rel=1e-4)
    assert seen.totals().tolist() == pytest.approx(without.totals().tolist(), abs=1e-4)


def test_one_held_out_group_is_not_all_that_a_challenger_is_judged_on(policy: Policy) -> None:
    rollouts = [replace(rollout(policy, (2.0, -1.0, -1.0)), interaction_id=f"learned {n}") for n in range(4)]
    held_out = [replace(rollouts[0], interaction_id=f"held out {n}") for n in range(4)]
    for known in (1, 2, 3):
        made = challenger.train(policy, rollouts, held_out[:known], LearnerSection(), live=0, end_token=2, about={})
        assert len(made.seen) == challenger.MAX_CHECKS
        newest = {group.interaction_id for group in held_out[:known][-challenger.MAX_CHECKS :]}
        assert {name for name in made.seen if name.startswith("held out")} == newest
        policy.restore(made.before)


def test_what_was_looked_at_is_not_looked_at_again(policy: Policy) -> None:
    policy.learning_rate = 1e-4
    group, passes = rollout(policy, (2.0, -1.0, -1.0)), []
    held_out = [replace(group, interaction_id="held out")]
    settings = LearnerSection(optimizer_steps=1, kl_beta=0.0)
    about: dict[str, Any] = {"live": 0, "end_token": 2, "about": {}, "between": lambda: passes.append(1)}
    made = challenger.train(policy, [group], held_out, settings, **about)
    assert len(passes) == 2 + 2 + 2  # before, the row there and back, after
    anew = challenger.train(policy, [group], held_out, settings, known=made.seen, **about)
    assert len(passes) == 6 + 2 + 2
    assert {k: v for k, v in anew.report.items() if k.endswith("_before")} == pytest.approx(
        {k.replace("_after", "_before"): v for k, v in made.report.items() if k.endswith("_after")}
    )


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
    for other in (ModelSection(lora_top_layers=1.0), ModelSection(lora_rank=8), ModelSection(lora_alpha=7)):
        with pytest.raises(ConfigError, match="lora_top_layers"):
            Policy(load_base(str(tiny_model), None, torch.float32), other, "tiny", 1e-2, 0).load_adapter(tmp_path)


def test_version_0_is_the_same_after_learning_as_after_a_restart(policy: Policy) -> None:
    first = policy.snapshot()
    for _ in range(2):  # the first step moves B alone
        ppo.update(policy, [rollout(policy, (1.0, 0.0, -1.0))], LearnerSection(optimizer_steps=1, policy_lr=1e-2))
    assert not all(torch.equal(a, b) for a, b in zip(policy.masters[::2], first.masters[::2], strict=True))
    policy.reset()
    assert all(torch.equal(a, b) for a, b in zip(policy.masters, first.masters, strict=True))


def test_half_a_step_back(policy: Policy) -> None:
    old = policy.snapshot()
    ppo.update(policy, [rollout(policy, (1.0, 0.0, -1.0))], LearnerSection(optimizer_steps=1, policy_lr=1e-2))
    new = policy.snapshot()
    policy.retreat(old, 0.5)
    for a, b, c in zip(policy.masters, old.masters, new.masters, strict=True):
        assert torch.allclose(a, (b + c) / 2)
