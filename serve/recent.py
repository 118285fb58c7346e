"""The interactions of the last while, in memory: what a vote refers to before the store has it. Bounded; the store is the truth."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from attune.types import Interaction


@dataclass(frozen=True, slots=True)
class Summary:
    """What has to be known of an interaction to check a vote on it."""

    shown: tuple[int, ...]
    num_candidates: int
    user: str | None
    policy_version: int


class RecentInteractions:
    """The newest `limit` interactions by id; thread-safe."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._summaries: OrderedDict[str, Summary] = OrderedDict()

    def remember(self, interaction: Interaction) -> None:
        """Keep what a vote needs of an interaction, forgetting the oldest beyond the limit."""
        summary = Summary(interaction.shown, len(interaction.candidates), interaction.user, interaction.policy_version)
        with self._lock:
            self._summaries[interaction.id] = summary
            while len(self._summaries) > self._limit:
                self._summaries.popitem(last=False)

    def get(self, interaction_id: str) -> Summary | None:
        """Return the summary of an interaction, or None if it is not among the newest."""
        with self._lock:
            return self._summaries.get(interaction_id)
