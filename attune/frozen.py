"""The frozen base model's one pass over a prompt and its candidates: reward features and reference log-probs together.

Serve makes the pass when it ranks; what it saw travels with the interaction, so that a vote is learned without another forward.
The learner calls the same function for what is missing (edits). Shapes: T tokens, P predicted tokens, H hidden width, V vocabulary.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from attune.errors import ConfigError
from attune.packing import MAX_ROW_TOKENS, Packed, pack, rows
from attune.types import Candidate

HEAD_ROWS = 64
NUM_SCALARS = 11
MID_DEPTH = 0.8
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""What an adapter, the policy's or the trunk's, is put on in each of its layers."""
SHARPNESS = 0.7
"""The lower temperature, as a share of the sampling temperature: what a base that is as sure as that would say costs a policy nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One candidate's tokens, and whether it ended by itself."""

    token_ids: Sequence[int]
    finished: bool


@dataclass(frozen=True, slots=True)
class Look:
    """What the base model makes of one answer: fp16 features, and log-probs (nats) at the sampling temperature and at a lower one."""

    features: bytes
    ref_logprobs: tuple[float, ...]
    sharp_logprobs: tuple[float, ...]

    def at(self, candidate: Candidate) -> Candidate:
        """Return a candidate with what was seen of it."""
        return replace(candidate, features=self.features, ref_logprobs=self.ref_logprobs, sharp_logprobs=self.sharp_logprobs)


def fastest_dtype(capabilities: Mapping[str, Any] | None = None) -> torch.dtype:
    """Return what this processor (or one of these `capabilities`) multiplies in fastest: bfloat16 with units of full rate, else float32.

    Intel's without AMX multiply bfloat16 at half of float32's rate, and processors without AVX-512 BF16 at a fifth. What decides is what
    the processor is and never a clock, so that a replay computes in the same.
    """
    has = torch.cpu.get_capabilities() if capabilities is None else capabilities
    vector_units = has.get("avx512_bf16") and "AMD" in str(has.get("cpu_name"))
    return torch.bfloat16 if has.get("amx_bf16") or has.get("bf16") or vector_units else torch.float32


def load_base(model: str, revision: str | None, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """Return the causal language model with all weights frozen, in evaluation mode; in the fastest dtype unless one is named.

    Raises `ConfigError` for one whose head does more than multiply: log-probs are taken here without its own code.
    """
    network: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        model, revision=revision, dtype=dtype or fastest_dtype(), attn_implementation="sdpa", trust_remote_code=False
    )
    network.eval().requires_grad_(False)
    if not _plain_head(network):
        raise ConfigError(
            f"model.path: the head of {model} ({type(network).__name__}) scales, caps or shifts its logits, which Attune does not follow: "
            "choose a model whose logits are its last state times a matrix (Llama, Qwen, Mistral, SmolLM and most others)"
        )
    return network


@torch.inference_mode()
def _plain_head(network: Any) -> bool:
    ids_1T, head = torch.arange(1, 5)[None], network.get_output_embeddings()
    whole_TV = network(input_ids=ids_1T, use_cache=False).logits[0].float()
    last_TH = network.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0]
    return torch.allclose(whole_TV, (last_TH @ head.weight.t()).float(), rtol=0.02, atol=0.02)


def twin(network: torch.nn.Module) -> torch.nn.Module:
    """Return a second network over the same weights in memory: what is put around the layers of one is not seen by the other."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


class Branch(Protocol):
    """What may go on from the frozen pass at a layer of its own (see `attune.trunk`)."""

    first: int

    def extend(self, states_TH: torch.Tensor, packed: Packed, features: list[bytes]) -> list[bytes]:
        """Return the answers' features with more behind each."""


class FrozenBase:
    """The base model as everybody's common eye."""

    def __init__(self, network: Any) -> None:
        self.network = network
        config = network.config
        self.width = int(config.hidden_size)
        self.mid_layer = max(1, round(MID_DEPTH * int(config.num_hidden_layers)))

    @property
    def feature_width(self) -> int:
        """Return the length of a feature vector."""
        return 3 * self.width + NUM_SCALARS

    @torch.inference_mode()
    def look(self, prompt: Sequence[int], answers: Sequence[Answer], temperature: float, trunk: "Branch | None" = None) -> list[Look]:
        """Return features and reference log-probs of every answer; what a trunk says goes behind the features.

        One packed forward, or several where a row would be too long.

        Features: mean of the embeddings, mean and last token of a layer at 4/5 of the depth (zeros for an empty answer), and scalars:
        mean, sum and minimum of the log-probs at temperature 1, mean of the first four; shares of the tokens and of the pairs of tokens
        that stand in the prompt, log(1 + tokens that do not), share of different tokens; 1 / (1 + length), log(1 + length), finished.
        """
        parts = rows(len(prompt), [len(a.token_ids) for a in answers], MAX_ROW_TOKENS)
        return [look for part in parts for look in self._look(prompt, answers[part], temperature, trunk)]

    def _look(self, prompt: Sequence[int], answers: Sequence[Answer], temperature: float, trunk: "Branch | None") -> list[Look]:
        packed = pack(prompt, [a.token_ids for a in answers], next(self.network.parameters()).dtype)
        output = self.network.base_model(
            input_ids=packed.input_ids_1T,
            position_ids=packed.position_ids_1T,
            attention_mask=packed.mask_11TT,
            output_hidden_states=True,
            use_cache=False,
        )
        plain_P, warm_P, sharp_P = self._logprobs(output.last_hidden_state[0], packed, temperature)
        low_PH = output.hidden_states[0][0, packed.place_P].float()
        mid_PH = output.hidden_states[self.mid_layer][0, packed.place_P].float()
        features = [
            _features(prompt, answer, low_PH[span], mid_PH[span], plain_P[span]) for span, answer in zip(packed.spans, answers, strict=True)
        ]
        if trunk is not None:
            features = trunk.extend(output.hidden_states[trunk.first][0], packed, features)
        seen = zip(features, packed.spans, strict=True)
        return [Look(f, tuple(warm_P[span].tolist()), tuple(sharp_P[span].tolist())) for f, span in seen]

    def _logprobs(self, hidden_TH: torch.Tensor, packed: Packed, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log-probs (P) at temperature 1, at the one given, and at the lower one."""
        head = self.network.get_output_embeddings()
        plain, warm, sharp = [], [], []
        for start in range(0, len(packed.predict_P), HEAD_ROWS):
            rows = slice(start, start + HEAD_ROWS)
            logits_RV = head(hidden_TH[packed.predict_P[rows]]).float()
            logits_RV -= logits_RV.amax(1, keepdim=True)  # in place: fresh memory of this size costs more than the arithmetic
            chosen_R = logits_RV.gather(1, packed.target_P[rows, None])[:, 0]
            plain.append(chosen_R - logits_RV.exp().sum(1).log())
            warm.append(chosen_R / temperature - logits_RV.div_(temperature).exp().sum(1).log())
            lower = SHARPNESS * temperature
            sharp.append(chosen_R / lower - logits_RV.div_(SHARPNESS).exp_().sum(1).log())
        empty = torch.zeros(0)
        return torch.cat([empty, *plain]), torch.cat([empty, *warm]), torch.cat([empty, *sharp])


def _features(prompt: Sequence[int], answer: Answer, low_PH: torch.Tensor, mid_PH: torch.Tensor, logprobs_P: torch.Tensor) -> bytes:
    if len(logprobs_P):
        states = torch.cat([low_PH.mean(0), mid_PH.mean(0), mid_PH[-1]]).numpy()
        likely = [float(x) for x in (logprobs_P.mean(), logprobs_P.sum(), logprobs_P.min(), logprobs_P[:4].mean())]
    else:
        states, likely = np.zeros(3 * low_PH.shape[1], np.float32), [0.0] * 4
    vector = np.concatenate([states, likely, _said(prompt, answer)])
    limit = float(np.finfo(np.float16).max)
    return np.clip(vector, -limit, limit).astype("<f2").tobytes()


def _said(prompt: Sequence[int], answer: Answer) -> list[float]:
    """Return what the bare tokens show: how much is the prompt handed back, how much says the same again, how long it is."""
    tokens, asked, asked_pairs = answer.token_ids, set(prompt), set(pairwise(prompt))
    count = len(tokens)
    novel = sum(token not in asked for token in tokens)
    copied_pairs = sum(pair in asked_pairs for pair in pairwise(tokens))
    return [
        (count - novel) / max(1, count),
        copied_pairs / max(1, count - 1),
        float(np.log1p(novel)),
        len(set(tokens)) / max(1, count),
        1.0 / (1 + count),
        float(np.log1p(count)),
        float(answer.finished),
    ]
