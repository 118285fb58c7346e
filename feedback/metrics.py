"""Every metric of the consumer, declared once; what the serving program counts of its outbox is in `feedback.outbox_metrics`.

Names begin with `attune_`, units are base units, labels have few values and never hold a person's text.
"""

from prometheus_client import Counter, Gauge, Histogram

from feedback.outbox_metrics import FAST_S

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
