"""What the learner knows of the world: votes in force, the answers they judge, and served interactions to learn from.

Follows the store by position and keeps in memory what the next fit and the next update need; everything can be read again from the
store after a restart. Decides nothing.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from attune.reward import unpack
from attune.types import Demonstration, Feedback, Interaction, Signal
from feedback.store import Store, derive
from learner.likelihoods import Index
from learner.reward_trainer import Judged

PAGE = 500
MAX_VOTES = 2000
MAX_WAITING = 256
MAX_ANCHORS = 256
HOLD_OUT_ONE_IN = 10


@dataclass(frozen=True, slots=True)
class News:
    """What one look at the store brought: changed votes (with their positions) whose interactions are known."""

    votes: list[tuple[int, Feedback, bool]]
    interactions: int


class Journal:
    """The learner's memory of store and traffic."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.position = 0
        """Store position up to which votes were read."""
        self._traffic_position = 0
        self.votes: OrderedDict[str, tuple[int, Feedback]] = OrderedDict()
        """Votes in force by id, oldest change first, with their positions."""
        self.judged: dict[str, Interaction] = {}
        self.waiting: OrderedDict[str, tuple[int, Interaction]] = OrderedDict()
        """Interactions that no policy update has used, by id, with their positions."""
        self.held_out: OrderedDict[str, Interaction] = OrderedDict()
        self.anchors: OrderedDict[str, list[bytes]] = OrderedDict()
        """Features of the first answers ever served: what is typical before anything was learned."""

    def refresh(self, used_through: int) -> News:
        """Read what is new in the store; interactions up to position `used_through` are not offered for updates again."""
        interactions = self._read_traffic(used_through)
        votes: list[tuple[int, Feedback, bool]] = []
        while page := self.store.feedback_after(self.position, PAGE):
            missing = {row.feedback.interaction_id for row in page} - self.judged.keys()
            self.judged |= self.store.interactions(missing)
            for row in page:
                self._take(row.position, row.feedback, row.in_force)
                votes.append((row.position, row.feedback, row.in_force))
            self.position = page[-1].position
        return News(votes, interactions)

    def signals(self) -> list[Signal]:
        """Return the training signals of the newest votes in force."""
        newest = list(self.votes.values())[-MAX_VOTES:]
        return [s for _, f in newest if (i := self.judged.get(f.interaction_id)) and _scored(i) for s in derive(i, f)]

    def judged_answers(self, edits: dict[str, bytes]) -> Judged | None:
        """Return features and signals for a fit; None while there is nothing to learn from. `edits`: features by feedback id."""
        signals = self.signals()
        if not signals:
            return None
        features: list[bytes] = []
        rows: Index = {}
        for ident in dict.fromkeys(s.interaction_id for s in signals):
            for candidate in self.judged[ident].candidates:
                rows[ident, candidate.index] = len(features)
                features.append(candidate.features or b"")
        edit_rows: dict[str, int] = {}
        for signal in signals:
            if isinstance(signal, Demonstration) and signal.feedback_id in edits:
                edit_rows[signal.feedback_id] = len(features)
                features.append(edits[signal.feedback_id])
        return Judged(unpack(features), rows, edit_rows, signals)

    def votes_after(self, position: int) -> list[str]:
        """Return ids of votes in force that changed after a store position."""
        return [ident for ident, (at, _) in self.votes.items() if at > position]

    def _take(self, position: int, feedback: Feedback, in_force: bool) -> None:
        self.votes.pop(feedback.id, None)
        if in_force:
            self.votes[feedback.id] = (position, feedback)

    def _read_traffic(self, used_through: int) -> int:
        count = 0
        while page := self.store.interactions_after(self._traffic_position, PAGE):
            for position, interaction in page:
                self._sort(position, interaction, used_through)
            self._traffic_position = page[-1][0]
            count += len(page)
        return count

    def _sort(self, position: int, interaction: Interaction, used_through: int) -> None:
        if not _scored(interaction):
            return
        if len(self.anchors) < MAX_ANCHORS and interaction.policy_version == 0:
            self.anchors[interaction.id] = [c.features or b"" for c in interaction.candidates]
        if held_out(interaction.id):
            self.held_out[interaction.id] = interaction
            if len(self.held_out) > 16:
                self.held_out.popitem(last=False)
        elif position > used_through:
            self.waiting[interaction.id] = (position, interaction)
            if len(self.waiting) > MAX_WAITING:
                self.waiting.popitem(last=False)


def held_out(interaction_id: str) -> bool:
    """Whether an interaction is kept for the gate and never trained on by PPO: one in ten, by a hash of its id."""
    return int(hashlib.sha256(interaction_id.encode()).hexdigest()[:8], 16) % HOLD_OUT_ONE_IN == 0


def _scored(interaction: Interaction) -> bool:
    return all(c.features is not None for c in interaction.candidates)
