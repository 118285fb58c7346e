"""One whole update against a second implementation without any of its shortcuts: one answer at a time, no packing, no chunked head, no
sums added up row by row, adapters merged into the weights, Adam written out. Nothing of `learner` is called in it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call  # type: ignore[attr-defined]
from transformers import AutoModelForCausalLM

from attune.config import LearnerSection, ModelSection
from attune.frozen import load_base
from learner import ppo
from learner.policy import Policy
from learner.rollout import Rollout

TEMPERATURE = 0.7
STEPS, EPOCHS = 2, 2
SETTINGS = LearnerSection(
    optimizer_steps=STEPS, ppo_epochs=EPOCHS, policy_lr=1e-4, kl_beta=0.1, kl_budget_nats=1.0, max_groups_per_update=4
)


@dataclass
class Adapter:
    """A and B of every adapted matrix, with Adam's moments."""

    weights: dict[str, torch.Tensor]
    first: dict[str, torch.Tensor]
    second: dict[str, torch.Tensor]
    count: int = 0


class Straight:
    """The same update, written down as the formulas have it."""

    def __init__(self, folder: Path, adapter: dict[str, torch.Tensor], critic_F: torch.Tensor, lam: float) -> None:
        self.network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        self.plain = {name: p.detach() for name, p in self.network.named_parameters()}
        self.critic_F, self.lam = critic_F, lam
        zeros = {name: torch.zeros_like(w) for name, w in adapter.items()}
        self.adapter = Adapter(
            {name: w.clone().requires_grad_(True) for name, w in adapter.items()}, zeros, {name: w.clone() for name, w in zeros.items()}
        )

    def answer(self, prompt: tuple[int, ...], answer: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probs and values, token by token, of one answer in a row of its own."""
        merged = dict(self.plain)
        for name in self.plain:
            a, b = (self.adapter.weights.get(name.removesuffix("weight") + f"lora_{k}.weight") for k in "AB")
            if a is not None and b is not None:
                merged[name] = self.plain[name] + 2.0 * b @ a
        out = functional_call(self.network, merged, (torch.tensor([[*prompt, *answer]]),), {"output_hidden_states": True})
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        log_PV = (out.logits[0, places.start : places.stop] / TEMPERATURE).log_softmax(-1)
        hidden_PH = out.hidden_states[-1][0, places.start : places.stop].detach()
        values = []
        for h in hidden_PH:
            unit = h / h.pow(2).mean().sqrt()
            values.append(float((torch.cat([unit, torch.ones(1)]) / math.sqrt(len(h))) @ self.critic_F))
        return torch.stack([log_PV[t, token] for t, token in enumerate(answer)]), torch.tensor(values)

    def update(self, rollouts: list[Rollout]) -> None:
        with torch.no_grad():
            prox = [[self.answer(r.prompt, a)[0] for a in r.answers] for r in rollouts]
        fixed: dict[int, list[torch.Tensor]] = {}
        for _ in range(EPOCHS):
            for part in range(STEPS):
                chosen = range(part, len(rollouts), STEPS)
                loss, advantages = torch.tensor(0.0), []
                for i in chosen:
                    seen = [self.answer(rollouts[i].prompt, a) for a in rollouts[i].answers]
                    if i not in fixed:
                        fixed[i] = self.advantages(rollouts[i], prox[i], [v for _, v in seen])
                    for n, (logprob, _) in enumerate(seen):
                        mu, old, adv = torch.tensor(rollouts[i].behaviour[n]), prox[i][n], fixed[i][n]
                        mean_ratio = float((old - mu).mean().exp())
                        keep = 1.0 if 0.8 <= mean_ratio <= 1.25 else 0.0
                        for t in range(len(mu)):
                            weight = min(math.exp(float(old[t] - mu[t])), 2.0)
                            rho = (logprob[t] - old[t]).exp()
                            gain = torch.minimum(rho * adv[t], rho.clamp(0.8, 1.28) * adv[t])
                            if adv[t] < 0:
                                gain = torch.maximum(gain, 3.0 * adv[t])
                            loss = loss - keep * weight * gain
                    advantages += fixed[i]
                flat = torch.cat(advantages)
                deviation = float(flat.std(unbiased=False))
                divisor = max(0.6, deviation)
                self.adam(loss / len(flat) / divisor, SETTINGS.policy_lr * deviation / divisor)

    def advantages(self, rollout: Rollout, prox: list[torch.Tensor], values: list[torch.Tensor]) -> list[torch.Tensor]:
        shaped = []
        for n, old in enumerate(prox):
            ratio, drift = old - torch.tensor(rollout.reference[n]), old - torch.tensor(rollout.sharp[n])
            reward = [-0.1 * max(-10.0, min(10.0, float(x))) for x in drift]
            reward[-1] += rollout.rewards[n] - 0.3 * max(0.0, float(ratio.sum()) - 1.0)
            shaped.append(reward)
        totals = [sum(reward) for reward in shaped]
        result = []
        for n, reward in enumerate(shaped):
            reward[-1] -= sum(t for k, t in enumerate(totals) if k != n) / (len(totals) - 1)
            value = [*values[n].tolist(), 0.0]
            delta = [reward[t] + value[t + 1] - value[t] for t in range(len(reward))]
            result.append(torch.tensor([sum(self.lam ** (k - t) * delta[k] for k in range(t, len(delta))) for t in range(len(delta))]))
        return result

    def adam(self, loss: torch.Tensor, rate: float) -> None:
        state = self.adapter
        grads = dict(zip(state.weights, torch.autograd.grad(loss, list(state.weights.values())), strict=True))
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in grads.values()))
        state.count += 1
        for name, grad in grads.items():
            grad = grad * min(1.0, 1.0 / (norm + 1e-6))
            state.first[name] = 0.9 * state.first[name] + 0.1 * grad
            state.second[name] = 0.95 * state.second[name] + 0.05 * grad * grad
            first, second = state.first[name] / (1 - 0.9**state.count), state.second[name] / (1 - 0.95**state.count)
            with torch.no_grad():
                state.weights[name] -= rate * first / (second.sqrt() + 1e-8)


def rollouts(policy: Policy) -> list[Rollout]:
    """Return four requests of unlike lengths, sampled by a policy that was a little different, from a base that was more so."""
    generator = torch.Generator().manual_seed(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 500, (count,), generator=generator).tolist())

    made = []
    for group in range(4):
        prompt, answers = ids(9 + group), tuple(ids(length) for length in (3, 11, 6, 1 + group))
        with torch.no_grad():
            packed = policy.row(prompt, answers)
            logprob_P, _ = policy.logprobs(packed, TEMPERATURE)
        noise = [0.15, 0.05, 0.02, 0.9]
        behaviour = tuple(
            tuple((logprob_P[s] + n * torch.randn(s.stop - s.start, generator=generator)).tolist())
            for s, n in zip(packed.spans, noise, strict=True)
        )
        reference = tuple(
            tuple((logprob_P[s] - 0.2 + 0.3 * torch.randn(s.stop - s.start, generator=generator)).tolist()) for s in packed.spans
        )
        rewards = tuple(torch.randn(4, generator=generator).tolist())
        sharp = tuple(tuple(x + 0.3 * float(torch.randn(1, generator=generator)) for x in row) for row in reference)
        made.append(Rollout(f"i{group}", prompt, answers, behaviour, reference, rewards, TEMPERATURE, 0, sharp=sharp))
    return made


@pytest.mark.parametrize("trusted", [False, True])
def test_an_update_equals_the_formulas_in_every_adapter_tensor(tiny_model: Path, trusted: bool) -> None:
    policy = Policy(load_base(str(tiny_model), None, torch.float32), ModelSection(lora_top_layers=1.0), "tiny", SETTINGS.policy_lr, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for master in policy.masters:
            master.add_(0.02 * torch.randn(master.shape, generator=generator))
    policy.retreat(policy.snapshot(), 0.0)
    if trusted:
        policy.critic.weight_F = torch.randn(policy.critic.weight_F.shape, generator=generator)
        policy.critic.explained = torch.tensor(1.0)
    assert policy.critic.trusted is trusted
    groups = rollouts(policy)
    names = [n.removeprefix("base_model.model.").replace(".default", "") for n, p in policy.network.named_parameters() if p.requires_grad]
    start = {name: master.detach().clone() for name, master in zip(names, policy.masters, strict=True)}
    straight = Straight(tiny_model, start, policy.critic.weight_F.clone(), 0.95 if trusted else 1.0)
    figures = ppo.update(policy, groups, SETTINGS)
    straight.update(groups)
    assert figures["steps"] == STEPS * EPOCHS
    assert 0 < figures["kept"] < 1  # the filter and the clips are in play
    assert figures["clipfrac"] > 0
    for name, master in zip(names, policy.masters, strict=True):
        step, expected = master.detach() - start[name], straight.adapter.weights[name].detach() - start[name]
        assert float(expected.abs().max()) > 1e-4, name
        assert float((step - expected).abs().max()) < 1e-4, name  # where a gradient is all but 0, Adam makes much of its rounding
        assert float((step - expected).norm() / expected.norm()) < 1e-2, name
