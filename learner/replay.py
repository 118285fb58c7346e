"""`attune replay --until VERSION`: rebuild every version from store and seeds, in a folder aside, and compare.

The promotion log says what happened in which order, each version's report how far store and traffic had been read; the same loop is driven
through it again. On the same machine, with as many threads, the adapters are the same to the byte. A vote that was changed or withdrawn
since is no longer what the version learned: then versions differ, and it is said from which one on.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from attune import config as configuration
from attune.config import Config
from attune.errors import AttuneError, ConfigError
from attune.registry import Registry
from attune.telemetry import setup_logging
from attune.types import Interaction, Promotion, State, Version
from feedback.store import Store, StoredFeedback
from learner.program import assemble
from learner.trunk_trainer import Fitted

HASHED = {"policy": "adapter_model.safetensors", "reward": "reward.safetensors"}
MADE_BY = "learner"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One version, made again."""

    version: Version
    same: bool
    state: State | None
    """What became of it; None where none was made this time."""


class Past(Store):
    """The store as it was: nothing beyond two positions is read."""

    votes_through = 0
    traffic_through = 0

    def feedback_after(self, position: int, limit: int = 1000) -> list[StoredFeedback]:
        """Return what had been stored of the votes after a position."""
        return [row for row in super().feedback_after(position, limit) if row.position <= self.votes_through]

    def interactions_after(self, position: int, limit: int = 1000) -> list[tuple[int, Interaction]]:
        """Return what had been stored of the interactions after a position."""
        return [row for row in super().interactions_after(position, limit) if row[0] <= self.traffic_through]


class Replay:
    """The learner's loop over a scratch registry, driven by the log of the real one."""

    def __init__(self, config: Config, work: Path) -> None:
        self.source, self.scratch = Registry(config.registry_folder), Registry(work / "registry")
        store = Past.open(config.store_url)
        assert isinstance(store, Past)
        self.store = store
        model = config.model.model_copy(update={"path": config.model_folder})
        config = config.model_copy(update={"home": work, "model": model})
        self.cycle = assemble(config, store, self.scratch, threading.Event())
        reports = [self.source.version("reward", number).report for number in self.source.numbers("reward")]
        self._begun = {("reward", report["trunk_from"]) for report in reports if "trunk_from" in report}
        self._trunks: dict[int, Fitted] = {}

    def until(self, number: int) -> Iterator[Outcome]:
        """Make versions again, in the order of the log, up to and with the policy of this number."""
        for record in self._in_order():
            if record.by == MADE_BY and not self._overtaken(record):
                self._copy_unjudged(record)
                yield (outcome := self._again(record))
                if outcome.state is not record.move:  # whatever came next stood on something else
                    return
            else:
                self._copy_unjudged(record, through=record.version)
                self.scratch.move(record.kind, record.version, record.move, by=record.by, reason=record.reason)
            if (record.kind, record.version) == ("policy", number) and record.move is not State.TRIAL:
                return

    def _in_order(self) -> list[Promotion]:
        """Return what the log says was judged or moved, in the order in which it was begun.

        Votes that come during a policy update make reward versions meanwhile: the policy, judged after them, was begun before.
        """
        ordered = list[Promotion]()
        for record in self.source.log():
            if record.by == MADE_BY and record.move not in (State.CHAMPION, State.REJECTED):
                continue
            made = record.by == MADE_BY and record.kind == "policy"
            ordered.insert(self._place_of(self.source.version("policy", record.version), ordered) if made else len(ordered), record)
        return ordered

    def _place_of(self, policy: Version, ordered: Sequence[Promotion]) -> int:
        """Return the last place in the log at which its reward model was champion and no vote was learned that it did not know of."""
        first = place = len(ordered)
        while first and ordered[first - 1].kind == "reward":
            first -= 1
        for k, record in enumerate(ordered[first:], start=first):
            promoted = record.move is State.CHAMPION
            if promoted and self.source.version("reward", record.version).trained_through > policy.trained_through:
                place = k
                break
        while place > first and _judge(ordered[:place]) != policy.reward_version:
            place -= 1
        return place

    def _overtaken(self, record: Promotion) -> bool:
        """Whether a policy was refused only since somebody else moved the champion meanwhile: what it stood on is gone by now."""
        refused = record.kind == "policy" and record.move is State.REJECTED
        return refused and self.source.version("policy", record.version).parent != self.scratch.champion("policy")

    def _again(self, record: Promotion) -> Outcome:
        version = self.source.version(record.kind, record.version)
        self.store.votes_through = version.trained_through
        self.store.traffic_through = int(version.report["traffic_through"])
        if record.kind == "policy":
            used, tried = int(version.report["used_from"]), int(version.report.get("tried_from", self.cycle.at.tried_through))
            self.cycle.at = replace(self.cycle.at, used_through=used, tried_through=tried)
            self.cycle.journal.forget_waiting(used)
        if begun := version.report.get("trunk_from"):
            self.cycle.refit.ready = self._trunks.pop(int(begun))
        self.cycle.make(record.kind)
        if record.version not in self.scratch.numbers(record.kind):  # thrown away, this time
            return Outcome(version, False, None)
        if (record.kind, record.version) in self._begun:
            self._trunks[record.version] = self.cycle.refit.make(self.cycle.lesson())
        made = self.scratch.version(record.kind, record.version)
        name = HASHED[record.kind]
        state = self.scratch.state(record.kind, record.version)
        return Outcome(version, made.files[name] == version.files[name] and state is record.move, state)

    def _copy_unjudged(self, record: Promotion, through: int | None = None) -> None:
        """Take over versions that the loop did not make, or that nobody judged, so that numbers stay what they were."""
        for number in self.source.numbers(record.kind):
            if number < (record.version if through is None else through + 1) and number not in self.scratch.numbers(record.kind):
                shutil.copytree(self.source.folder(record.kind, number), self.scratch.folder(record.kind, number))


def _judge(log: Sequence[Promotion]) -> int:
    """Return the reward version that was champion at the end of a log."""
    line = [0]
    for record in log:
        if record.kind == "reward" and record.move is State.CHAMPION:
            line.append(record.version)
        elif record.kind == "reward" and record.move is State.ROLLED_BACK:
            line.remove(record.version)
    return line[-1]


def main(argv: list[str] | None = None) -> int:
    """Replay and say what came of it; 0: all the same, 1: some differ, 2: something needs a change."""
    parser = argparse.ArgumentParser(prog="attune replay", description="Rebuild versions from store and seeds, and compare.")
    parser.add_argument("--config", type=Path, help="configuration file (TOML)")
    parser.add_argument("--until", type=int, required=True, metavar="VERSION", help="the last policy version to rebuild")
    args = parser.parse_args(argv)
    setup_logging("learner")
    try:
        config = configuration.load(args.config)
        registry = Registry(config.registry_folder)
        if args.until not in registry.numbers("policy"):
            raise ConfigError(f"there is no policy version {args.until}; `attune versions` lists them")
        if registry.state("policy", args.until) is State.PUBLISHED:
            raise ConfigError(f"policy version {args.until} was never judged, so nothing says what it was made of: name another")
        torch.set_num_threads(config.learner.threads)
        with tempfile.TemporaryDirectory(prefix="attune-replay-", dir=os.environ.get("TMPDIR")) as work:
            outcomes = [_said(outcome) for outcome in Replay(config, Path(work)).until(args.until)]
    except AttuneError as error:
        print(f"attune replay: {error}", file=sys.stderr)
        return 2
    same = sum(outcome.same for outcome in outcomes)
    print(f"{same} of {len(outcomes)} versions are the same to the byte")
    return 0 if same == len(outcomes) else 1


def _said(outcome: Outcome) -> Outcome:
    verdict = "the same" if outcome.same else "differs"
    print(f"{outcome.version.kind} {outcome.version.number}: {verdict} ({outcome.state or 'thrown away'})", flush=True)
    return outcome


if __name__ == "__main__":
    raise SystemExit(main())
