"""The loop of learning: read votes, refit the reward model, and when enough votes wait, step, judge and publish the policy.

Everything that it remembers can be read again from store and registry, so a kill at any moment costs at most the step under way:
votes and rollouts of an unpublished step are used again, those of a published one never.
"""

import threading
import time
from pathlib import Path
from typing import Any

import structlog

from attune.config import Config
from attune.errors import Diverged
from attune.frozen import Answer, FrozenBase
from attune.registry import Registry
from attune.reward import RewardModel, unpack
from attune.types import Demonstration, State
from feedback.store import Store
from learner import evaluate, gate, metrics, ppo, publish, reward_trainer
from learner.data import Journal
from learner.policy import Policy
from learner.prequential import Prequential
from learner.rollout import Rollout, make_rollout, tied, unusable

log = structlog.get_logger()

MAX_STEP_KL_NATS = 3.0
MIN_ANCHORS = 8


class Cycle:
    """One learner over one store and one registry."""

    def __init__(self, config: Config, store: Store, registry: Registry, base: FrozenBase, policy: Policy, tokenizer: Any) -> None:
        self.config, self.registry, self.base, self.policy, self.tokenizer = config, registry, base, policy, tokenizer
        self.journal = Journal(store)
        self.prequential = Prequential()
        self.edits: dict[str, bytes] = {}
        self.reward = RewardModel.prior(base.feature_width)
        self._waiting_since: float | None = None
        self._resume()

    def run(self, stop: threading.Event) -> None:
        """Learn until told to stop; a failed cycle is logged, counted and tried again after a pause."""
        pause_s = self.config.learner.poll_interval_s
        while not stop.is_set():
            try:
                busy = self.once()
                pause_s = 0.0 if busy else self.config.learner.poll_interval_s
            except Exception:  # the outer loop
                metrics.LOOP_FAILURES.inc()
                log.exception("cycle_failed")
                pause_s = min(60.0, 2 * pause_s + 1.0)
            stop.wait(pause_s)

    def once(self) -> bool:
        """Learn what is new; return whether there was anything to do."""
        news = self.journal.refresh(self.used_through)
        if news.votes:
            self._predict(news.votes)
            self._learn_reward()
        if self._due():
            self._learn_policy()
            return True
        return bool(news.votes)

    def _due(self) -> bool:
        waiting = len(self.journal.votes_after(self.tried_through))
        if not waiting or not self.journal.waiting or not self.reward.version:
            self._waiting_since = None
            return False
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        settings = self.config.learner
        return waiting >= settings.min_votes_per_update or now - self._waiting_since >= settings.max_vote_wait_s

    def _learn_reward(self) -> None:
        self._look_at_edits()
        judged = self.journal.judged_answers(self.edits)
        anchors = [f for group in self.journal.anchors.values() for f in group]
        if judged is None or len(anchors) < MIN_ANCHORS:
            return
        started = time.perf_counter()
        settings = self.config.learner
        model, report = reward_trainer.fit(judged, unpack(anchors), settings.pessimism, settings.seed + self.journal.position)
        figures = report | self.prequential.figures()
        metrics.REWARD_FIT_SECONDS.observe(time.perf_counter() - started)
        metrics.REWARD_ACCURACY.set(figures.get("pair_accuracy", 0.0))
        events = tuple(self.journal.votes_after(self._reward_through()))
        version = self.registry.publish(
            "reward", model.to_files(), parent=self.registry.champion("reward"), **self._lineage(), report=figures, events=events
        )
        self.registry.promote("reward", version.number, by="learner", reason="refitted on all votes in force")
        self.reward = RewardModel.load(self.registry.folder("reward", version.number))
        metrics.REWARD_FITS.inc()
        log.info("reward_published", version=version.number, votes=len(judged.signals), seconds=round(time.perf_counter() - started, 3))

    def _learn_policy(self) -> None:
        started = time.perf_counter()
        rollouts, through = self._rollouts()
        if rollouts:
            self.tried_through = self.journal.position
        held = [make_rollout(i, self.reward, self.config.learner.pessimism) for i in list(self.journal.held_out.values())[-4:]]
        report: dict[str, Any] = {"groups": len(rollouts), "interactions_through": through}
        if rollouts:
            report |= self._step(rollouts, held, report)
        report["seconds"] = round(time.perf_counter() - started, 2)
        self.used_through = through
        metrics.POLICY_UPDATE_SECONDS.observe(report["seconds"])

    def _step(self, rollouts: list[Rollout], held: list[Rollout], report: dict[str, Any]) -> dict[str, Any]:
        checks = held or rollouts[:2]
        probes = publish.fingerprint_probes(rollouts)
        before, old = evaluate.look(self.policy, checks), self.policy.snapshot()
        parent_logprobs = publish.probe_logprobs(self.policy, probes)
        try:
            report |= ppo.update(self.policy, rollouts, self.config.learner)
            after, moved = self._bounded(checks, before, old)
        except Diverged as error:
            self.policy.restore(old)
            self.policy.optimizer.state.clear()
            metrics.POLICY_UPDATES.labels("diverged").inc()
            log.warning("update_diverged", reason=str(error))
            return report
        texts = [c.text for _, i in self.journal.waiting.values() for c in i.candidates] or ["-"]
        report |= {
            "held_out_before": evaluate.held_out_reward(checks, before),
            "held_out_after": evaluate.held_out_reward(checks, after),
            "step_kl": moved,
            "empty_share": sum(not t.strip() for t in texts) / len(texts),
        }
        self._publish(publish.files(self.policy, probes, parent_logprobs, report), report, old)
        return report

    def _bounded(self, checks: list[Rollout], before: evaluate.Seen, old: list[Any]) -> tuple[evaluate.Seen, float]:
        """Return what the stepped policy thinks, having halved the step until it moved no further than allowed."""
        for _ in range(4):
            after = evaluate.look(self.policy, checks)
            moved = evaluate.step_kl(checks, before, after)
            if moved <= MAX_STEP_KL_NATS:
                return after, moved
            self.policy.restore(old, share=0.5)
        raise Diverged(f"the update moved the policy by {moved:.1f} nats per answer even after halving it")

    def _publish(self, files: dict[str, bytes], report: dict[str, Any], old: list[Any]) -> None:
        decision = gate.judge(report, self.config.learner.kl_limit_nats)
        lineage = self._lineage()
        version = self.registry.publish(
            "policy", files, parent=self.parent, **lineage, report=report, reward_version=self.reward.version,
            events=tuple(self.journal.votes_after(self.trained_through)),
        )  # fmt: skip
        if decision.promote:
            self.policy.save_state(self._state_file(version.number))
            self.registry.promote("policy", version.number, by="learner", reason="passed the gate")
            self._state_file(self.parent).unlink(missing_ok=True)
            self.parent, self.trained_through = version.number, version.trained_through
        else:
            self.registry.move("policy", version.number, State.REJECTED, by="learner", reason="; ".join(decision.reasons))
            self.policy.restore(old)
        outcome = "promoted" if decision.promote else "rejected"
        metrics.POLICY_UPDATES.labels(outcome).inc()
        for name, value in report.items():
            metrics.PPO.labels(name).set(value)
        log.info("policy_published", version=version.number, outcome=outcome, reasons=decision.reasons, **report)

    def _rollouts(self) -> tuple[list[Rollout], int]:
        """Return the newest usable groups and the position through which interactions are now used up."""
        settings, chosen = self.config.learner, []
        through = max(position for position, _ in self.journal.waiting.values())
        for _, interaction in reversed(self.journal.waiting.values()):
            reason = unusable(interaction, self.parent, settings.max_staleness_versions)
            rollout = None if reason else make_rollout(interaction, self.reward, settings.pessimism)
            if rollout is None or tied(rollout):
                metrics.SKIPPED_GROUPS.labels(reason or "tied").inc()
            elif len(chosen) < settings.max_groups_per_update:
                chosen.append(rollout)
            else:
                metrics.SKIPPED_GROUPS.labels("surplus").inc()
        self.journal.waiting.clear()
        return chosen[::-1], through

    def _look_at_edits(self) -> None:
        for signal in self.journal.signals():
            if isinstance(signal, Demonstration) and signal.feedback_id not in self.edits:
                interaction = self.journal.judged[signal.interaction_id]
                ids = tuple(self.tokenizer(signal.text, add_special_tokens=False)["input_ids"])
                eos = self.tokenizer.eos_token_id
                answer = Answer((*ids, eos) if eos is not None else ids, True)
                (seen,) = self.base.look(interaction.prompt_token_ids, [answer], interaction.sampling.temperature or 1.0)
                self.edits[signal.feedback_id] = seen.features

    def _predict(self, votes: list[Any]) -> None:
        if not self.reward.version:
            return
        fresh = {ident for _, feedback, in_force in votes if in_force for ident in [feedback.id]}
        for signal in self.journal.signals():
            if signal.feedback_id in fresh:
                features = [c.features or b"" for c in self.journal.judged[signal.interaction_id].candidates]
                self.prequential.add(signal, self.reward.utility(features)[0].tolist())

    def _lineage(self) -> dict[str, Any]:
        return {
            "base_model": self.config.model_identity,
            "base_revision": self.config.model.revision or "",
            "trained_through": self.journal.position,
        }

    def _reward_through(self) -> int:
        number = self.registry.champion("reward")
        return self.registry.version("reward", number).trained_through if number else 0

    def _state_file(self, number: int) -> Path:
        return self.config.home / "learner" / f"state-{number:06d}.safetensors"

    def _resume(self) -> None:
        """Stand where the registry says: champion's weights, newest reward version, and nothing used twice."""
        self.parent = self.registry.champion("policy")
        if self.parent:
            self.policy.load_adapter(self.registry.folder("policy", self.parent))
            if self._state_file(self.parent).is_file():
                self.policy.load_state(self._state_file(self.parent))
        versions = [self.registry.version("policy", n) for n in self.registry.numbers("policy")]
        self.used_through = max((int(v.report.get("interactions_through", 0)) for v in versions), default=0)
        self.tried_through = max((v.trained_through for v in versions), default=0)
        self.trained_through = self.registry.version("policy", self.parent).trained_through if self.parent else 0
        if number := self.registry.champion("reward"):
            self.reward = RewardModel.load(self.registry.folder("reward", number))
        log.info("learner_resumed", policy_version=self.parent, reward_version=self.reward.version, trained_through=self.trained_through)
