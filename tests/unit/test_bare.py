"""What the loop without an engine draws: log-probs are those of the network, whatever prompts and answers share a batch."""

from pathlib import Path

import pytest
import torch

from attune.frozen import Answer, FrozenBase, load_base
from benchmarks import bare

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15]]
END = 2


def test_draws_come_with_their_log_probs(tiny_model: Path) -> None:
    torch.manual_seed(0)
    network = load_base(str(tiny_model), None, torch.float32)
    network.get_output_embeddings().weight.data[END] *= 3.0  # so that some answers end early
    with torch.inference_mode():
        ids, logprobs = bare.sample(network, PROMPTS, 4, END)
    assert len(ids) == 4 * len(PROMPTS)
    assert len({len(row) for row in ids}) > 1
    assert all(END not in row[:-1] and (row[-1] == END or len(row) == bare.MAX_TOKENS) for row in ids)
    for n, row in enumerate(ids):
        (look,) = FrozenBase(network).look(PROMPTS[n // 4], [Answer(row, True)], bare.TEMPERATURE)
        assert logprobs[n] == pytest.approx(look.ref_logprobs, abs=1e-4)
