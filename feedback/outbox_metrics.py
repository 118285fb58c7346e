"""Metrics of the outbox, counted by the serving program. The consumer's are counted by another, and stay 0 where they are not."""

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
