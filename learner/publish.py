"""From trained weights to a version that anyone can check: adapter, fingerprint, report."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from learner.policy import Policy
from learner.rollout import Rollout

FINGERPRINT_SEQUENCES = 3
FINGERPRINT_TOKENS = 40

Probe = tuple[tuple[int, ...], tuple[int, ...]]
"""Prompt and answer token ids of one fingerprint sequence."""


def fingerprint_probes(groups: Sequence[Rollout]) -> list[Probe]:
    """Return a few answers to one served request, that with the most tokens to tell policies apart by."""
    cut = [[(g.prompt, a[:FINGERPRINT_TOKENS]) for a in sorted(g.answers, key=len)[-FINGERPRINT_SEQUENCES:]] for g in groups]
    return max(cut, key=lambda probes: sum(len(answer) for _, answer in probes))


def probe_logprobs(policy: Policy, probes: Sequence[Probe]) -> list[list[float]]:
    """Return the log-probs (nats, temperature 1) of every probe's answer; neighbours with the same prompt share a pass."""
    found: list[list[float]] = []
    with torch.no_grad():
        for prompt, same in groupby(probes, key=lambda probe: probe[0]):
            packed = policy.row(prompt, [answer for _, answer in same])
            logprob_P, _ = policy.logprobs(packed, 1.0)
            found += [logprob_P[span].tolist() for span in packed.spans]
    return found


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
