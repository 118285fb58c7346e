"""What the learner knows of the world: votes in force, the answers they judge, and served interactions to learn from.

Follows the store by position and keeps in memory what the next fit and the next update need; everything can be read again from the
store after a restart. Decides nothing.
"""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice, takewhile
from operator import itemgetter

import numpy as np
import structlog

from attune.reward import Array, matrix
from attune.types import EVALUATION, Candidate, Demonstration, Feedback, Interaction, Preference, Signal
from feedback.store import Store, derive, objective, teaches
from learner import metrics
from learner.likelihoods import Index
from learner.reward_trainer import Judged, Typical
from learner.tripwires import MIN_ANSWERS
from learner.weights import Cast, weigh

log = structlog.get_logger()

PAGE = 500
MAX_VOTES = 1000
"""Votes in force that a fit looks at: what older ones taught lives on in the policy and in the trunk."""
MAX_NEWEST_VOTES = 500
"""The newest of them, whoever cast them; the others are everybody's newest by turns, so that nobody's votes push out all others'."""
MAX_WAITING = 256
MIN_ANCHORS, MAX_ANCHORS = 4, 128
"""Answers below which nothing is scaled by them, and requests after which no more are taken. Up to `tripwires.MIN_ANSWERS` answers,
it matters more to have something to compare with than which version gave it."""
MAX_HELD_OUT = 16
MAX_NEWEST = 48
HOLD_OUT_ONE_IN = 10
LOOK_BACK = 2000
"""Store positions before the last used interaction that are read again after a restart, to find held-out ones."""

NOTHING: Array = np.zeros((0, 0), np.float32)


class Journal:
    """The learner's memory of store and traffic."""

    def __init__(self, store: Store, seen: Callable[..., Interaction], objectives: Sequence[str] = ()) -> None:
        """`seen` gives an interaction the features that today's reward model reads (see `learner.eye`).

        `objectives` are the aspects of which votes are learned, too, each by itself.
        """
        self.store, self.seen, self.objectives = store, seen, objectives
        self.objective_taught = dict.fromkeys(objectives, 0)
        """Store position of the newest change of a vote on each of them."""
        self.position = 0
        """Store position up to which votes were read."""
        self.traffic_position = 0
        """Store position up to which interactions were read."""
        self.taught_position = 0
        """Store position of the newest change of a vote that teaches something."""
        self.votes: OrderedDict[str, tuple[int, Feedback]] = OrderedDict()
        """Votes in force by id, oldest change first, with their positions."""
        self._by_user: OrderedDict[str | None, OrderedDict[str, None]] = OrderedDict()
        """Their ids by user, who voted last at the end."""
        self._news: list[tuple[int, str, bool]] = []
        """Votes that came or changed, with their positions and whether they came, until what they judge has been fetched."""
        self.judged: dict[str, Interaction] = {}
        self._unreadable = set[str]()
        """Requests at which no look could be taken: their votes are not learned, until the learner starts again."""
        self.waiting: OrderedDict[str, tuple[int, Interaction]] = OrderedDict()
        """Interactions that no policy update has used, by id, with their positions."""
        self.held_out: OrderedDict[str, Interaction] = OrderedDict()
        self.anchors: OrderedDict[str, Interaction] = OrderedDict()
        """The first requests ever answered, by the version that answered the first: what is typical before votes taught anything."""
        self.newest: deque[tuple[int, Interaction]] = deque(maxlen=MAX_NEWEST)
        """The newest requests that a learned policy answered, with their positions."""

    def refresh(self, used_through: int) -> list[tuple[int, str]]:
        """Read what is new in the store and return the votes in force that came, with their positions.

        Those that only changed are read, too, but not returned: a prediction would be by a model that knew what they said before.
        Interactions up to position `used_through` are not offered for updates again.
        """
        self._read_traffic(used_through)
        while page := self.store.feedback_after(self.position, PAGE):
            came = [self._take(row.position, row.feedback, row.in_force) for row in page]
            self.position = page[-1].position
            self._news += [(r.position, r.feedback.id, new) for r, new in zip(page, came, strict=True) if r.feedback.id in self.votes]
        if self._news or not self.judged:
            self._fetch_judged()
        news, self._news = self._news, []
        return [(position, ident) for position, ident, came in news if came and ident in self.votes]

    def forget_waiting(self, through: int) -> None:
        """Offer interactions up to this position no more."""
        for ident in [ident for ident, (position, _) in self.waiting.items() if position <= through]:
            del self.waiting[ident]

    def see_again(self) -> None:
        """Look with other eyes at what was judged and at what is typical."""
        for known in (self.judged, self.anchors):
            for ident, interaction in known.items():
                known[ident] = self.seen(interaction, served=False)

    def signals(self, only: Collection[str] | None = None, about: str | None = None) -> list[Signal]:
        """Return the training signals of the newest votes in force, or only those of the feedback ids named.

        They are those `about` an objective, or by default the answer as a whole.
        """
        newest = [f for f in self._newest() if objective(f) == about and (only is None or f.id in only)]
        return [s for f in newest if (i := self.judged.get(f.interaction_id)) for s in derive(i, f, self.objectives)]

    def judged_answers(self, edits: Mapping[str, bytes], weights: Mapping[str, float], about: str | None = None) -> Judged:
        """Return what a fit needs: the signals, and the features of every answer that they name.

        `edits` are features by feedback id, `weights` what `weights` returned; `about` names an objective.
        """
        signals = [replace(s, weight=s.weight * weights[s.feedback_id]) for s in self.signals(about=about)]
        features, texts = list[bytes](), list[str]()
        rows: Index = {}
        edit_rows: dict[str, int] = {}
        for signal in signals:
            for candidate in _named(signal):
                if (signal.interaction_id, candidate) not in rows:
                    rows[signal.interaction_id, candidate] = len(features)
                    answer = self.judged[signal.interaction_id].candidates[candidate]
                    features.append(answer.features or b"")
                    texts.append(answer.text)
            if isinstance(signal, Demonstration) and signal.feedback_id in edits:
                edit_rows[signal.feedback_id] = len(features)
                features.append(edits[signal.feedback_id])
                texts.append(signal.text)
        return Judged(matrix(features, texts) if features else NOTHING, rows, edit_rows, signals, texts)

    def weights(self, *, half_life_s: float, max_importance: float) -> dict[str, float]:
        """Return by feedback id how much each of the newest votes in force counts."""
        newest = [(f, i) for f in self._newest() if (i := self.judged.get(f.interaction_id))]
        casts = [Cast(f.user, f.received_at, i.propensities[f.choice] if f.choice < len(i.propensities) else 1.0) for f, i in newest]
        counted = weigh(casts, half_life_s=half_life_s, max_importance=max_importance)
        return {feedback.id: weight for (feedback, _), weight in zip(newest, counted, strict=True)}

    def typical(self) -> Typical | None:
        """Return the answers that scale features and rewards; None while there are too few."""
        candidates = self._typical_answers()
        if len(candidates) < MIN_ANCHORS:
            return None
        texts = [c.text for c in candidates]
        return Typical(matrix([c.features or b"" for c in candidates], texts), texts)

    def newest_prompts(self, count: int) -> list[Interaction]:
        """Return interactions with different prompts that were voted on last, whatever they were sampled with."""
        found: dict[tuple[int, ...], Interaction] = {}
        for _, feedback in reversed(self.votes.values()):
            interaction = self.judged.get(feedback.interaction_id)
            if interaction is not None and not held_out(interaction.id):
                found.setdefault(interaction.prompt_token_ids, interaction)
            if len(found) >= count:
                break
        return list(found.values())[:count]

    def votes_after(self, position: int) -> list[str]:
        """Return ids of votes in force that changed after a store position."""
        newer = takewhile(lambda item: item[1][0] > position, reversed(self.votes.items()))  # the order is that of positions
        return [ident for ident, _ in newer][::-1]

    def _newest(self) -> list[Feedback]:
        """Return the votes in force that are looked at, oldest first: however many there are, no more than these ever are."""
        if len(self.votes) <= MAX_VOTES:
            return [feedback for _, feedback in self.votes.values()]
        chosen = dict.fromkeys(islice(reversed(self.votes), MAX_NEWEST_VOTES))
        turns = [reversed(theirs) for theirs in reversed(self._by_user.values())]
        while len(chosen) < MAX_VOTES:
            going = []
            for turn in turns:
                if ident := next(turn, None):
                    chosen[ident] = None
                    going.append(turn)
            turns = going
        found = sorted((self.votes[ident] for ident in islice(chosen, MAX_VOTES)), key=itemgetter(0))
        return [feedback for _, feedback in found]

    def _take(self, position: int, feedback: Feedback, in_force: bool) -> bool:
        """Remember a vote and return whether it was unknown; not those that nothing learns from, which would crowd out the others."""
        if not teaches(feedback, self.objectives):
            return False
        self.taught_position = position
        if (about := objective(feedback)) is not None:
            self.objective_taught[about] = position
        known = feedback.id in self.votes
        if known:
            before = self.votes.pop(feedback.id)[1].user
            del self._by_user[before][feedback.id]
        if in_force:
            self.votes[feedback.id] = (position, feedback)
            self._by_user.setdefault(feedback.user, OrderedDict())[feedback.id] = None
            self._by_user.move_to_end(feedback.user)
        return not known

    def _fetch_judged(self) -> None:
        """Have the interactions of the newest votes, and now and then forget the others."""
        needed = {feedback.interaction_id for feedback in self._newest()}
        for ident, interaction in self.store.interactions(needed - self.judged.keys() - self._unreadable).items():
            try:
                self.judged[ident] = self.seen(interaction)
            except Exception:  # the border of one request: it must not keep all others from being learned
                metrics.UNREADABLE.inc()
                log.exception("interaction_unreadable", interaction=ident)
                self._unreadable.add(ident)
        if len(self.judged) > 2 * MAX_VOTES:
            self.judged = {ident: interaction for ident, interaction in self.judged.items() if ident in needed}

    def _read_traffic(self, used_through: int) -> None:
        while page := self.store.interactions_after(self.traffic_position, PAGE):
            for position, interaction in page:
                self._sort(position, interaction, used_through)
            self.traffic_position = page[-1][0]
            if len(self.anchors) >= MAX_ANCHORS:  # what lies between the first answers and the last used ones is of no use
                self.traffic_position = max(self.traffic_position, used_through - LOOK_BACK)

    def _is_typical(self, interaction: Interaction) -> bool:
        """Whether an interaction is among the first; that version need not be the base: people may come after `attune sft`."""
        if len(self.anchors) >= MAX_ANCHORS:
            return False
        first = next(iter(self.anchors.values()), interaction)
        return interaction.policy_version == first.policy_version or len(self._typical_answers()) < MIN_ANSWERS

    def _typical_answers(self) -> list[Candidate]:
        return [candidate for interaction in self.anchors.values() for candidate in interaction.candidates]

    def _sort(self, position: int, interaction: Interaction, used_through: int) -> None:
        if not _scored(interaction) or interaction.conversation_id == EVALUATION:
            return
        if self._is_typical(interaction):
            self.anchors[interaction.id] = self.seen(interaction)
        if interaction.policy_version:
            self.newest.append((position, interaction))
        if held_out(interaction.id):
            self.held_out[interaction.id] = interaction
            if len(self.held_out) > MAX_HELD_OUT:
                self.held_out.popitem(last=False)
        elif position > used_through:
            self.waiting[interaction.id] = (position, interaction)
            if len(self.waiting) > MAX_WAITING:
                self.waiting.popitem(last=False)


def held_out(interaction_id: str) -> bool:
    """Whether an interaction is kept for the gate and never trained on by PPO: one in ten, by a hash of its id."""
    return int(hashlib.sha256(interaction_id.encode()).hexdigest()[:8], 16) % HOLD_OUT_ONE_IN == 0


def _named(signal: Signal) -> tuple[int, ...]:
    return signal.order if isinstance(signal, Preference) else (signal.candidate,)


def _scored(interaction: Interaction) -> bool:
    return all(c.features is not None for c in interaction.candidates)
