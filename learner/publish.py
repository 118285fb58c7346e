"""From trained weights to a version that anyone can check: adapter, fingerprint, report."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from learner.policy import Policy
from learner.rollout import Rollout

FINGERPRINT_SEQUENCES = 3
FINGERPRINT_TOKENS = 40

Probe = tuple[tuple[int, ...], tuple[int, ...]]
"""Prompt and answer token ids of one fingerprint sequence."""


def fingerprint_probes(groups: Sequence[Rollout]) -> list[Probe]:
    """Return a few served answers, long enough to tell policies apart, from different requests where there are any."""
    longest = [(g.prompt, max(g.answers, key=len)) for g in groups]
    longest.sort(key=lambda probe: -min(len(probe[1]), FINGERPRINT_TOKENS))
    return [(prompt, answer[:FINGERPRINT_TOKENS]) for prompt, answer in longest[:FINGERPRINT_SEQUENCES]]


def probe_logprobs(policy: Policy, probes: Sequence[Probe]) -> list[list[float]]:
    """Return the log-probs (nats, temperature 1) of every probe's answer."""
    with torch.no_grad():
        return [policy.logprobs(policy.row(prompt, [answer]), 1.0)[0].tolist() for prompt, answer in probes]


def files(policy: Policy, probes: Sequence[Probe], parent: Sequence[Sequence[float]], report: Mapping[str, Any]) -> dict[str, bytes]:
    """Return everything to publish for the policy's present weights; `parent` holds the probes' log-probs before the update."""
    sequences = [
        {"prompt_token_ids": list(prompt), "token_ids": list(answer), "logprobs": new, "parent_logprobs": list(old)}
        for (prompt, answer), new, old in zip(probes, probe_logprobs(policy, probes), parent, strict=True)
    ]
    return policy.adapter_files() | {
        "fingerprint.json": json.dumps({"sequences": sequences}).encode(),
        "report.json": json.dumps(dict(report), indent=1).encode(),
    }
