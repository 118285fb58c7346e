"""The policy: the frozen base with one LoRA adapter, its fp32 master weights, and a head that never holds all logits.

Adapters live in the base's dtype and are stepped in fp32 masters. Version 0 is B = 0, the base itself. Leaves what to learn to `ppo`.
Shapes: T tokens of a row, P predicted tokens, R rows of a chunk, H hidden width, V vocabulary.
"""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save

from attune.config import ModelSection
from attune.errors import ConfigError
from attune.files import write_durably
from attune.frozen import HEAD_ROWS, PROJECTIONS
from attune.packing import Packed, pack
from learner.critic import Critic

BETAS, EPS = (0.9, 0.95), 1e-8


@dataclass(frozen=True, slots=True)
class Forward:
    """What one pass over a packed row gives."""

    logprob_P: torch.Tensor
    """Log-probs of the answers' tokens in nats, differentiable."""
    entropy_P: torch.Tensor
    hidden_PH: torch.Tensor
    """The last layer's state that each token was predicted from, detached."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that an update changes: to go back as if it had never been."""

    masters: list[torch.Tensor]
    moments: dict[Any, Any]
    critic: dict[str, torch.Tensor]


class Policy:
    """An adapter that can be asked for log-probs, stepped, saved and put back."""

    def __init__(self, network: Any, model: ModelSection, base_name: str, learning_rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.learning_rate = learning_rate
        layers = int(network.config.num_hidden_layers)
        first = layers - max(1, round(model.lora_top_layers * layers))
        self.settings = LoraConfig(
            r=model.lora_rank,
            lora_alpha=model.lora_alpha,
            lora_dropout=0.0,
            target_modules=PROJECTIONS,
            layers_to_transform=list(range(first, layers)),
            task_type="CAUSAL_LM",
        )
        self.network = get_peft_model(network, self.settings, autocast_adapter_dtype=False)
        self.settings.base_model_name_or_path = base_name  # only now: PEFT would put the folder that it was loaded from in its place
        self.base = self.network.get_base_model()
        self.weights = [p for p in self.network.parameters() if p.requires_grad]
        self._first = [p.detach().clone() for p in self.weights]
        self.masters = [p.detach().float().clone().requires_grad_(True) for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.masters, lr=learning_rate, betas=BETAS, eps=EPS, weight_decay=0.0)
        self.critic = Critic(int(network.config.hidden_size))

    def logprobs(self, packed: Packed, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probs (P) of a packed row's answers at a temperature, differentiable, and the entropies (P), not."""
        seen = self.forward(packed, temperature)
        return seen.logprob_P, seen.entropy_P

    def forward(self, packed: Packed, temperature: float) -> Forward:
        """Return what one pass over a packed row gives, at a temperature."""
        hidden_TH = self.base.base_model(
            input_ids=packed.input_ids_1T,
            position_ids=packed.position_ids_1T,
            attention_mask=packed.mask_11TT,
            use_cache=False,
        ).last_hidden_state[0]
        head = self.base.get_output_embeddings().weight
        hidden_PH = hidden_TH[packed.predict_P]
        logprob_P, entropy_P = _ChunkedHead.apply(hidden_PH, head, packed.target_P, temperature)
        return Forward(logprob_P, entropy_P, hidden_PH.detach())

    def row(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> Packed:
        """Return prompt and answers packed for this network."""
        return pack(prompt, answers, self.weights[0].dtype)

    def step(self, grad_clip: float, scale: float = 1.0, share: float = 1.0) -> float:
        """Apply `scale` x the accumulated gradients to the masters, clear them, and return their norm before clipping.

        `share` is how much of the learning rate is used. A norm that is not finite is returned, and nothing else is done.
        """
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float().mul_(scale)
            weight.grad = None
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters, grad_clip))
        if not math.isfinite(norm):
            self.optimizer.zero_grad()
            return norm
        for group in self.optimizer.param_groups:
            group["lr"] = share * self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._push()
        return norm

    def forget_gradients(self) -> None:
        """Drop what was accumulated since the last step."""
        for weight in self.weights:
            weight.grad = None

    def snapshot(self) -> Snapshot:
        """Return a copy of the master weights and of what optimizer and critic know."""
        moments = copy.deepcopy(self.optimizer.state_dict()["state"])
        critic = {name: tensor.clone() for name, tensor in self.critic.state().items()}
        return Snapshot([m.detach().clone() for m in self.masters], moments, critic)

    def restore(self, snapshot: Snapshot) -> None:
        """Be as at a snapshot, and drop gradients."""
        self.forget_gradients()
        self.retreat(snapshot, 0.0)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": copy.deepcopy(snapshot.moments)})
        self.critic.take(snapshot.critic)

    def retreat(self, snapshot: Snapshot, share: float) -> None:
        """Keep only `share` of the way that the weights have made since a snapshot; none of it, wherever it led, if that is 0."""
        with torch.no_grad():
            for master, old in zip(self.masters, snapshot.masters, strict=True):
                master.copy_(old + share * (master - old) if share else old)
        self._push()

    def adapter_files(self) -> dict[str, bytes]:
        """Return PEFT's two files for the present weights, in bf16."""
        state = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in self._tensors().items()}
        settings = {k: sorted(v) if isinstance(v, set) else v for k, v in self.settings.to_dict().items()}
        return {
            "adapter_model.safetensors": save(state),
            "adapter_config.json": json.dumps(settings, indent=1, sort_keys=True, default=str).encode(),
        }

    def load_adapter(self, folder: Path) -> None:
        """Take the weights of a published version; what the optimizer knew is forgotten.

        Raises `ConfigError` where its layers, its rank or its scale are not ours: PEFT would take what fits and say nothing of the rest.
        """
        found = load_file(folder / "adapter_model.safetensors")
        alpha = json.loads((folder / "adapter_config.json").read_bytes())["lora_alpha"]
        shapes, ours = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (found, self._tensors()))
        if shapes != ours or alpha != self.settings.lora_alpha:
            raise ConfigError(
                f"the adapter in {folder} lies on other layers, has another rank or another lora_alpha ({alpha}) than the configuration "
                "says: set model.lora_top_layers, lora_rank and lora_alpha as they were when it was made, or start with a new home folder"
            )
        set_peft_model_state_dict(self.network, found)
        self._pull()

    def reset(self) -> None:
        """Become version 0 again, as a learner that has just been started has it: B = 0, and A as the seed drew it."""
        with torch.no_grad():
            for weight, first in zip(self.weights, self._first, strict=True):
                weight.copy_(first)
        self._pull()

    def save_state(self, file: Path) -> None:
        """Write masters, optimizer moments and critic, to be found whole or not at all."""
        tensors = {f"master.{i}": m.detach() for i, m in enumerate(self.masters)}
        tensors |= {f"critic.{name}": tensor for name, tensor in self.critic.state().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{i}": value for name, value in state.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".new")
        try:
            write_durably(aside, save(tensors))
            aside.replace(file)
        finally:
            aside.unlink(missing_ok=True)  # where the disk is full, what was written of it keeps it so

    def load_state(self, file: Path) -> None:
        """Take masters, moments and critic as `save_state` wrote them; raises `OSError` or `SafetensorError` where it cannot be read."""
        tensors = load_file(file)
        with torch.no_grad():
            for i, master in enumerate(self.masters):
                master.copy_(tensors[f"master.{i}"])
        names = ("step", "exp_avg", "exp_avg_sq")
        found = {i: {n: tensors[f"{n}.{i}"] for n in names} for i in range(len(self.masters)) if f"step.{i}" in tensors}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": found})
        self.critic.take({name.removeprefix("critic."): tensor for name, tensor in tensors.items() if name.startswith("critic.")})
        self._push()

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return the adapter's tensors under PEFT's names."""
        return dict(get_peft_model_state_dict(self.network, save_embedding_layers=False))  # "auto" would ask the hub

    def _push(self) -> None:
        with torch.no_grad():
            for weight, master in zip(self.weights, self.masters, strict=True):
                weight.copy_(master)

    def _pull(self) -> None:
        with torch.no_grad():
            for weight, master in zip(self.weights, self.masters, strict=True):
                master.copy_(weight)
        self.optimizer.state.clear()
        self.critic.forget()


class _ChunkedHead(torch.autograd.Function):
    """log-probs of given tokens without ever keeping V numbers per token: the gradient row is made in the forward."""

    @staticmethod
    def forward(ctx: Any, hidden_PH: Any, head_VH: Any, target_P: Any, temperature: float) -> Any:
        logprobs, entropies, rows = [], [], []
        wanted = ctx.needs_input_grad[0]
        for start in range(0, len(hidden_PH), HEAD_ROWS):
            hidden_RH, target_R = hidden_PH[start : start + HEAD_ROWS], target_P[start : start + HEAD_ROWS]
            log_RV = (hidden_RH @ head_VH.t()).float().div_(temperature)
            log_RV -= log_RV.logsumexp(1, keepdim=True)
            logprobs.append(log_RV.gather(1, target_R[:, None])[:, 0])
            p_RV = log_RV.exp()
            entropies.append(-torch.einsum("rv,rv->r", p_RV, log_RV))
            if wanted:
                rows.append((head_VH[target_R] - p_RV.to(head_VH.dtype) @ head_VH).div_(temperature))
        empty = hidden_PH.new_zeros(0, dtype=torch.float32)
        if wanted:
            ctx.save_for_backward(torch.cat(rows) if rows else hidden_PH)
        entropy_P = torch.cat([empty, *entropies])
        ctx.mark_non_differentiable(entropy_P)
        return torch.cat([empty, *logprobs]), entropy_P

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (row_PH,) = ctx.saved_tensors
        return (grads[0][:, None] * row_PH.float()).to(row_PH.dtype), None, None, None
