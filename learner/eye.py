"""What the learner sees of an answer: the frozen features that serve sent along, and behind them what the trunk in force says of it.

Serve makes both with the reward version that ranks. An answer that was ranked by another version lacks the number of this one's trunk:
then it is found in what the trunk said when it was made, or before it went live, or the answer is looked at again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from attune.errors import RegistryError
from attune.frozen import Answer, FrozenBase
from attune.registry import Registry
from attune.reward import RewardModel, trunk_of
from attune.trunk import Trunk, number
from attune.types import Interaction
from learner import metrics
from learner.trunk_trainer import SAID, Fitted, Late

log = structlog.get_logger()


def look_again(base: FrozenBase, trunk: Trunk | None, interaction: Interaction) -> Interaction:
    """Return an interaction with the features and reference log-probs that a base, with this trunk, gives its answers."""
    temperature = 1.0 if interaction.sampling.greedy else interaction.sampling.temperature
    answers = [Answer(c.token_ids, c.finish_reason == "stop") for c in interaction.candidates]
    looks = base.look(interaction.prompt_token_ids, answers, temperature, trunk)
    return replace(interaction, candidates=tuple(v.at(c) for c, v in zip(interaction.candidates, looks, strict=True)))


def look_at_edit(base: FrozenBase, trunk: Trunk | None, interaction: Interaction, token_ids: Sequence[int]) -> bytes:
    """Return the features that a base, with this trunk, gives an edited text."""
    (look,) = base.look(interaction.prompt_token_ids, [Answer(token_ids, True)], 1.0, trunk)
    return look.features


class Eye:
    """The base model and the trunk in force."""

    def __init__(self, base: FrozenBase, registry: Registry) -> None:
        self.base, self.registry = base, registry
        self.trunk_version = 0
        self.trunk: Trunk | None = None
        self._said: Mapping[str, Sequence[float]] = {}
        self._late = Late()
        self._trunk_of: dict[int, int] = {0: 0}

    def load(self, reward_version: int) -> RewardModel:
        """Return a reward version, version 0 being the prior."""
        if not reward_version:
            return RewardModel.prior(self.base.feature_width)
        return RewardModel.load(self.registry.folder("reward", reward_version))

    def follow(self, trunk_version: int) -> bool:
        """See with the trunk that a version brought (0: none); return whether that is another than before."""
        if trunk_version == self.trunk_version:
            return False
        trunk, said = None, {}
        if trunk_version:
            folder = self.registry.folder("reward", trunk_version)
            trunk = Trunk.load(self.base, folder)
            try:
                said = json.loads((folder / SAID).read_bytes())
            except (OSError, ValueError) as error:
                raise RegistryError(f"reward {trunk_version} does not tell what its trunk said: {error}") from error
        self.trunk, self._said, self._late, self.trunk_version = trunk, said, Late(), trunk_version
        return True

    def take(self, fitted: Fitted, trunk_version: int) -> None:
        """See with a trunk that has just been made."""
        self.trunk, self._said, self._late, self.trunk_version = fitted.trunk, fitted.said, fitted.late, trunk_version

    def seen(self, interaction: Interaction, *, served: bool = True) -> Interaction:
        """Return an interaction with features as this eye sees them, and with reference log-probs.

        `served`: its features are those that serve made, with the trunk of the version that ranked it; else another eye has seen it since.
        """
        if any(c.features is None for c in interaction.candidates):
            log.warning("features_missing", interaction=interaction.id)
            return self._again(interaction)
        if served and self._trunk_behind(interaction.reward_version) == self.trunk_version:
            return interaction
        bare = [(c.features or b"")[: 2 * self.base.feature_width] for c in interaction.candidates]
        if self.trunk is not None:
            said = self._said.get(interaction.id)
            if said is None or len(said) != len(bare):
                return self._late.asked.get(interaction.id) or self._again(interaction)
            bare = [features + number(value) for features, value in zip(bare, said, strict=True)]
        return replace(interaction, candidates=tuple(replace(c, features=f) for c, f in zip(interaction.candidates, bare, strict=True)))

    def edited(self, interaction: Interaction, token_ids: Sequence[int]) -> bytes:
        """Return the features of an answer as somebody would have had it."""
        known = self._late.edits.get((interaction.id, tuple(token_ids)))
        return look_at_edit(self.base, self.trunk, interaction, token_ids) if known is None else known

    def _again(self, interaction: Interaction) -> Interaction:
        metrics.LATE_LOOKS.inc()
        return look_again(self.base, self.trunk, interaction)

    def _trunk_behind(self, reward_version: int) -> int:
        """Return the trunk that the features of an interaction ranked by this version were made with."""
        if reward_version not in self._trunk_of:
            self._trunk_of[reward_version] = trunk_of(self.registry.folder("reward", reward_version))
        return self._trunk_of[reward_version]
