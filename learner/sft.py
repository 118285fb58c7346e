"""Supervised fine-tuning: the policy is taught answers as people would have had them. Leaves files and versions to `sft_command`.

The loss is the mean negative log-likelihood of an answer's tokens (the prompt's are not learned). PPO adds the same loss, with a small
weight, for the edits among its votes, and for a few of the demonstrations that the policy was taught before: votes should not undo them.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from attune.errors import Diverged, RegistryError
from attune.registry import Registry
from attune.types import TAUGHT
from learner.policy import Policy


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the answer that a person wants to it, as token ids; the answer with its end token."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    weight: float = 1.0


def answer_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the tokens of an answer, with its end where the tokenizer has one."""
    ids, end = tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), tokenizer.eos_token_id
    return ids if end is None else (*ids, end)


def nll(policy: Policy, example: Example) -> torch.Tensor:
    """Return the mean negative log-likelihood of the answer's tokens (nats, temperature 1), differentiable."""
    logprob_P, _ = policy.logprobs(policy.row(example.prompt, [example.answer]), 1.0)
    return -logprob_P.mean()


def to_file(examples: Sequence[Example]) -> bytes:
    """Return demonstrations as the file `TAUGHT` of a version."""
    return json.dumps([{"prompt": e.prompt, "answer": e.answer} for e in examples]).encode()


def taught(registry: Registry, policy: int) -> list[Example]:
    """Return what a policy version and those that it was made from were taught by demonstrations, the newest file first."""
    found: list[Example] = []
    while policy:
        version = registry.version("policy", policy)
        if TAUGHT in version.files:
            try:
                said = json.loads((registry.folder("policy", policy) / TAUGHT).read_bytes())
                found += [Example(tuple(one["prompt"]), tuple(one["answer"])) for one in said]
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise RegistryError(f"the demonstrations of policy version {policy} cannot be read: {error}") from error
        policy = version.parent
    return found


def held_out_nll(policy: Policy, examples: Sequence[Example]) -> float:
    """Return the mean of `nll` over examples; 0 for none."""
    with torch.no_grad():
        return sum(float(nll(policy, example)) for example in examples) / max(1, len(examples))


def train(policy: Policy, examples: Sequence[Example], *, epochs: int, batch: int, grad_clip: float, seed: int) -> dict[str, float]:
    """Take one optimizer step per batch, in an order that the seed decides; raises `Diverged` if a loss is not finite."""
    random, losses = Random(seed), list[float]()
    for _ in range(epochs):
        order = random.sample(range(len(examples)), len(examples))
        for start in range(0, len(order), batch):
            part = [examples[i] for i in order[start : start + batch]]
            weight = sum(example.weight for example in part)
            for example in part:
                loss = nll(policy, example)
                losses.append(float(loss.detach()))
                (loss * (example.weight / weight)).backward()  # type: ignore[no-untyped-call]
            if not math.isfinite(sum(losses)) or not math.isfinite(policy.step(grad_clip)):
                raise Diverged("the loss of the demonstrations is not finite")
    return {"sft_loss": sum(losses) / max(1, len(losses)), "examples": float(len(examples))}
