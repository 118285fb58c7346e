"""How fast votes become a live policy while people chat, and what that costs the replies: a part of `benchmarks.learn`.

People of a taste ask every two seconds. For the cost of learning the learner is stopped and let go on by turns, so that both kinds of
replies come from the same policies: adapters make replies slower and a taste for brevity makes them faster, whoever learns.
"""

import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.deployment import Deployment

TASTES = ("friendly", "short")
"""Long answers, then brief ones: what a machine has time for between two requests is a matter of their length."""
VOTES, EVERY_S, TURN_S = 60, 2.0, 20.0
COST_VOTES = 180


def run(taste: str) -> dict[str, Any]:
    """Return the result of a session of a taste at that pace, its histogram, and how long replies of a second session took by turns."""
    options = {"taste": taste, "every_s": EVERY_S, "judge_prompts": 0}
    with Deployment() as deployment:
        result = deployment.simulate(votes=VOTES, **options)
        result["histogram"] = deployment.histogram("attune_vote_to_live_seconds", kind="policy")
        votes = deployment.home / "simulate" / "run" / "votes.jsonl"
        before, turns, done = len(votes.read_text().splitlines()), [time.time()], threading.Event()
        clock = threading.Thread(target=take_turns, args=(deployment.pid("learner"), turns, done))
        clock.start()
        second = deployment.simulate(votes=COST_VOTES, seed=1, wait_s=5, **options)
        done.set()
        clock.join()
        replies = [json.loads(line) for line in votes.read_text().splitlines()[before:]]
    failed = {"failed_requests": result["failed_requests"] + second["failed_requests"]}
    return result | failed | {"turns": turns, "replies": [[r["at"] - r["reply_s"], r["at"], r["reply_s"]] for r in replies]}


def take_turns(pid: int, turns: list[float], done: threading.Event) -> None:
    """Stop and continue a process by turns, writing down when; it runs at first and in the end."""
    while not done.wait(TURN_S):
        os.kill(pid, signal.SIGSTOP if len(turns) % 2 else signal.SIGCONT)
        turns.append(time.time())
    os.kill(pid, signal.SIGCONT)


def figures(taste: str, result: Mapping[str, Any]) -> dict[str, float]:
    """Return the pace of votes to a live policy, as receipts and the histogram on /metrics tell it, and what the replies pay.

    Figures of another taste than the first have its name in front.
    """
    learning, stopped = by_turn(result["turns"], result["replies"])
    found = {
        "vote_to_policy_p50_s": result["vote_to_live_s"]["p50"],
        "vote_to_policy_p95_s": result["vote_to_live_s"]["p95"],
        "vote_to_policy_p50_s_by_metrics": quantile(result["histogram"], 0.5),
        "vote_to_policy_p95_s_by_metrics": quantile(result["histogram"], 0.95),
        "reply_p50_s": statistics.median(learning),
        "reply_without_learner_p50_s": statistics.median(stopped),
        "reply_vs_without_learner": statistics.median(learning) / statistics.median(stopped),
        "replies_compared": float(len(learning) + len(stopped)),
    }
    return found if taste == TASTES[0] else {f"{taste}_{name}": value for name, value in found.items()}


def by_turn(turns: Sequence[float], replies: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Return the seconds of replies (from, to, seconds) that lay wholly in a turn: those of even turns, and those of odd ones.

    >>> by_turn([0.0, 10.0, 20.0], [(1.0, 3.0, 2.0), (9.0, 11.0, 2.0), (12.0, 15.0, 3.0)])
    ([2.0], [3.0])
    """
    found: tuple[list[float], list[float]] = ([], [])
    for number, (start, end) in enumerate(pairwise(turns)):
        found[number % 2].extend(seconds for begun, ended, seconds in replies if start <= begun and ended <= end)
    return found


def quantile(buckets: Sequence[Sequence[float]], share: float) -> float:
    """Return a quantile of a Prometheus histogram, `(upper bound, cumulative count)` each, linear within a bucket as PromQL has it.

    >>> quantile([(10.0, 0.0), (20.0, 4.0), (30.0, 8.0)], 0.5)
    20.0
    """
    wanted, below, under = share * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted and count > under:
            return below if bound == float("inf") else below + (bound - below) * (wanted - under) / (count - under)
        below, under = bound, count
    return below
