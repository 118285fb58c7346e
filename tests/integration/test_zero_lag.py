"""What vLLM says it sampled with, and what the trainer computes for the same tokens under the same version, are the same log-probs."""

import time

import pytest
import torch

from attune.types import Interaction
from feedback.store import Store
from tests.fixtures.engine import Bench

pytestmark = pytest.mark.engine
REQUESTS = 12


def answered(bench: Bench, version: int) -> list[Interaction]:
    """Return what people were answered by a version, as the store has it."""
    with bench.http() as http:
        for number in range(REQUESTS):
            body = {"messages": [{"role": "user", "content": f"Say {number}."}], "max_tokens": 24, "seed": number, "candidates": 4}
            assert http.post("/v1/chat/completions", json=body).status_code == 200
    store, deadline = Store.open(bench.config.store_url), time.monotonic() + 20
    try:
        while True:
            found = [i for _, i in store.interactions_after(0) if i.policy_version == version]
            if len(found) == REQUESTS:
                return found
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        store.close()


def k3(difference: torch.Tensor) -> float:
    """Return the estimate of KL from log-ratios of samples that is never negative (Schulman's k3), in nats per token."""
    return float((difference.exp() - 1 - difference).mean())


def test_without_lag_sampler_and_trainer_are_one_policy(bench: Bench) -> None:
    bench.policy.reset()  # whatever other tests have made of it
    version = bench.publish(size=0.05, seed=77)
    bench.wait(lambda s: s["policy_version"] == version.number)
    trained, sampled, base = [], [], []
    for interaction in answered(bench, version.number):
        assert interaction.sampling.train_grade, "the model brings defaults of its own for top_p, top_k and repetition"
        row = bench.policy.row(interaction.prompt_token_ids, [c.token_ids for c in interaction.candidates])
        with torch.no_grad():
            trained.append(bench.policy.logprobs(row, interaction.sampling.temperature)[0])
        sampled += [x for c in interaction.candidates for x in c.logprobs]
        base += [x for c in interaction.candidates for x in c.ref_logprobs or ()]
    ours, theirs = torch.cat(trained), torch.tensor(sampled)
    assert len(ours) > 400
    assert k3(ours - theirs) < 5e-4
    assert k3(torch.tensor(base) - theirs) > 0.02  # and the version is another policy than the base: there was something to agree on
