"""Every fault of an adapter is refused for its own sake, from the files alone: the engine never loads one that is damaged."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from attune.errors import AdapterError
from serve.adapter import Limits, check

BASE = {"model.embed_tokens.weight": (50, 8), "model.layers.0.self_attn.q_proj.weight": (8, 8)}
STEM = "base_model.model.model.layers.0.self_attn.q_proj"
LIMITS = Limits(max_rank=4, max_context_tokens=32)


class Files:
    """A sound adapter's files, to be spoiled."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
        self.tensors = {f"{STEM}.lora_A.weight": torch.full((2, 8), 0.1), f"{STEM}.lora_B.weight": torch.full((8, 2), 0.1)}
        sequence = {"prompt_token_ids": [1, 2], "token_ids": [3], "logprobs": [-1.0], "parent_logprobs": [-1.5]}
        self.fingerprint: dict[str, Any] = {"sequences": [sequence]}
        self.more: dict[str, bytes] = {}

    def write(self, folder: Path) -> Path:
        """Write them into a folder and return it."""
        files = {
            "adapter_config.json": json.dumps(self.settings).encode(),
            "adapter_model.safetensors": save(self.tensors),
            "fingerprint.json": json.dumps(self.fingerprint).encode(),
        }
        for name, data in (files | self.more).items():
            (folder / name).write_bytes(data)
        return folder


def put(letter: str, value: float) -> Callable[[Files], None]:
    def spoil(files: Files) -> None:
        files.tensors[f"{STEM}.lora_{letter}.weight"][0, 0] = value

    return spoil


def high_rank(files: Files) -> None:
    files.settings |= {"r": 5}
    files.tensors = {f"{STEM}.lora_A.weight": torch.full((5, 8), 0.1), f"{STEM}.lora_B.weight": torch.full((8, 5), 0.1)}


FAULTS: list[tuple[str, Callable[[Files], Any], str]] = [
    ("rank", high_rank, r"rank 5 is above this server's 4 \(model\.lora_rank\)"),
    ("dora", lambda f: f.settings.update(use_dora=True), "DoRA adapters cannot be served"),
    ("nan", put("A", math.nan), "lora_A.weight holds values that are not finite"),
    ("infinite", put("B", math.inf), "lora_B.weight holds values that are not finite"),
    ("huge", put("B", -2e4), r"lora_B.weight holds 2e\+04, beyond the bound of 50"),
    ("pushed far", lambda f: [t.fill_(20.0) for t in f.tensors.values()], "and its partner change the weights by .* beyond the bound"),
    ("integers", lambda f: f.tensors.update({k: t.int() for k, t in f.tensors.items()}), "not a float"),
    ("shape", lambda f: f.tensors.update({f"{STEM}.lora_B.weight": torch.zeros(2, 8)}), r"has shape \(2, 8\) where .* \(8, 2\)"),
    ("missing", lambda f: f.tensors.popitem(), "1 tensors are missing or too many"),
    ("strange file", lambda f: f.more.update({"adapter_model.bin": b"a pickle"}), "adapter_model.bin, which no adapter needs"),
    ("long", lambda f: f.fingerprint["sequences"][0].update(prompt_token_ids=[1] * 40), "41 tokens, more than the engine's context"),
    ("unknown token", lambda f: f.fingerprint["sequences"][0].update(token_ids=[50]), "tokens that the base model does not have"),
    ("below zero", lambda f: f.fingerprint["sequences"][0].update(token_ids=[-1]), "tokens that the base model does not have"),
    ("no sequences", lambda f: f.fingerprint.update(sequences=[]), r"fingerprint\.json: .*sequences"),
    ("truncated", lambda f: f.more.update({"adapter_model.safetensors": b"short"}), "cannot be read"),
]


def test_a_sound_adapter_passes_with_its_fingerprint(tmp_path: Path) -> None:
    assert check(Files().write(tmp_path), BASE, LIMITS).sequences[0].token_ids == [3]


@pytest.mark.parametrize(("spoil", "words"), [(s, w) for _, s, w in FAULTS], ids=[name for name, _, _ in FAULTS])
def test_each_fault_is_refused_in_its_own_words(tmp_path: Path, spoil: Callable[[Files], Any], words: str) -> None:
    files = Files()
    spoil(files)
    with pytest.raises(AdapterError, match=words):
        check(files.write(tmp_path), BASE, LIMITS)
