"""Makes a new trunk for the reward model beside the loop, when votes have doubled since the last try.

What is better then looks at the answers that came while it was made, beside the loop as well: votes do not wait for that either.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import structlog
import torch

from attune.config import LearnerSection
from attune.errors import AttuneError
from attune.frozen import FrozenBase, twin
from attune.packing import MAX_ROW_TOKENS
from attune.types import Interaction, Signal
from learner import metrics, trunk_trainer
from learner.data import Journal
from learner.eye import look_again, look_at_edit
from learner.trunk_trainer import Asked, Fitted, Lesson

log = structlog.get_logger()

FEW, MOST_ROUNDS = 8, 4
"""Looks that may be left to the loop, and how often we look at what came meanwhile, however much that is."""

MAX_STATES = 1 << 28
"""Numbers that a lesson keeps of the base's states: a gigabyte in fp32."""

Known = Sequence[tuple[Interaction, Sequence[tuple[int, ...]]]]
"""Requests whose answers a fit may name, each with the tokens of its edited texts."""


class Refit:
    """At most one fit at a time, on a thread of its own; what it made waits for `take` when it has caught up with the loop."""

    def __init__(self, base: FrozenBase, settings: LearnerSection, stop: threading.Event, memory: Path) -> None:
        """`memory` is a file that says how many votes the next try waits for, so that a restart does not try again."""
        self.base, self.settings, self._stop, self._memory = base, settings, stop, memory
        self.ready: Fitted | None = None
        said = memory.read_text() if memory.is_file() else ""
        self.due_at = int(said) if said.isdecimal() else settings.trunk_votes
        self._thread: threading.Thread | None = None
        self._made: Fitted | None = None
        self._rounds = 0

    def consider(self, votes: int, lesson: Callable[[], Lesson]) -> None:
        """Begin a fit on the lesson if there are votes enough for the next one, and none is under way."""
        if not self.settings.trunk_votes or votes < self.due_at or self.busy:
            return
        while self.due_at <= votes:
            self.due_at *= 2
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        self._memory.write_text(str(self.due_at))
        self._begin(partial(self._fit, lesson()))

    def catch_up(self, known: Callable[[], Known]) -> None:
        """Have a trunk that was made look at what its lesson did not hold; once little of that is left, it is ready."""
        if self._made is None or self._alive:
            return
        said, late = self._made.said, self._made.late
        requests = known()
        asked = [i for i, _ in requests if i.id not in said and i.id not in late.asked]
        edits = [(i, tokens) for i, texts in requests for tokens in texts if (i.id, tokens) not in late.edits]
        if len(asked) + len(edits) <= FEW or self._rounds == MOST_ROUNDS:
            self.ready, self._made = self._made, None
            return
        self._rounds += 1
        self._begin(partial(self._look, self._made, asked, edits))

    @property
    def busy(self) -> bool:
        """Whether a fit is under way, or waits to be taken."""
        return self.ready is not None or self._made is not None or self._alive

    @property
    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _begin(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=self._run, args=(work,), name="trunk", daemon=True)
        self._thread.start()

    def make(self, lesson: Lesson) -> Fitted:
        """Return the trunk of a lesson, whether it is better or not."""
        return trunk_trainer.fit(self.base, lesson, self.settings.seed, self._stop.is_set)

    def take(self) -> Fitted | None:
        """Return the trunk that was made since, if it is better or the one in force is not, once."""
        fitted, self.ready = self.ready, None
        return fitted

    def wait(self) -> None:
        """Return when no fit is under way."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, work: Callable[[], None]) -> None:
        torch.set_num_threads(self.settings.threads)
        try:
            work()
            return
        except trunk_trainer.Stopped:
            return
        except AttuneError as error:
            log.warning("trunk_failed", reason=str(error))
        except Exception:  # the border of a thread: the loop goes on without a trunk
            log.exception("trunk_failed")
        metrics.TRUNK_FITS.labels("failed").inc()
        self._made = None

    def _fit(self, lesson: Lesson) -> None:
        fitted = self.make(lesson)
        metrics.TRUNK_FITS.labels("better" if fitted.better else "no_better").inc()
        log.info("trunk_fitted", better=fitted.better, **fitted.report)
        if fitted.better:
            self._made, self._rounds = fitted, 0
        elif fitted.dismisses:
            self.ready = fitted

    def _look(self, fitted: Fitted, asked: Sequence[Interaction], edits: Sequence[tuple[Interaction, tuple[int, ...]]]) -> None:
        base = FrozenBase(twin(self.base.network))  # the loop looks at answers at the same time
        for interaction in asked:
            self._heed_stop()
            fitted.late.asked[interaction.id] = look_again(base, fitted.trunk, interaction)
        for interaction, tokens in edits:
            self._heed_stop()
            fitted.late.edits[interaction.id, tokens] = look_at_edit(base, fitted.trunk, interaction, tokens)
        log.info("trunk_caught_up", requests=len(asked), edits=len(edits))

    def _heed_stop(self) -> None:
        if self._stop.is_set():
            raise trunk_trainer.Stopped


Edited = Mapping[str, tuple[tuple[int, ...], bytes]]
"""Tokens and features of edited texts, by feedback id."""


def lesson(signals: Sequence[Signal], journal: Journal, edited: Edited, base: FrozenBase, after: int) -> Lesson:
    """Return the lesson of some signals; `after` names the reward version that knew the same votes.

    Requests that are too long for a row stay out of it, and the oldest ones where their states would fill the memory.
    """
    edits: dict[str, list[str]] = {}
    for signal in signals:
        if signal.feedback_id in edited:
            edits.setdefault(signal.interaction_id, []).append(signal.feedback_id)
    names = dict.fromkeys(signal.interaction_id for signal in signals)
    width = base.feature_width
    every = {name: _asked(journal.judged[name], [(i, *edited[i]) for i in edits.get(name, ())], width) for name in names}
    room, asked = MAX_STATES // base.width, dict[str, Asked]()
    for name, one in reversed(every.items()):
        room -= one.num_tokens
        if one.num_tokens <= MAX_ROW_TOKENS and room >= 0:
            asked[name] = one
    typical = [i for i in journal.anchors.values() if i.num_tokens <= MAX_ROW_TOKENS]
    kept = [signal for signal in signals if signal.interaction_id in asked]
    return Lesson(kept, dict(reversed(asked.items())), [_asked(i, [], width) for i in typical], after)


def _asked(interaction: Interaction, edits: Sequence[tuple[str, tuple[int, ...], bytes]], width: int) -> Asked:
    """Return a request with its answers and edits, their frozen features (fp16), and what the trunk in force says, which stands behind."""
    features = [*(c.features or b"" for c in interaction.candidates), *(f for _, _, f in edits)]
    return Asked(
        interaction,
        [*(c.token_ids for c in interaction.candidates), *(tokens for _, tokens, _ in edits)],
        [f[: 2 * width] for f in features],
        [ident for ident, _, _ in edits],
        [float(x) for f in features for x in np.frombuffer(f[2 * width :], "<f2")],
    )
