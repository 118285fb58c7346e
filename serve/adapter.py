"""Whether an adapter's files are what they must be, before the engine sees them.

vLLM accepts NaN, missing tensors and wrong layers without a word, and a NaN adapter spoils the cache for every version. So: exact
tensor names and shapes from the base model's own weights, a float dtype, finite values, a bound on their size, a rank within limits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from attune.errors import AdapterError
from attune.events import explain

WEIGHTS, SETTINGS, FINGERPRINT = "adapter_model.safetensors", "adapter_config.json", "fingerprint.json"
MAX_ABS = 50.0

Shapes = Mapping[str, tuple[int, ...]]


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
    use_dora: Annotated[bool, Field()] = False


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


def check(folder: Path, base: Shapes, max_rank: int) -> Fingerprint:
    """Return the adapter's fingerprint after checking every file; raises `AdapterError` with the first fault found."""
    try:
        settings = AdapterSettings.model_validate_json((folder / SETTINGS).read_bytes())
        fingerprint = Fingerprint.model_validate_json((folder / FINGERPRINT).read_bytes())
    except ValidationError as error:
        raise AdapterError(f"{SETTINGS} or {FINGERPRINT}: {explain(error)}") from error
    except OSError as error:
        raise AdapterError(f"{error.filename}: {error.strerror}") from error
    if settings.r > max_rank:
        raise AdapterError(f"rank {settings.r} is above this server's {max_rank} (model.lora_rank)")
    if settings.use_dora:
        raise AdapterError("DoRA adapters cannot be served")
    try:
        _check_weights(folder / WEIGHTS, expected_shapes(settings, base))
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise AdapterError(f"{WEIGHTS} cannot be read: {error}") from error
    return fingerprint


def _check_weights(file: Path, expected: Shapes) -> None:
    import torch  # numpy has no bf16

    with safe_open(file, "pt") as weights:
        names = set(weights.keys())
        if names != set(expected):
            odd = sorted(names ^ set(expected))
            raise AdapterError(f"{len(odd)} tensors are missing or too many, the first is {odd[0]}")
        for name in sorted(names):
            tensor = weights.get_tensor(name)
            if tuple(tensor.shape) != tuple(expected[name]):
                raise AdapterError(f"{name} has shape {tuple(tensor.shape)} where the base model needs {tuple(expected[name])}")
            if tensor.dtype not in (torch.bfloat16, torch.float16, torch.float32):
                raise AdapterError(f"{name} is {tensor.dtype}, not a float")
            largest = float(tensor.abs().max())
            if not np.isfinite(largest):
                raise AdapterError(f"{name} holds values that are not finite")
            if largest > MAX_ABS:
                raise AdapterError(f"{name} holds {largest:.3g}, beyond the bound of {MAX_ABS:g}")


def judge(fingerprint: Fingerprint, seen: list[list[float]], tolerance_nats: float) -> float:
    """Return mean |difference| in nats between the engine's log-probs and the learner's.

    Raises `AdapterError` if the engine does not serve the policy that the learner published. A stale or empty adapter answers like
    the parent: the engine's move away from the parent, projected on the learner's, is then near 0 where it ought to be 1. That is
    asked only where the two policies differ by clearly more than the rounding between engine and learner.
    """
    ours = np.concatenate([np.asarray(s.logprobs) for s in fingerprint.sequences])
    parent = np.concatenate([np.asarray(s.parent_logprobs) for s in fingerprint.sequences])
    engine = np.concatenate([np.asarray(row) for row in seen])
    if engine.shape != ours.shape or parent.shape != ours.shape:
        raise AdapterError("the fingerprint's lists have different lengths")
    distance = float(np.abs(engine - ours).mean())
    if not np.isfinite(distance) or distance > tolerance_nats:
        raise AdapterError(f"the engine's log-probs are {distance:.3f} nats from the learner's, more than {tolerance_nats}")
    move = ours - parent
    length = float(np.linalg.norm(move))
    rounding = float(np.sqrt(np.mean((engine - ours) ** 2)))
    if length > 0 and rounding / length < 0.15:
        share = float((engine - parent) @ move) / length**2
        if share < 0.5:
            raise AdapterError(f"the engine answers like the parent version: it shows {share:.0%} of the published change")
    return distance
