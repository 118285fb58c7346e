"""Whether it is time for a policy update: votes enough, rollouts enough or asked for, and no wire tripped. Remembers what it waits for."""

import time
from collections.abc import Callable, Sequence

import structlog

from attune import halt
from attune.config import Config
from attune.types import Interaction, question
from learner import metrics, tripwires
from learner.data import Journal
from learner.rollout import unusable
from learner.standing import Standing

log = structlog.get_logger()

MAX_REST_S = 3600.0
TOP_UP_WAIT_S = 15.0
"""How long rollouts that were drawn for us may take through bus and store."""


class Readiness:
    """The questions that come before an update."""

    def __init__(self, config: Config, journal: Journal, top_up: Callable[[Sequence[Interaction]], int | None]) -> None:
        """`top_up` has the prompts of interactions answered anew and returns how many were; None while that is under way."""
        self.config, self.journal, self._top_up = config, journal, top_up
        self._waiting_since: float | None = None
        self._topped_until: float | None = None
        self._idle_until = 0.0
        self._rests, self._rested_at = 0, 0

    def ready(self, at: Standing, *, reward: int, live: int) -> bool:
        """Return whether to update now the policy that is `live`, with this reward version, and the registry standing `at`."""
        return self._due(at, reward) and not self._stopped_by_a_wire(at) and not self._awaits_rollouts(live)

    def start_over(self) -> None:
        """Wait anew: an update has been made."""
        self._waiting_since = self._topped_until = None
        self._rests = 0

    def rest(self) -> None:
        """Wait anew, each time for longer until somebody votes: no rollout taught anything, drawn ones included."""
        self._waiting_since = self._topped_until = None
        self._rests, self._rested_at = self._rests + 1, self.journal.taught_position
        self._idle_until = time.monotonic() + min(MAX_REST_S, self.config.learner.max_vote_wait_s * 2**self._rests)

    def _due(self, at: Standing, reward: int) -> bool:
        waiting = len(self.journal.votes_after(at.tried_through))
        now, settings = time.monotonic(), self.config.learner
        if self._rests and self.journal.taught_position != self._rested_at:
            self._rests, self._idle_until = 0, 0.0
        idle = not self.journal.waiting and (not settings.top_up_groups or now < self._idle_until)
        if not waiting or idle or not reward:
            self._waiting_since = None
            return False
        self._waiting_since = self._waiting_since or now
        return waiting >= settings.min_votes_per_update or now - self._waiting_since >= settings.max_vote_wait_s

    def _awaits_rollouts(self, live: int) -> bool:
        """Whether traffic gave too few rollouts and more are on their way, drawn for us from the prompts just voted on."""
        settings, now = self.config.learner, time.monotonic()
        have = sum(unusable(i, live, settings.max_staleness_versions) is None for _, i in self.journal.waiting.values())
        if have >= settings.top_up_groups:
            return False
        if self._topped_until is None:
            made = self._top_up(self.journal.newest_prompts(settings.top_up_groups - have))
            if made is None:
                return True
            self._topped_until = now + (TOP_UP_WAIT_S if made else 0.0)
            if not made:
                self._idle_until = now + settings.max_vote_wait_s
        return now < self._topped_until

    def _stopped_by_a_wire(self, at: Standing) -> bool:
        """Whether policy updates are stopped, by now or since earlier; reward versions go on."""
        if halt.read(self.config.home):
            metrics.STOPPED.set(1)
            return True
        since = halt.resumed_at(self.config.home)
        newest = [(question(i.messages), i.candidates[0].text) for position, i in self.journal.newest if position > since]
        typical = [(question(i.messages), c.text) for i in self.journal.anchors.values() for c in i.candidates]
        reasons = tripwires.tripped(newest, typical, self.config.learner.tripwires)
        metrics.STOPPED.set(bool(reasons))
        if reasons:
            halt.stop(self.config.home, reasons, policy_version=at.policy, position=self.journal.traffic_position)
            log.error("learner_stopped", policy_version=at.policy, reasons=reasons, resume_with="attune resume")
        return bool(reasons)
