"""Every metric of serve, declared once; prefix `attune_`, base units, few label values."""

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from attune.types import LEARNING, QUALITY, ArtifactKind, Interaction, Version

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0)

REQUESTS = Counter("attune_requests_total", "HTTP requests by route and status.", ["route", "status"])
REQUEST_SECONDS = Histogram("attune_request_seconds", "Time to the end of a chat reply.", buckets=SECONDS)
CANDIDATES = Counter("attune_candidates_total", "Candidates sampled.")
TOKENS = Counter("attune_tokens_total", "Tokens sampled, all candidates together.")
LEARNING_TOKENS = Counter("attune_learning_tokens_total", "Tokens sampled for learning alone; 0 while traffic suffices.")
SCORER_SECONDS = Histogram("attune_scorer_seconds", "Frozen pass and scoring of one request's candidates.", buckets=SECONDS)
SCORER_FAILURES = Counter("attune_scorer_failures_total", "Requests answered without scores because the scorer failed.")
FEEDBACK = Counter("attune_feedback_received_total", "Votes acknowledged, by kind.", ["kind"])
WITHDRAWALS = Counter("attune_withdrawals_received_total", "Withdrawals acknowledged.")
MINUTES = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0)

VOTE_SECONDS = Histogram(
    "attune_vote_to_live_seconds", "From a vote's receipt to its first live version, by kind.", ["kind"], buckets=MINUTES
)
REWARD_QUALITY = Gauge(
    "attune_reward_quality", "How well votes were foretold before they were learned, by kind of vote.", ["kind", "figure"]
)
REWARD_STYLE = Gauge("attune_reward_style", "How far utility goes with a style of answers: correlation over typical ones.", ["style"])
CORRELATION = "correlation_with_"
POLICY_FIGURE = Gauge("attune_policy_figure", "The live policy's report, under TRL's names.", ["figure"])
POLICY_VERSION = Gauge("attune_policy_version", "Policy version that new requests get.")
REWARD_VERSION = Gauge("attune_reward_version", "Reward version that ranks candidates.")
SWAPS = Counter("attune_swaps_total", "Versions made live, by kind.", ["kind"])
SWAP_SECONDS = Histogram("attune_swap_seconds", "From seeing a promotion to the flip.", buckets=SECONDS)
REFUSED = Counter("attune_versions_refused_total", "Promoted versions that this server would not serve, by kind.", ["kind"])
ENGINE_DEATHS = Counter("attune_engine_deaths_total", "Engine cores that died and were replaced.")
UNCHECKED = Counter("attune_feedback_unchecked_total", "Votes taken on their token alone: their interaction could not be looked up.")
LOOP_FAILURES = Counter("attune_serve_loop_failures_total", "Rounds of a background loop that failed and were tried again.", ["loop"])


def observe(interaction: Interaction) -> None:
    """Count one answered request."""
    CANDIDATES.inc(len(interaction.candidates))
    tokens = sum(len(c.token_ids) for c in interaction.candidates)
    TOKENS.inc(tokens)
    if interaction.conversation_id == LEARNING:
        LEARNING_TOKENS.inc(tokens)


def forget_report(kind: ArtifactKind) -> None:
    """Show no report of a kind: version 0 has none, and the next may have other figures."""
    for gauge in (POLICY_FIGURE,) if kind == "policy" else (REWARD_QUALITY, REWARD_STYLE):
        gauge.clear()


def live(version: Version, received_at: Iterable[float], now: float) -> None:
    """Show the report of a version that has just gone live, and how long its votes took to get there."""
    for at in received_at:
        VOTE_SECONDS.labels(version.kind).observe(max(0.0, now - at))
    forget_report(version.kind)
    for name, value in version.report.items():
        kind, _, figure = name.partition("_")
        if isinstance(value, int | float) and version.kind == "policy":
            POLICY_FIGURE.labels(name).set(value)
        elif isinstance(value, int | float) and figure in QUALITY:
            REWARD_QUALITY.labels(kind, figure).set(value)
        elif isinstance(value, int | float) and name.startswith(CORRELATION):
            REWARD_STYLE.labels(name.removeprefix(CORRELATION)).set(value)
