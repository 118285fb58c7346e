"""The loop of learning: read votes, refit the reward model, and when enough votes wait, train, judge and publish the policy.

Everything that it remembers can be read again from store and registry, so a kill at any moment costs at most the step under way:
votes and rollouts of a version that was not judged are used again, those of a judged one never.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import structlog
from safetensors import SafetensorError

from attune import halt
from attune.config import Config
from attune.errors import Diverged
from attune.frozen import FrozenBase
from attune.packing import MAX_ROW_TOKENS
from attune.registry import Registry
from attune.reward import OWN
from attune.terms import Terms
from attune.types import ArtifactKind, Demonstration, Interaction, State, Version
from feedback.store import Store
from learner import challenger, gate, metrics, objectives, reward_trainer, sft, standing, turn
from learner.challenger import Challenger
from learner.data import Journal
from learner.evaluate import Looks
from learner.eye import Eye
from learner.policy import Policy
from learner.prequential import Prequential
from learner.readiness import Readiness
from learner.refit import Known, Refit, lesson
from learner.rollout import Rollout, make_rollout, tied, unusable
from learner.sft import Example
from learner.trunk_trainer import Lesson, Stopped

log = structlog.get_logger()

MAX_EDITS = 32
"""Edits that ride along in a policy update: they come one by one, but after a halt there may be hundreds."""
TAUGHT_PER_UPDATE = 4
"""Demonstrations of `attune sft` that ride along in a policy update."""


class Cycle:
    """One learner over one store and one registry."""

    def __init__(
        self,
        config: Config,
        store: Store,
        registry: Registry,
        base: FrozenBase,
        policy: Policy,
        tokenizer: Any,
        stop: threading.Event,
        top_up: Callable[[Sequence[Interaction]], int | None] = lambda prompts: 0,
        show: Callable[[Version], None] = lambda version: None,
    ) -> None:
        """`top_up` has the prompts of interactions answered anew (see `Readiness`); `show` is told of what was published."""
        self.config, self.registry, self.base, self.policy, self.tokenizer = config, registry, base, policy, tokenizer
        self.eye = Eye(base, registry)
        self.journal = Journal(store, self.eye.seen, config.objectives)
        self.refit = Refit(base, config.learner, stop, config.home / "learner" / "trunk-due")
        self.readiness = Readiness(config, self.journal, top_up)
        self.prequential = Prequential.load(config.home / "learner" / "foretold.json")
        self.terms = Terms.load(config.terms)
        self.edits: dict[str, bytes] = {}
        self._edited: dict[str, str] = {}
        self.reward = self.eye.load(0)
        self.stop = stop
        self._live = 0
        self._taught: list[Example] = []
        self._known: Looks = {}
        self._not_before = 0.0
        self._show = show
        self.at = standing.read(registry)
        self._follow()
        log.info("learner_resumed", policy_version=self.at.policy, reward_version=self.at.reward, trained_through=self.at.trained_through)

    def run(self) -> None:
        """Learn until told to stop; a failed cycle is logged, counted and tried again after a pause."""
        pause_s = self.config.learner.poll_interval_s
        while not self.stop.is_set():
            try:
                busy = self.once()
                pause_s = 0.0 if busy else self.config.learner.poll_interval_s
            except Stopped:
                log.info("update_forgotten", reason="told to stop")
            except Exception:  # the outer loop
                metrics.LOOP_FAILURES.inc()
                log.exception("cycle_failed")
                pause_s = min(60.0, 2 * pause_s + 1.0)
            self.stop.wait(pause_s)
        self.refit.wait()

    def once(self) -> bool:
        """Learn what is new; return whether there was anything to do."""
        self._read()
        self.refit.catch_up(self._named_in_fits)
        news = self.journal.taught_position > self.at.reward_through or self.refit.ready is not None
        refitted = news and self._learn_reward()
        if refitted:
            self.refit.consider(len(self.journal.votes), self.lesson)
        if self.readiness.ready(self.at, reward=self.reward.version, live=self._live):
            with turn.taken(self.config.home) as ours:  # or `attune sft` is at work
                if ours:
                    self._follow()
                    self._update()
                    return True
        return refitted

    def _update(self) -> None:
        if self._learn_policy():
            self.readiness.start_over()
        else:
            self.readiness.rest()

    def make(self, kind: ArtifactKind) -> None:
        """Make the next version of a kind now, from what the store holds, whether it is due or not: for replaying the past."""
        self._read()
        if kind == "reward":
            self._learn_reward()
        else:
            self._learn_policy()

    def _between_passes(self) -> None:
        """Let votes that come during a policy update change the reward model meanwhile: the reranker does not wait for the policy.

        That takes no more than half of the time, however many votes come.
        """
        if self.stop.is_set():
            raise Stopped
        if time.perf_counter() < self._not_before:
            return
        self._follow(updating=True)
        self._take_in()
        if self.journal.taught_position > self.at.reward_through:
            began = time.perf_counter()
            self._learn_reward()
            self._not_before = 2 * time.perf_counter() - began

    def _read(self) -> None:
        """Take in what is new of versions, traffic and votes."""
        self._follow()
        self._take_in()

    def _take_in(self) -> None:
        """Read traffic and votes; votes are predicted before they are learned."""
        news = self.journal.refresh(self.at.used_through)
        self._predict({ident for position, ident in news if position > self.at.reward_through})

    def _follow(self, *, updating: bool = False) -> None:
        """Stand on the champions: an operator may have rolled one back, or the last step promoted one. `updating`: the policy stays."""
        champion, reward = self.registry.champion("policy"), self.registry.champion("reward")
        if champion != self._live and not updating:
            self._stand_on(champion)
        if reward != self.reward.version:
            self.reward = self.eye.load(reward)
        if self.eye.follow(self.reward.trunk):
            self._see_again()
        if (champion, reward) != (self.at.policy, self.at.reward):
            now, tried, used = standing.read(self.registry), self.at.tried_through, self.at.used_through
            self.at = replace(now, tried_through=max(tried, now.tried_through), used_through=max(used, now.used_through))
        metrics.VOTES_LEARNED.set(len(self.journal.votes) - len(self.journal.votes_after(self.at.trained_through)))

    def _stand_on(self, champion: int) -> None:
        if champion:
            self.policy.load_adapter(self.registry.folder("policy", champion))
            self._take_up_state(champion)
        else:
            self.policy.reset()
        self._forget_states(but=champion)
        self._live, self._known = champion, {}
        self._taught = sft.taught(self.registry, champion)

    def _take_up_state(self, champion: int) -> None:
        """Go on with what the optimizer knew when this version was made, if that can still be read."""
        file = self._state_file(champion)
        try:
            if file.is_file():
                self.policy.load_state(file)
        except (OSError, SafetensorError, KeyError) as error:
            log.warning("optimizer_state_lost", policy_version=champion, file=str(file), reason=str(error))
            self.policy.load_adapter(self.registry.folder("policy", champion))

    def _learn_reward(self) -> bool:
        """Publish a reward version that knows every vote in force; return whether there were enough answers to do so."""
        started = time.perf_counter()
        if fitted := self.refit.take():
            self.eye.follow(0) if fitted.dismisses else self.eye.take(fitted, OWN)
            self._see_again()
        settings, typical, weights = self.config.learner, self.journal.typical(), self._weights()
        judged = self.journal.judged_answers(self.edits, weights)
        if typical is None or not (judged.signals or self.at.reward or any(self.journal.objective_taught.values())):
            return False
        before = self.registry.version("reward", self.at.reward) if self.at.reward else None
        wished, counts = objectives.learned(self.journal, weights, typical, self.reward, before, settings, self.base.feature_width)
        probes, spread = reward_trainer.plan(before, self.reward, len(self.journal.votes), self.journal.taught_position)
        model, report = reward_trainer.fit(
            judged, typical, settings.pessimism, settings.seed + self.journal.taught_position,
            temperature=self.prequential.temperature(), debias=settings.debias,
            trunk=self.eye.trunk is not None, probes=probes, spread=None if fitted else spread,
        )  # fmt: skip
        files, report = replace(model, trunk=self.eye.trunk_version, objectives=wished).to_files(), report | counts
        if fitted:
            files, report = files | ({} if fitted.dismisses else fitted.files()), report | dict(fitted.report)
        foreseen = self.prequential.figures()
        figures = report | foreseen | {"reliability": self.prequential.reliability()} | self._read_through()
        metrics.REWARD_FIT_SECONDS.observe(time.perf_counter() - started)
        metrics.show_quality(foreseen)
        events = tuple(self.journal.votes_after(before.trained_through if before else 0))  # after a roll-back, more than the new ones
        version = self.registry.publish(
            "reward", files, parent=self.at.reward, **self._lineage(), report=figures, events=events
        )  # fmt: skip
        if fitted and not fitted.dismisses:
            self.eye.take(fitted, version.number)
        self.registry.promote("reward", version.number, by="learner", reason="refitted on all votes in force")
        self.prequential.save()
        self._show(version)
        self._follow(updating=True)
        metrics.REWARD_FITS.inc()
        log.info("reward_published", version=version.number, votes=len(judged.signals), seconds=round(time.perf_counter() - started, 3))
        return True

    def _weights(self) -> dict[str, float]:
        """Return how much each of the newest votes in force counts, by id; all edits among them have been looked at."""
        self._look_at_edits()
        settings = self.config.learner
        return self.journal.weights(half_life_s=settings.vote_half_life_s, max_importance=settings.max_importance)

    def _named_in_fits(self) -> Known:
        """Return the requests whose answers a fit may name, each with the tokens of its edited texts."""
        texts: dict[str, list[tuple[int, ...]]] = {}
        for signal in self.journal.signals():
            if isinstance(signal, Demonstration) and signal.feedback_id in self.edits:
                texts.setdefault(signal.interaction_id, []).append(sft.answer_ids(self.tokenizer, signal.text))
        known = self.journal.judged | self.journal.anchors
        return [(interaction, texts.get(ident, ())) for ident, interaction in known.items()]

    def lesson(self) -> Lesson:
        """Return what a trunk could be made of now: the newest votes in force, and what is typical."""
        edited = {ident: (sft.answer_ids(self.tokenizer, self._edited[ident]), features) for ident, features in self.edits.items()}
        return lesson(
            self.journal.judged_answers(self.edits, self._weights()).signals, self.journal, edited, self.base, self.reward.version
        )

    def _learn_policy(self) -> bool:
        """Make and judge the next policy version; return whether there was any rollout to learn from."""
        started = time.perf_counter()
        settings = self.config.learner
        rollouts, through = self._rollouts()
        if not rollouts:
            self.at = replace(self.at, used_through=through)
            self.journal.forget_waiting(through)
            return False
        usable = [i for i in self.journal.held_out.values() if unusable(i, self._live, settings.max_staleness_versions) is None]
        newest = usable[-challenger.MAX_CHECKS :]
        held_out = [make_rollout(self.eye.seen(i), self.reward, settings.pessimism, self.terms) for i in newest]
        origin = self._lineage() | {"parent": self._live, "reward_version": self.reward.version}
        origin["events"] = tuple(self.journal.votes_after(self.at.trained_through))
        about = {"groups": len(rollouts), "interactions_through": through, "used_from": self.at.used_through} | self._read_through()
        about["tried_from"] = self.at.tried_through
        try:
            made = challenger.train(
                self.policy, rollouts, held_out, settings,
                live=self._live, end_token=self.tokenizer.eos_token_id, about=about, between=self._between_passes, known=self._known,
                demonstrations=self._demonstrations() if settings.demonstration_weight else (),
            )  # fmt: skip
            self._decide(made, origin, time.perf_counter() - started)
        except Diverged as error:
            metrics.POLICY_UPDATES.labels("diverged").inc()
            log.warning("update_diverged", reason=str(error))
            halt.discarded(self.config.home, str(error), policy_version=self._live)
        self.at = replace(self.at, used_through=through, tried_through=origin["trained_through"])
        self.journal.forget_waiting(through)
        return True

    def _decide(self, made: Challenger, origin: Mapping[str, Any], seconds: float) -> None:
        """Publish the challenger and make it champion, or refuse it and stand where we stood; `origin` is what it was made of."""
        decision = gate.judge(made.report, self.config.learner.kl_limit_nats)
        report = made.report | {"seconds": round(seconds, 2)}
        promoted = False
        try:
            version = self.registry.publish("policy", made.files, report=report, **origin)
            if decision.promote and self.registry.champion("policy") != self._live:
                reason = "another version became champion meanwhile"
                self.registry.move("policy", version.number, State.REJECTED, by="learner", reason=reason)
            elif decision.promote:
                self.policy.save_state(self._state_file(version.number))
                self.registry.promote("policy", version.number, by="learner", reason="passed the gate")
                promoted = True
            else:
                self.registry.move("policy", version.number, State.REJECTED, by="learner", reason="; ".join(decision.reasons))
        finally:
            if not promoted:
                self.policy.restore(made.before)
        if promoted:
            self._forget_states(but=version.number)
            self._live, self._known = version.number, made.seen
            self._follow()
        self._show(version)
        outcome = "promoted" if promoted else "rejected"
        metrics.POLICY_UPDATES.labels(outcome).inc()
        metrics.POLICY_UPDATE_SECONDS.observe(seconds)
        for name, value in report.items():
            metrics.PPO.labels(name).set(value)
        log.info("policy_published", version=version.number, outcome=outcome, reasons=decision.reasons, **report)

    def _rollouts(self) -> tuple[list[Rollout], int]:
        """Return the newest usable groups and the position through which interactions are used up by taking them."""
        settings, chosen = self.config.learner, list[Rollout]()
        through = max((position for position, _ in self.journal.waiting.values()), default=self.at.used_through)
        for _, interaction in reversed(self.journal.waiting.values()):
            reason = unusable(interaction, self._live, settings.max_staleness_versions)
            full = len(chosen) >= settings.max_groups_per_update
            rollout = None if reason or full else make_rollout(self.eye.seen(interaction), self.reward, settings.pessimism, self.terms)
            if rollout is None or tied(rollout):
                metrics.SKIPPED_GROUPS.labels(reason or ("surplus" if full else "tied")).inc()
            else:
                chosen.append(rollout)
        return chosen[::-1], through

    def _demonstrations(self) -> list[Example]:
        """Return the newest edits that no judged policy has seen, and a few of the demonstrations that this one comes from."""
        fresh = set(self.journal.votes_after(self.at.tried_through))
        edits = [s for s in self.journal.signals(fresh) if isinstance(s, Demonstration) and s.feedback_id in self.edits]
        few = Random(f"{self.config.learner.seed}/{self._live}").sample(self._taught, min(TAUGHT_PER_UPDATE, len(self._taught)))
        taught = few + [
            Example(self.journal.judged[s.interaction_id].prompt_token_ids, sft.answer_ids(self.tokenizer, s.text), s.weight)
            for s in edits[-MAX_EDITS:]
        ]
        return [example for example in taught if len(example.prompt) + len(example.answer) <= MAX_ROW_TOKENS]

    def _look_at_edits(self) -> None:
        signals = [signal for signal in self.journal.signals() if isinstance(signal, Demonstration)]
        for ident in self._edited.keys() - {signal.feedback_id for signal in signals}:
            del self._edited[ident]
            self.edits.pop(ident, None)
        for signal in signals:
            if self._edited.get(signal.feedback_id) != signal.text:
                interaction, ids = self.journal.judged[signal.interaction_id], sft.answer_ids(self.tokenizer, signal.text)
                if len(interaction.prompt_token_ids) + len(ids) <= self.config.model.max_context_tokens:
                    self.edits[signal.feedback_id] = self.eye.edited(interaction, ids)
                else:
                    self.edits.pop(signal.feedback_id, None)
                    metrics.LONG_EDITS.inc()
                    log.warning("edit_too_long", feedback=signal.feedback_id, tokens=len(ids), raise_it_with="model.max_context_tokens")
                self._edited[signal.feedback_id] = signal.text

    def _see_again(self) -> None:
        """Look with other eyes at everything that is remembered."""
        self.journal.see_again()
        self.edits.clear()
        self._edited.clear()

    def _predict(self, fresh: set[str]) -> None:
        """Score before we learn: hold fresh votes against the version that was live when they came."""
        if not self.reward.version or not fresh:
            return
        self._look_at_edits()
        for signal in self.journal.signals(fresh):
            candidates = self.journal.judged[signal.interaction_id].candidates
            utility = self.reward.utility([c.features or b"" for c in candidates], [c.text for c in candidates])[0]
            edited = None
            if isinstance(signal, Demonstration) and signal.feedback_id in self.edits:
                edited = float(self.reward.utility([self.edits[signal.feedback_id]], [signal.text])[0][0])
            self.prequential.add(signal, utility.tolist(), self.reward.scale, edited)

    def _lineage(self) -> dict[str, Any]:
        return {
            "base_model": self.config.model_identity,
            "base_revision": self.config.model_revision,
            "trained_through": self.journal.position,
        }

    def _read_through(self) -> dict[str, int]:
        """Return what a replay has to know of the moment, beyond the votes."""
        return {"traffic_through": self.journal.traffic_position, "taught_through": self.journal.taught_position}

    def _forget_states(self, *, but: int) -> None:
        """Delete what the optimizer knew at other versions, and what a kill left half-written: nobody goes on from there."""
        keep = self._state_file(but)
        for file in keep.parent.glob("state-*"):
            if file != keep:
                file.unlink(missing_ok=True)

    def _state_file(self, number: int) -> Path:
        return self.config.home / "learner" / f"state-{number:06d}.safetensors"
