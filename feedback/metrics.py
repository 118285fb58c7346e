"""Every metric of the feedback path, declared once: the outbox (counted in the serving program) and the consumer.

Names begin with `attune_`, units are base units, labels have few values and never hold a person's text.
"""

from prometheus_client import Counter, Gauge, Histogram

FAST_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

OUTBOX_WAITING = Gauge("attune_outbox_waiting", "Events accepted but not yet where the consumer reads them")
OUTBOX_COMMITTED = Counter("attune_outbox_committed", "Events made durable in the spool")
OUTBOX_COMMIT_SECONDS = Histogram("attune_outbox_commit_seconds", "Time of one group commit", buckets=FAST_S)
OUTBOX_SHED = Counter("attune_outbox_shed", "Interactions given up, so that no reply waits", ["reason"])
OUTBOX_FAILED = Counter("attune_outbox_failed_commits", "Group commits that the disk refused")
RELAYED = Counter("attune_relay_dispatched", "Events that the broker has acknowledged")
RELAY_FAILED = Counter("attune_relay_failed_tries", "Tries to reach the broker that failed and will be repeated")
RELAY_REFUSED = Counter("attune_relay_refused", "Events that the broker will never take; set aside in the spool")

EVENTS = Counter("attune_feedback_events", "Events written to the store", ["kind"])
IGNORED = Counter("attune_feedback_ignored", "Events that changed nothing", ["reason"])
DEAD_LETTERS = Counter("attune_feedback_dead_letters", "Events that could not be read and were set aside")
ORPHANS = Gauge("attune_feedback_orphans", "Votes that wait for their interaction")
ORPHANS_EXPIRED = Counter("attune_feedback_orphans_expired", "Votes given up because their interaction never came")
QUERYABLE_SECONDS = Histogram(
    "attune_feedback_queryable_seconds", "From the arrival of a vote until the store shows it", buckets=(*FAST_S, 10.0, 60.0)
)
LAG = Gauge("attune_feedback_lag_events", "Events in the log that the store does not hold yet")
HEARTBEAT = Gauge("attune_feedback_heartbeat_timestamp_seconds", "When the consumer last finished a round")
UNAVAILABLE = Counter("attune_feedback_unavailable", "Rounds given up because the bus or the store was away")
FENCED = Counter("attune_feedback_fenced", "Rounds thrown away because another consumer had moved the offsets")
FAILED = Counter("attune_feedback_failed_rounds", "Rounds given up because of an error nobody foresaw")
