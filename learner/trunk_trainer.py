"""Votes in, a trunk out, if it judges better: LoRA on the reward model's own layers, held against the frozen features on the newest votes.

It starts as the linear model fitted on all votes but the newest, so that step 0 is exactly that; both then predict the newest, which
neither has seen. Minibatches are whole requests: all votes on one, over one packed row, from the base's states at the trunk's first layer,
which are computed once. Shapes: T tokens of a row, N answers of a request, M answers of a batch.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

from attune.frozen import FrozenBase
from attune.packing import Packed, pack
from attune.reward import Array, RewardModel, Scale, matrix, unpack
from attune.style import NUM_LOOKS
from attune.trunk import WEIGHTS, Trunk, as_tensors, part, run
from attune.types import Interaction, Signal
from learner import reward_trainer
from learner.likelihoods import Index, knowing, make_batch, nll, star_middle, thumb_bias
from learner.prequential import Prequential

SAID = "trunk-said.json"
NEWEST, MIN_NEWEST, NEWEST_SHARE = 128, 24, 0.2
"""Votes kept back to compare by: a fifth of all, within these bounds."""
ALL_PREDICTIONS = 120 * NEWEST
"""More than the newest votes can make: a ranking of sixteen makes 120."""
EPOCHS, REQUESTS_PER_STEP = 2, 8
ADAPTER_LR, READOUT_LR, NUISANCE_LR, GRAD_CLIP = 3e-4, 1e-4, 1e-2, 1.0


class Stopped(Exception):
    """The program was told to stop in the middle of a fit or an update, which is to be forgotten."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request whose answers are judged: the candidates', then those of people's edits, by feedback id."""

    interaction: Interaction
    tokens: Sequence[tuple[int, ...]]
    features: Sequence[bytes]
    edits: Sequence[str] = ()
    present: Sequence[float] = ()
    """What the trunk in force says of the answers, if there is one."""

    @property
    def num_tokens(self) -> int:
        """Return the length of the row that they make."""
        return len(self.interaction.prompt_token_ids) + sum(map(len, self.tokens))

    def place_of(self, signal: Signal) -> int | None:
        """Return where the edited text of a signal stands among the answers; None where it has none."""
        if signal.feedback_id not in self.edits:
            return None
        return len(self.tokens) - len(self.edits) + self.edits.index(signal.feedback_id)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a fit is made of: signals with their requests, oldest first, and requests nobody judged, to know what is typical."""

    signals: Sequence[Signal]
    asked: Mapping[str, Asked]
    typical: Sequence[Asked]
    after: int = 0
    """The reward version that knew the same votes."""


@dataclass(frozen=True, slots=True)
class Late:
    """Answers that a new trunk's lesson did not hold, as seen with it: requests by id, edited texts by request and tokens (fp16)."""

    asked: dict[str, Interaction] = field(default_factory=dict)
    edits: dict[tuple[str, tuple[int, ...]], bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trunk, what it said of every answer of its lesson (by interaction, by feedback id for edits), and how it compared."""

    trunk: Trunk
    said: Mapping[str, Sequence[float]]
    report: Mapping[str, float]
    late: Late = field(default_factory=Late)

    @property
    def better(self) -> bool:
        """Whether it predicted the newest votes better than the frozen features did."""
        return self.report["trunk_log_loss"] < self.report["probe_log_loss"]

    @property
    def dismisses(self) -> bool:
        """Whether neither this trunk nor the one in force, which has not seen the newest votes either, predicted them better."""
        return not self.better and self.report.get("present_log_loss", 0.0) >= self.report["probe_log_loss"]

    def files(self) -> dict[str, bytes]:
        """Return what the version that brings this trunk holds besides."""
        return {WEIGHTS: self.trunk.to_bytes(), SAID: json.dumps(dict(self.said)).encode()}


def held_back(votes: int) -> int:
    """Return how many of the newest votes are kept back."""
    return max(MIN_NEWEST, min(NEWEST, round(NEWEST_SHARE * votes)))


def fit(base: FrozenBase, lesson: Lesson, seed: int, stopping: Callable[[], bool] = lambda: False) -> Fitted:
    """Return a trunk taught on all signals but the newest, on which it is compared with the linear model that it started as.

    Deterministic for the same input, seed and threads. Raises `Stopped`, and `RegistryError` where the base has no place for a trunk.
    """
    held = min(held_back(len(lesson.signals)), len(lesson.signals) // 2)
    probe = _probe(lesson, lesson.signals[:-held], seed)
    trunk = Trunk(base, as_tensors(*(known_D[NUM_LOOKS:] for known_D in (probe.center_D, probe.scale_D, probe.mean_D))))
    trunk.begin(seed)
    lower = part(base.network, 0, trunk.first)
    rows: dict[str, _Row] = {}
    for name, asked in lesson.asked.items():
        rows[name] = _Row(base, lower, asked)
        if stopping():
            raise Stopped
    scale = _teach(trunk, rows, lesson.signals[:-held], probe.scale, seed, stopping)
    said = {name: row.numbers(trunk) for name, row in rows.items()}
    frozen = {name: probe.judge(_without_looks(asked.features))[0].tolist() for name, asked in lesson.asked.items()}
    loss, temperature = _predicted(lesson, lesson.signals[-held:], said, scale)
    probe_loss, _ = _predicted(lesson, lesson.signals[-held:], frozen, probe.scale)
    calm = 1.0 / max(1.0, temperature)  # what was learned by heart sounds surer than it is
    trunk.readout.weight_D.mul_(calm)
    said = {name: [calm * x for x in numbers] for name, numbers in said.items()}
    for asked in lesson.typical:
        if stopping():
            raise Stopped
        if (name := asked.interaction.id) not in said:
            said[name] = _Row(base, lower, asked).numbers(trunk)
    report = {
        "trunk_log_loss": loss,
        "probe_log_loss": probe_loss,
        "trunk_temperature": temperature,
        "trunk_held_back": held,
        "trunk_from": lesson.after,
    }
    present = {name: asked.present for name, asked in lesson.asked.items()}
    if all(present.values()):
        report["present_log_loss"], _ = _predicted(lesson, lesson.signals[-held:], present, probe.scale)
    return Fitted(trunk, _by_name(lesson, said), {name: round(value, 4) for name, value in report.items()})


def _probe(lesson: Lesson, signals: Sequence[Signal], seed: int) -> RewardModel:
    """Return the linear model on frozen features that some signals teach."""
    features: list[bytes] = []
    rows: Index = {}
    edits: dict[str, int] = {}
    for name in dict.fromkeys(signal.interaction_id for signal in signals):
        asked = lesson.asked[name]
        candidates = len(asked.tokens) - len(asked.edits)
        rows |= {(name, k): len(features) + k for k in range(candidates)}
        edits |= {feedback_id: len(features) + candidates + k for k, feedback_id in enumerate(asked.edits)}
        features += asked.features
    texts = [c.text for asked in lesson.typical for c in asked.interaction.candidates]
    typical = reward_trainer.Typical(_without_looks([f for asked in lesson.typical for f in asked.features]), texts)
    return reward_trainer.fit(reward_trainer.Judged(_without_looks(features), rows, edits, signals), typical, 0.0, seed)[0]


def _without_looks(features: Sequence[bytes]) -> Array:
    """Return answers as known by their frozen features alone: what a trunk begins as, and is held against."""
    return matrix(features, [""] * len(features))


class _Row:
    """One request, ready for the trunk."""

    def __init__(self, base: FrozenBase, lower: Any, asked: Asked) -> None:
        self.edits = asked.edits
        self.prompt, self.answers = asked.interaction.prompt_token_ids, asked.tokens
        self.dtype = next(base.network.parameters()).dtype
        packed = self.packed()
        self.features_ND = torch.from_numpy(unpack(asked.features))
        with torch.no_grad():
            embedded_TH = base.network.get_input_embeddings()(packed.input_ids_1T)[0]
            self.states_TH = run(lower, embedded_TH, packed)

    def packed(self) -> Packed:
        """Return the row; it is made anew each time, since its mask grows with the square of its length."""
        return pack(self.prompt, self.answers, self.dtype)

    def judge(self, trunk: Trunk) -> torch.Tensor:
        return trunk.judge(self.states_TH, self.packed(), self.features_ND)

    @torch.no_grad()
    def numbers(self, trunk: Trunk) -> list[float]:
        return [float(x) for x in self.judge(trunk)]


def _teach(
    trunk: Trunk, rows: Mapping[str, _Row], signals: Sequence[Signal], known: Scale, seed: int, stopping: Callable[[], bool]
) -> Scale:
    """Fit adapter and readout by maximum likelihood of the votes, a few requests a step; return what thumbs and stars say then.

    That begins with what is `known` of thumbs: else the utility of every answer would have to rise until most thumbs are up.
    """
    of_request: dict[str, list[Signal]] = defaultdict(list)
    for signal in signals:
        of_request[signal.interaction_id].append(signal)
    nuisance = knowing(known.thumb_bias).requires_grad_(True)
    readout = trunk.readout.weight_D.requires_grad_(True)
    groups = [
        {"params": trunk.weights, "lr": ADAPTER_LR},
        {"params": [readout], "lr": READOUT_LR},
        {"params": [nuisance], "lr": NUISANCE_LR},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    names, random = list(of_request), Random(seed)
    for _ in range(EPOCHS):
        random.shuffle(names)
        for start in range(0, len(names), REQUESTS_PER_STEP):
            chosen = names[start : start + REQUESTS_PER_STEP]
            part_of_all = [s for name in chosen for s in of_request[name]]
            _step(trunk, optimizer, {name: rows[name] for name in chosen}, part_of_all, nuisance, len(part_of_all) / len(signals))
            if stopping():
                raise Stopped
    readout.requires_grad_(False)
    return Scale(1.0, thumb_bias(nuisance.detach()), star_middle(nuisance.detach()))


def _step(
    trunk: Trunk,
    optimizer: torch.optim.Optimizer,
    rows: Mapping[str, _Row],
    signals: Sequence[Signal],
    nuisance: torch.Tensor,
    share: float,
) -> None:
    places: Index = {}
    numbers: list[torch.Tensor] = []
    edits: dict[str, int] = {}
    count = 0
    for name, row in rows.items():
        numbers.append(row.judge(trunk))
        candidates = len(numbers[-1]) - len(row.edits)
        places |= {(name, k): count + k for k in range(candidates)}
        edits |= {feedback_id: count + candidates + k for k, feedback_id in enumerate(row.edits)}
        count += len(numbers[-1])
    batch = make_batch(signals, places, edits)
    loss = nll(batch, torch.cat(numbers), nuisance, torch.zeros(batch.num_users), share) / len(signals)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(trunk.weights, GRAD_CLIP)
    optimizer.step()
    optimizer.zero_grad()


def _predicted(lesson: Lesson, signals: Sequence[Signal], said: Mapping[str, Sequence[float]], scale: Scale) -> tuple[float, float]:
    """Return the mean log-loss of predicting these votes, at the temperature that suits best, and that temperature."""
    seen = Prequential(window=ALL_PREDICTIONS)
    for signal in signals:
        numbers = said[signal.interaction_id]
        place = lesson.asked[signal.interaction_id].place_of(signal)
        seen.add(signal, numbers, scale, None if place is None else numbers[place])
    return seen.log_loss()


def _by_name(lesson: Lesson, said: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """Return the candidates' numbers by interaction, and each edit's by its feedback id, as exact as they will be read again."""
    found: dict[str, Sequence[float]] = {}
    for name, exact in said.items():
        numbers = [round(x, 3) for x in exact]
        edits = lesson.asked[name].edits if name in lesson.asked else ()
        found[name] = numbers[: len(numbers) - len(edits)]
        found |= {feedback_id: [numbers[len(numbers) - len(edits) + k]] for k, feedback_id in enumerate(edits)}
    return found
