"""The reward model: features and looks of an answer -> utility with a spread. Numpy alone, so that scoring costs a matrix product.

Linear over what `matrix` makes of both, standardised; a mean weight vector and K posterior particles, whose disagreement is the spread.
Fitting lives in `learner.reward_trainer`; this file is what serve and learner must agree on. Shapes: N answers, D numbers of an answer,
K particles.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from attune.errors import RegistryError
from attune.style import NUM_LOOKS, STYLES, looks, style

WEIGHTS, SETTINGS = "reward.safetensors", "reward.json"
TENSORS = ("center_D", "scale_D", "mean_D", "particles_KD")
MAX_WISHED = 3.0
"""Deviations from typical answers beyond which what was learned of an objective pays no more."""
FORMAT, KNOWN_LOOKS = 3, {1: 0, 2: 7, 3: NUM_LOOKS}
"""What is written, and how many of the looks each format that can be read knew."""
CLIP = 10.0
"""Standard deviations beyond which no feature says more."""
OWN = -1

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Anchors:
    """Where typical answers' pessimistic utilities lie under this version: mean, standard deviation, 2nd and 98th percentile."""

    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, slots=True)
class Scale:
    """From utilities to probabilities: what calibrates them, how readily people put the thumb up, and what their stars mean."""

    temperature: float = 1.0
    thumb_bias: float = 0.0
    stars: tuple[float, float] = (-0.7, 0.7)
    """Utilities from which on people give three stars or more, and four or more, as often as not."""

    def probability(self, margin: float) -> float:
        """Return the probability of yes, given its logit before calibration."""
        return 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, margin / self.temperature))))

    def star_margin(self, utility: float) -> float:
        """Return the logit, before calibration, of four stars or more, given that they are not three (ordinal logit)."""
        low, high = self.stars
        return float(np.logaddexp(0.0, utility - low) - np.logaddexp(0.0, high - utility))


@dataclass(frozen=True, slots=True)
class Debias:
    """What length and format are worth to this version, to be left out of the score: mean and weight per style of `attune.style`."""

    mean: tuple[float, ...] = (0.0,) * len(STYLES)
    weight: tuple[float, ...] = (0.0,) * len(STYLES)

    def effect(self, texts: Sequence[str]) -> Array:
        """Return the part of every answer's utility that its looks explain."""
        if not any(self.weight):
            return np.zeros(len(texts), np.float32)
        part: Array = (style(texts) - np.array(self.mean, np.float32)) @ np.array(self.weight, np.float32)
        return part


@dataclass(frozen=True, slots=True)
class RewardModel:
    """One version of the reward model; 0 is the prior, to which all answers are alike."""

    version: int
    center_D: Array
    scale_D: Array
    mean_D: Array
    particles_KD: Array
    anchors: Anchors = Anchors()
    scale: Scale = Scale()
    debias: Debias = Debias()
    trunk: int = 0
    """The version whose folder holds the trunk (`attune.trunk`) that this one stands on; 0: none."""
    objectives: Mapping[str, "RewardModel"] = field(default_factory=dict)
    """A utility of its own per aspect that people vote on, over the frozen features alone."""

    @classmethod
    def prior(cls, feature_width: int) -> "RewardModel":
        """Return version 0: utility 0 for every answer."""
        width = NUM_LOOKS + feature_width
        zero = np.zeros(width, np.float32)
        return cls(0, zero, np.ones(width, np.float32), zero, np.zeros((2, width), np.float32))

    @classmethod
    def load(cls, folder: Path) -> "RewardModel":
        """Return the version that lies in a registry folder; raises `RegistryError` if it is not one."""
        try:
            settings = json.loads((folder / SETTINGS).read_bytes())
            tensors = load_file(folder / WEIGHTS)
            if settings["format"] not in KNOWN_LOOKS:
                raise ValueError(f"format {settings['format']} is not known")
            looked = KNOWN_LOOKS[settings["format"]]
            tensors = {name: _blind_to_new_looks(name, tensor.astype(np.float32), looked) for name, tensor in tensors.items()}
            arrays = {name: tensors[name] for name in TENSORS}
            width = arrays["mean_D"].shape[0]
            if any(a.shape[-1] != width for a in arrays.values()) or not all(np.isfinite(a).all() for a in arrays.values()):
                raise ValueError("tensors have different widths or values that are not finite")
            debias = Debias(**{name: tuple(map(float, values)) for name, values in settings.get("debias", {}).items()})
            scale = Scale(**settings.get("scale", {}))
            low, high = scale.stars
            scale = replace(scale, stars=(low, high))  # JSON knows no tuples
            anchors, number = Anchors(**settings["anchors"]), int(folder.name)
            objectives = {name: cls._objective(number, tensors, name, said) for name, said in settings.get("objectives", {}).items()}
            return cls(number, **arrays, anchors=anchors, scale=scale, debias=debias, trunk=trunk_of(folder), objectives=objectives)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RegistryError(f"{folder.name} holds no reward model: {error}") from error

    @classmethod
    def _objective(cls, number: int, tensors: Mapping[str, Any], name: str, anchors: Mapping[str, float]) -> "RewardModel":
        arrays = {tensor: tensors[f"{name}.{tensor}"] for tensor in TENSORS}
        if not all(np.isfinite(a).all() for a in arrays.values()):
            raise ValueError(f"the objective {name} has values that are not finite")
        return cls(number, **arrays, anchors=Anchors(**anchors))

    def to_files(self) -> dict[str, bytes]:
        """Return the files to publish."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        for objective, model in self.objectives.items():
            tensors |= {f"{objective}.{name}": getattr(model, name) for name in TENSORS}
        settings = {"format": FORMAT} | {name: asdict(getattr(self, name)) for name in ("anchors", "scale", "debias")}
        settings |= {"trunk": self.trunk, "objectives": {name: asdict(model.anchors) for name, model in self.objectives.items()}}
        return {WEIGHTS: save(tensors), SETTINGS: json.dumps(settings, indent=1).encode()}

    def utility(self, features: Sequence[bytes], texts: Sequence[str]) -> tuple[Array, Array]:
        """Return mean and spread (standard deviation over particles) of the utility of every answer."""
        if not features:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        return self.judge(matrix(features, texts))

    def wished(self, features: Sequence[bytes], texts: Sequence[str], pessimism: float) -> dict[str, Array]:
        """Return how far every answer's pessimistic utility by each objective lies from the typical, in deviations; 0 for no answer."""
        if not self.objectives or not features:
            return {}
        raw_ND, says = matrix(features, texts), np.array([bool(text.strip()) for text in texts])
        found = {}
        for name, model in self.objectives.items():
            mean, spread = model.judge(raw_ND[:, : len(model.mean_D)])
            deviations = (mean - np.float32(pessimism) * spread - np.float32(model.anchors.mean)) / np.float32(model.anchors.std)
            found[name] = np.where(says, np.clip(deviations, -MAX_WISHED, MAX_WISHED), np.float32(0.0))
        return found

    def judge(self, raw_ND: Array) -> tuple[Array, Array]:
        """Return mean and spread of the utility of every row of `matrix`."""
        z_ND = self.standardise(raw_ND)
        deviations_NK = z_ND @ (self.particles_KD - self.mean_D).T
        return z_ND @ self.mean_D, np.sqrt(np.mean(deviations_NK**2, axis=1))

    def total(self, features: Sequence[bytes], texts: Sequence[str], pessimism: float, bonus: Array | None = None) -> Array:
        """Return what ranks answers: mean - pessimism x spread, less what is left out, and an empty answer below every other.

        `bonus` is what the operator's terms add, in anchor standard deviations.
        """
        mean, spread = self.utility(features, texts)
        total: Array = mean - np.float32(pessimism) * spread - self.debias.effect(texts)
        if bonus is not None:
            total = total + np.float32(self.anchors.std) * bonus
        empty = np.array([not text.strip() for text in texts], bool)
        if empty.any() and (self.version or bonus is not None):
            total[empty] = min(self.anchors.low, float(total.min())) - self.anchors.std
        return total

    def reward(self, features: Sequence[bytes], texts: Sequence[str], pessimism: float, bonus: Array | None = None) -> Array:
        """Return what trains: `total` held within the anchors' range (no pay for extrapolation), then the bonus; in anchor deviations."""
        total = self.total(features, texts, pessimism)
        empty = np.array([not text.strip() for text in texts], bool)
        held = np.clip(total, self.anchors.low, self.anchors.high)
        earned = (held - np.float32(self.anchors.mean)) / np.float32(self.anchors.std)
        paid: Array = np.clip(earned if bonus is None else earned + bonus, -5.0, 5.0).astype(np.float32)
        if empty.any():  # below every other, whatever the terms take off those: silence must never pay
            low = np.float32((self.anchors.low - self.anchors.mean) / self.anchors.std)
            paid[empty] = min(low, paid[~empty].min(initial=5.0)) - 1.0
        return paid

    def standardise(self, raw_ND: Array) -> Array:
        """Return features with the centre and scale of this version's anchor answers."""
        z: Array = np.clip((raw_ND - self.center_D) / self.scale_D, -CLIP, CLIP)
        return z


def trunk_of(folder: Path) -> int:
    """Return the version whose trunk a published version stands on; 0 for none, and where there is no such version any more."""
    try:
        trunk = int(json.loads((folder / SETTINGS).read_bytes()).get("trunk", 0))
    except (OSError, ValueError, TypeError):
        return 0
    return int(folder.name) if trunk == OWN else trunk


def _blind_to_new_looks(name: str, array: Array, looked: int) -> Array:
    """Return a tensor of a version that knew the first looks alone as of one to which the others are worth nothing."""
    nothing = np.full((*array.shape[:-1], NUM_LOOKS - looked), float(name.endswith("scale_D")), np.float32)
    return np.concatenate([array[..., :looked], nothing, array[..., looked:]], -1)


def matrix(features: Sequence[bytes], texts: Sequence[str]) -> Array:
    """Return what is known of every answer, a row each: how its text looks, then its features (with a trunk's number behind them)."""
    return np.concatenate([looks(texts), unpack(features)], 1)


def unpack(features: Sequence[bytes]) -> Array:
    """Return fp16 feature bytes as a float32 matrix, one row per answer."""
    return np.stack([np.frombuffer(f, "<f2") for f in features]).astype(np.float32)
