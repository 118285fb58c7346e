"""Whether an adapter's files are what they must be, before the engine sees them.

vLLM accepts NaN, missing tensors and wrong layers without a word, and a NaN adapter spoils the cache for every version. So: exact
tensor names and shapes from the base model's own weights, a float dtype, finite values, a bound on their size, a rank within limits;
and no file beside them that vLLM might read as well.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from attune.errors import AdapterError
from attune.events import explain
from attune.types import TAUGHT

WEIGHTS, SETTINGS, FINGERPRINT = "adapter_model.safetensors", "adapter_config.json", "fingerprint.json"
KNOWN_FILES = frozenset({WEIGHTS, SETTINGS, FINGERPRINT, "report.json", "manifest.json", TAUGHT})
MAX_ABS = 50.0
MAX_RMS_CHANGE = 1.0
"""Root mean square of what an adapter adds to a weight matrix; weights themselves lie far below 1."""

CLEAR_MOVE = 2.0
"""So many times the rounding between engine and learner an update must have changed log-probs, to be told from none by them."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What this server's engine can take."""

    max_rank: int
    max_context_tokens: int


class AdapterSettings(BaseModel):
    """What we read of PEFT's `adapter_config.json`; other keys are PEFT's own affair."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    peft_type: Annotated[str, Field(pattern="^LORA$")]
    r: Annotated[int, Field(ge=1, le=512)]
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    target_modules: list[str]
    layers_to_transform: list[int] | None = None
    bias: Annotated[str, Field(pattern="^none$")] = "none"
    modules_to_save: None = None
    use_dora: bool = False
    use_rslora: bool = False

    @property
    def scale(self) -> float:
        """Return the factor on B A."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class FingerprintSequence(BaseModel):
    """One sequence with its log-probs (nats, temperature 1) under the new policy and under its parent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_token_ids: Annotated[list[int], Field(min_length=1)]
    token_ids: Annotated[list[int], Field(min_length=1)]
    logprobs: list[Annotated[float, Field(allow_inf_nan=False)]]
    parent_logprobs: list[Annotated[float, Field(allow_inf_nan=False)]]


class Fingerprint(BaseModel):
    """What the learner saw the new policy do: the proof that the engine serves the same weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequences: Annotated[list[FingerprintSequence], Field(min_length=1)]


def base_shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights in a model folder, from the safetensors headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "np") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    return shapes


def expected_shapes(settings: AdapterSettings, base: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the tensors that an adapter with these settings must have, and no others."""
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in base.items():
        parts = name.removesuffix(".weight").split(".")
        if len(shape) != 2 or parts[-1] not in settings.target_modules or "layers" not in parts:
            continue
        layer = int(parts[parts.index("layers") + 1])
        if settings.layers_to_transform is not None and layer not in settings.layers_to_transform:
            continue
        stem = "base_model.model." + ".".join(parts)
        expected[f"{stem}.lora_A.weight"] = (settings.r, shape[1])
        expected[f"{stem}.lora_B.weight"] = (shape[0], settings.r)
    return expected


def check(folder: Path, base: Shapes, limits: Limits) -> Fingerprint:
    """Return the adapter's fingerprint after checking every file; raises `AdapterError` with the first fault found."""
    try:
        strange = sorted({p.name for p in folder.iterdir()} - KNOWN_FILES)
        settings = AdapterSettings.model_validate_json((folder / SETTINGS).read_bytes())
        fingerprint = Fingerprint.model_validate_json((folder / FINGERPRINT).read_bytes())
    except ValidationError as error:
        raise AdapterError(f"{SETTINGS} or {FINGERPRINT}: {explain(error)}") from error
    except OSError as error:
        raise AdapterError(f"{Path(str(error.filename)).name}: {error.strerror}") from error
    if strange:
        raise AdapterError(f"it holds {strange[0]}, which no adapter needs")
    if settings.r > limits.max_rank:
        raise AdapterError(f"rank {settings.r} is above this server's {limits.max_rank} (model.lora_rank)")
    if settings.use_dora:
        raise AdapterError("DoRA adapters cannot be served")
    _check_fingerprint(fingerprint, base, limits)
    try:
        _check_weights(folder / WEIGHTS, expected_shapes(settings, base), settings.scale)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise AdapterError(f"{WEIGHTS} cannot be read: {error}") from error
    return fingerprint


def _check_fingerprint(fingerprint: Fingerprint, base: Shapes, limits: Limits) -> None:
    """Refuse sequences that the engine would not take: a canary must fail for the adapter's sake alone."""
    vocabulary = next((shape[0] for name, shape in base.items() if name.endswith("embed_tokens.weight")), math.inf)
    for sequence in fingerprint.sequences:
        tokens = [*sequence.prompt_token_ids, *sequence.token_ids]
        if len(tokens) >= limits.max_context_tokens:
            raise AdapterError(f"a sequence of the fingerprint has {len(tokens)} tokens, more than the engine's context")
        if min(tokens) < 0 or max(tokens) >= vocabulary:
            raise AdapterError("the fingerprint names tokens that the base model does not have")


def _check_weights(file: Path, expected: Shapes, scale: float) -> None:
    with safe_open(file, "pt") as weights:  # numpy has no bf16
        names = set(weights.keys())
        if names != set(expected):
            odd = sorted(names ^ set(expected))
            raise AdapterError(f"{len(odd)} tensors are missing or too many, the first is {odd[0]}")
        for name in sorted(names):
            if "lora_A" in name:
                partner = name.replace("lora_A", "lora_B")
                a, b = (_checked(n, weights.get_tensor(n), expected[n]) for n in (name, partner))
                change = _rms_change(a, b, scale)
                if not change <= MAX_RMS_CHANGE:
                    raise AdapterError(f"{name} and its partner change the weights by {change:.3g}, beyond the bound of {MAX_RMS_CHANGE:g}")


def _checked(name: str, tensor: Any, expected: tuple[int, ...]) -> Any:
    import torch

    if tuple(tensor.shape) != tuple(expected):
        raise AdapterError(f"{name} has shape {tuple(tensor.shape)} where the base model needs {tuple(expected)}")
    if tensor.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise AdapterError(f"{name} is {tensor.dtype}, not a float")
    largest = float(tensor.abs().max())
    if not math.isfinite(largest):
        raise AdapterError(f"{name} holds values that are not finite")
    if largest > MAX_ABS:
        raise AdapterError(f"{name} holds {largest:.3g}, beyond the bound of {MAX_ABS:g}")
    return tensor.float()


def _rms_change(a: Any, b: Any, scale: float) -> float:
    """Return the root mean square of scale x B A, from the two r x r Gram matrices alone."""
    squared = float(((b.T @ b) * (a @ a.T)).sum())
    return scale * math.sqrt(max(0.0, squared) / (a.shape[1] * b.shape[0]))


def judge(fingerprint: Fingerprint, seen: list[list[float]], tolerance_nats: float) -> float:
    """Return mean |difference| in nats between the engine's log-probs and the learner's.

    Raises `AdapterError` if the engine does not serve the policy that the learner published. A stale or empty adapter answers like
    the parent: the engine is then nearer to the parent than to what was published. That is asked only where the two differ by clearly
    more than the rounding between engine and learner, which is what lies between the engine and the nearer of them.
    """
    ours = np.concatenate([np.asarray(s.logprobs) for s in fingerprint.sequences])
    parent = np.concatenate([np.asarray(s.parent_logprobs) for s in fingerprint.sequences])
    engine = np.concatenate([np.asarray(row) for row in seen])
    if engine.shape != ours.shape or parent.shape != ours.shape:
        raise AdapterError("the fingerprint's lists have different lengths")
    distance = float(np.abs(engine - ours).mean())
    if not np.isfinite(distance) or distance > tolerance_nats:
        raise AdapterError(f"the engine's log-probs are {distance:.3f} nats from the learner's, more than {tolerance_nats}")
    to_ours, to_parent, moved = _rms(engine - ours), _rms(engine - parent), _rms(ours - parent)
    if to_parent < to_ours and moved > CLEAR_MOVE * to_parent:
        raise AdapterError(f"the engine answers like the parent version: {to_parent:.3f} nats from it, {to_ours:.3f} from the new one")
    return distance


def _rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(difference**2)))
