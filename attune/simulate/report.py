"""What a simulation found, as a table for people and as one JSON object for programs. Pure but for the printing."""

import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from attune.simulate.session import ARMS, UNSAFE, Session


def summary(session: Session, status: dict[str, Any] | None) -> dict[str, Any]:
    """Return the result as JSON values; `lost` counts acknowledged votes that never reached the store."""
    plan, line, progress = session.plan, session.line, session.progress
    standing = Counter(session.standing(i) for i in session.acknowledged)
    delays = sorted(
        receipt["live_since"] - receipt["received_at"]
        for receipt in session.receipts.values()
        if receipt.get("live_since") is not None and receipt.get("received_at") is not None
    )
    return {
        "taste": plan.taste.name,
        "seed": plan.seed,
        "noise": plan.noise,
        "votes": len(session.acknowledged),
        "votes_by_kind": dict(sorted(progress.kinds.items())),
        "flipped": progress.flipped,
        "chats": progress.chats,
        "seconds": round(progress.seconds, 1),
        "requests": line.requests,
        "failed_requests": sum(line.failures.values()),
        "failures": dict(sorted(line.failures.items())),
        "receipts": dict(sorted(standing.items())),
        "distinct_votes": len(set(session.acknowledged)),
        "lost": sum(standing[state] for state in UNSAFE),
        "vote_to_live_s": {"p50": _quantile(delays, 0.5), "p95": _quantile(delays, 0.95), "votes": len(delays)},
        "reply_s": {"p50": _quantile(sorted(session.reply_s), 0.5), "p95": _quantile(sorted(session.reply_s), 0.95)},
        "off_task": None if session.off_task is None else session.off_task.as_json(),
        "policy_version": None if status is None else status.get("policy_version"),
        "reward_version": None if status is None else status.get("reward_version"),
        "policy_versions_met": sorted(progress.policy_versions),
        "judgements": [{"votes": p.votes, "policy_version": p.policy_version, "arm": p.arm} | p.verdict.as_json() for p in session.points],
    }


def print_table(result: dict[str, Any]) -> None:
    """Print the judgements, one row each, and what happened on the way; as wide as needed where there is no terminal."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table(title=f"taste: {result['taste']} (against the base model, held-out prompts)")
    for column in ("votes", "policy", "answers", "preferred", "95%", "of decided", "ties", "words", "distinct"):
        table.add_column(column, justify="right")
    for row in result["judgements"]:
        decided = row["decided_preference"]
        table.add_row(
            str(row["votes"]),
            str(row["policy_version"]),
            ARMS[row["arm"]].label,
            f"{row['preference']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
            "-" if decided is None else f"{decided:.2f}",
            f"{1 - row['decided_share']:.0%}",
            f"{row['mean_words']:.0f}",
            f"{row['distinct_share']:.2f}",
        )
    if result["judgements"]:
        console.print(table)
    delay = result["vote_to_live_s"]
    console.print(
        f"{result['votes']} votes acknowledged, {result['lost']} lost, {result['failed_requests']} of {result['requests']} requests failed"
        f" (and were repeated), {result['seconds']:.0f} s"
    )
    if delay["votes"]:
        console.print(f"vote to live policy: p50 {delay['p50']:.0f} s, p95 {delay['p95']:.0f} s, policy {result['policy_version']}")


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    if not ordered:
        return None
    if len(ordered) == 1:
        return round(ordered[0], 2)
    return round(statistics.quantiles(ordered, n=100, method="inclusive")[round(100 * share) - 1], 2)
