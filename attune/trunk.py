"""The trunk: a few middle layers of the base under a LoRA adapter of the reward model's own, which make one number of an answer.

Where enough votes are in, it may judge better than the frozen features; the linear head then stands on that number and learns what has
come since. It branches off the frozen pass, so that only its own layers are computed twice. Shapes: T tokens of a row, H hidden width,
N answers, D frozen features.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from attune.errors import RegistryError
from attune.frozen import PROJECTIONS, FrozenBase, twin
from attune.packing import Packed, pack
from attune.reward import CLIP, Array

WEIGHTS = "trunk.safetensors"
DEPTH = 0.2
"""Share of the layers that make up the trunk; they end where the frozen features are read."""
RANK, ALPHA = 8, 16


@dataclass(frozen=True, slots=True)
class Readout:
    """How features become a number: centre, scale and weight of each; those of the two deep groups are the trunk's own."""

    center_D: torch.Tensor
    scale_D: torch.Tensor
    weight_D: torch.Tensor


class Trunk:
    """One number per answer, from the base's states where the trunk begins."""

    def __init__(self, base: FrozenBase, readout: Readout) -> None:
        """Start as the readout alone: the adapter adds nothing yet. Raises `RegistryError` for an architecture that has no such layers.

        Nor is one taken that changes what enters its first layer (Granite scales it): its middle layers could not be run by themselves.
        """
        layers = getattr(base.network.base_model, "layers", None)
        if layers is None or not hasattr(base.network.base_model, "norm"):
            raise RegistryError("a trunk needs a base model whose layers lie in `layers` before a `norm`")
        if not _passes_on(base):
            raise RegistryError("a trunk needs a base model that takes embeddings as they are")
        self.last = base.mid_layer
        self.first = max(0, self.last - max(1, round(DEPTH * len(layers))))
        self.readout = readout
        settings = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=PROJECTIONS)
        self.body: Any = inject_adapter_in_model(settings, part(base.network, self.first, self.last))
        self.weights = [w.requires_grad_(True) for name, w in self.body.named_parameters() if "lora_" in name]
        for name, weight in self.body.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.float()
            else:
                weight.requires_grad_(False)

    @classmethod
    def load(cls, base: FrozenBase, folder: Path) -> "Trunk":
        """Return the trunk that lies in a version's folder; raises `RegistryError` if there is none that fits the base."""
        try:
            tensors = load_file(folder / WEIGHTS)
            if not all(bool(t.isfinite().all()) for t in tensors.values()):
                raise ValueError("a value is not finite")
            readout = Readout(*(tensors.pop(name) for name in ("center_D", "scale_D", "weight_D")))
            if readout.weight_D.shape != (base.feature_width,):
                raise ValueError(f"it reads {readout.weight_D.shape[0]} features where this base model has {base.feature_width}")
            trunk = cls(base, readout)
            named = trunk._named()
            if {name: t.shape for name, t in tensors.items()} != {name: w.shape for name, w in named.items()}:
                raise ValueError("its tensors are not those of this base model's layers")
            with torch.no_grad():
                for name, weight in named.items():
                    weight.copy_(tensors[name])
            return trunk
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RegistryError(f"{folder.name} holds no trunk: {error}") from error

    def begin(self, seed: int) -> None:
        """Draw the adapter's first factors anew, the same for the same seed; the second are zeros, so that it adds nothing."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self._named().items():
                torch.nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator) if "lora_A" in name else weight.zero_()

    def to_bytes(self) -> bytes:
        """Return the file to publish, in fp32."""
        tensors = {name: weight.detach().contiguous() for name, weight in self._named().items()}
        readout = {"center_D": self.readout.center_D, "scale_D": self.readout.scale_D, "weight_D": self.readout.weight_D}
        return save(tensors | {name: t.detach().contiguous() for name, t in readout.items()})

    def judge(self, states_TH: torch.Tensor, packed: Packed, features_ND: torch.Tensor) -> torch.Tensor:
        """Return the number (N) for every answer of a packed row, differentiable, given the base's states at `first`.

        `features_ND` are the frozen ones: what they say of the deep layer is replaced. An answer without tokens keeps them.
        """
        deep_TH = run(self.body, states_TH, packed).float()
        width = deep_TH.shape[1]
        rows = []
        for span, feature_D in zip(packed.spans, features_ND, strict=True):
            if span.stop > span.start:
                own_PH = deep_TH[packed.place_P[span]]
                feature_D = torch.cat([feature_D[:width], own_PH.mean(0), own_PH[-1], feature_D[3 * width :]])
            rows.append(feature_D)
        z_ND = ((torch.stack(rows) - self.readout.center_D) / self.readout.scale_D).clamp(-CLIP, CLIP)
        return z_ND @ self.readout.weight_D

    @torch.inference_mode()
    def extend(self, states_TH: torch.Tensor, packed: Packed, features: list[bytes]) -> list[bytes]:
        """Return the answers' feature vectors with the trunk's number behind each."""
        raw_ND = np.stack([np.frombuffer(f, "<f2") for f in features]).astype(np.float32)
        said_N = self.judge(states_TH, packed, torch.from_numpy(raw_ND))
        return [f + number(float(said)) for f, said in zip(features, said_N, strict=True)]

    def _named(self) -> dict[str, torch.Tensor]:
        return {name: weight for name, weight in self.body.named_parameters() if "lora_" in name}


def part(network: Any, first: int, last: int) -> torch.nn.Module:
    """Return the layers first..last of a causal language model as a model of their own, over the same weights in memory."""
    body: Any = twin(network.base_model)
    body.config = copy.copy(body.config)
    body.layers = body.layers[first:last]
    body.config.num_hidden_layers = last - first
    body.norm = torch.nn.Identity()
    made: torch.nn.Module = body
    return made


@torch.inference_mode()
def _passes_on(base: FrozenBase) -> bool:
    """Whether states come out of a part without layers as they went in."""
    states_TH = torch.ones(2, base.width, dtype=next(base.network.parameters()).dtype)
    return torch.equal(run(part(base.network, 0, 0), states_TH, pack([1], [[2]], states_TH.dtype)), states_TH)


def run(body: Any, states_TH: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Return the states (T x H) that leave a part, given those that enter it."""
    seen = body(
        inputs_embeds=states_TH[None], position_ids=packed.position_ids_1T, attention_mask=packed.mask_11TT, use_cache=False
    )  # fmt: skip
    states: torch.Tensor = seen.last_hidden_state[0]
    return states


def number(value: float) -> bytes:
    """Return a trunk's number as it stands behind the features: fp16, within what is read."""
    return np.clip(np.array([value]), -CLIP, CLIP).astype("<f2").tobytes()


def as_tensors(*arrays: Array) -> Readout:
    """Return a readout from numpy's arrays: centre, scale, weight."""
    return Readout(*(torch.from_numpy(np.array(a, np.float32)) for a in arrays))
