"""Every metric of the learner, declared once; PPO's names are those that TRL and CleanRL log."""

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)

VOTES_LEARNED = Gauge("attune_votes_learned", "Votes in force that the champion policy has learned from.")
REWARD_FITS = Counter("attune_reward_fits_total", "Reward versions published.")
REWARD_FIT_SECONDS = Histogram("attune_reward_fit_seconds", "Time of one reward fit.", buckets=SECONDS)
REWARD_QUALITY = Gauge("attune_learner_reward_quality", "How well votes were predicted before they were learned.", ["kind", "figure"])
TRUNK_FITS = Counter("attune_trunk_fits_total", "Fits of a trunk by outcome.", ["outcome"])
POLICY_UPDATES = Counter("attune_policy_updates_total", "Policy updates by outcome.", ["outcome"])
POLICY_UPDATE_SECONDS = Histogram("attune_policy_update_seconds", "Time of one policy update.", buckets=SECONDS)
SKIPPED_GROUPS = Counter("attune_groups_skipped_total", "Interactions that PPO did not use, by reason.", ["reason"])
LATE_LOOKS = Counter("attune_late_looks_total", "Judged interactions whose features serve did not give, made by the learner.")
LONG_EDITS = Counter("attune_long_edits_total", "Edits not learned from: with their prompt they exceed model.max_context_tokens.")
UNREADABLE = Counter("attune_unreadable_interactions_total", "Interactions that no look could be taken at: their votes are not learned.")
TOP_UPS = Counter("attune_top_ups_total", "Prompts put to serve again to learn from, by outcome.", ["outcome"])
STOPPED = Gauge("attune_learner_stopped", "1 while a tripwire keeps the policy from being updated.")
LOOP_FAILURES = Counter("attune_learner_loop_failures_total", "Cycles that failed and were tried again.")
PPO = Gauge("attune_ppo", "The last update's figures, under TRL's names.", ["figure"])


def show_quality(figures: Mapping[str, float]) -> None:
    """Show what `Prequential.figures` returned."""
    for name, value in figures.items():
        REWARD_QUALITY.labels(*name.split("_", 1)).set(value)
