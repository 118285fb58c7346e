"""From the results of sessions to figures: what `benchmarks.learn` says of its runs. Pure but for the plot."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attune.simulate.judge import wilson

PLOT = Path(__file__).parent.parent / "docs" / "online-offline.png"
Run = Mapping[str, Any]


def of_taste(taste: str, runs: Sequence[Run], first_stop: int) -> dict[str, float]:
    """Return one taste's figures: means over its runs, and the interval that their prompts leave.

    How far one run lies from the next is `preference_deviation_of_runs`.
    """
    last = [final(run) for run in runs]
    low, high = wilson(mean([v["preference"] for v in last]), last[0]["prompts"])  # the same prompts in every run
    tied = [1 - v["decided_share"] for v in last]
    best = [max(v["preference"] for v in run["judgements"] if v["arm"] == "alone") for run in runs]
    ranked = [v["preference"] for run in runs for v in run["judgements"] if v["arm"] == "base reranked"]
    found = {
        "preference": mean([v["preference"] for v in last]),
        "preference_low": low,
        "preference_high": high,
        "lowest_preference": min(v["preference"] for v in last),
        "preference_deviation_of_runs": statistics.stdev([v["preference"] for v in last]) if len(last) > 1 else 0.0,
        "decided_preference": mean([v["decided_preference"] or 0.5 for v in last]),
        "ceiling": mean([1 - t / 2 for t in tied]),
        "perfect_policy": mean([1 - v["base_flawless_share"] / 2 for v in last]),
        "share_of_ceiling": mean([v["preference"] / (1 - t / 2) for v, t in zip(last, tied, strict=True)]),
        "reranked_preference": mean([run["judgements"][-1]["preference"] for run in runs]),
        f"reranking_alone_preference_at_{first_stop}_votes": mean(ranked),
        "worst_fall_from_best": max(b - v["preference"] for b, v in zip(best, last, strict=True)),
        "kl": mean([run["policies"][-1]["kl_to_ref"] for run in runs]),
        "highest_kl": max(policy["kl_to_ref"] for run in runs for policy in run["policies"]),
        "base_logprob_first": mean([run["policies"][0]["base_logprob"] for run in runs]),
        "base_logprob": mean([run["policies"][-1]["base_logprob"] for run in runs]),
        "off_task_preference": mean([run["off_task"]["preference"] for run in runs]),
        "overall_accuracy": mean([run["rewards"][-1].get("overall_accuracy", 0.0) for run in runs]),
        "overall_ece": mean([run["rewards"][-1].get("overall_ece", 0.0) for run in runs]),
        "explained_variance": mean([mean([policy["explained_variance"] for policy in run["policies"]]) for run in runs]),
        "zero_lag_k3": mean([run["zero_lag"]["k3"] for run in runs]),
        "zero_lag_distance": mean([run["zero_lag"]["distance"] for run in runs]),
        "failed_requests": float(sum(run["failed_requests"] for run in runs)),
        "halted": float(sum(bool(run["halted"]) for run in runs)),
        "runs": float(len(runs)),
    }
    for name in ("distinct", "finished", "repeating", "base_distinct", "base_finished", "base_repeating"):
        found[name] = mean([v[f"{name}_share"] for v in last])
    return {f"{taste}_{name}": value for name, value in found.items()}


def against_offline(taste: str, online: Sequence[Run], offline: Sequence[Run]) -> dict[str, float]:
    """Return how many votes on the base's answers do what one online does, where both end at least, and draw both curves.

    Below 1, online votes are the ones that more are needed of.
    """
    ours, theirs = curve(online), curve(offline)
    draw(taste, ours, theirs)
    reached = min(ours[-1][1], theirs[-1][1])
    online_votes, offline_votes = votes_for(ours, reached), votes_for(theirs, reached)
    return {
        "votes_online_vs_offline": offline_votes / max(1.0, online_votes),
        "offline_preference": theirs[-1][1],
        "online_preference": ours[-1][1],
        "online_votes": online_votes,
        "offline_votes": offline_votes,
    }


def curve(runs: Sequence[Run]) -> list[tuple[float, float]]:
    """Return votes and mean preference of the policy alone over the runs, from one half at no votes."""
    stops: dict[int, list[float]] = {}
    for run in runs:
        for v in run["judgements"]:
            if v["arm"] == "alone":
                stops.setdefault(v["votes"], []).append(v["preference"])
    return [(0.0, 0.5), *((float(votes), mean(seen)) for votes, seen in sorted(stops.items()))]


def votes_for(points: Sequence[tuple[float, float]], preference: float) -> float:
    """Return the votes at which a curve first reaches a preference, linear between its points; its last votes if it never does.

    >>> votes_for([(0.0, 0.5), (100.0, 0.7), (200.0, 0.8)], 0.6)
    50.0
    """
    for (v0, p0), (v1, p1) in itertools.pairwise(points):
        if p1 >= preference:
            return v0 + (v1 - v0) * max(0.0, preference - p0) / max(p1 - p0, 1e-9)
    return points[-1][0]


def draw(taste: str, online: Sequence[tuple[float, float]], offline: Sequence[tuple[float, float]]) -> None:
    """Draw both curves into the documentation."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), dpi=110)
    for points, label, colour in ((online, "votes on the live policy", "#2f6f62"), (offline, "votes on the base's answers", "#c26a2e")):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=label)
    axes.axhline(0.5, color="#888888", linewidth=1, linestyle="--")
    axes.set(xlabel="votes", ylabel="preferred to the base (ties half)", ylim=(0.4, 1.0), title=f"taste: {taste}, policy alone")
    axes.legend(loc="center right", frameon=False)
    figure.tight_layout()
    figure.savefig(PLOT)
    plt.close(figure)


def long(guarded: Run, unguarded: Run) -> dict[str, float]:
    """Return how two long runs went: the best, the end, how the answers look, the highest KL, and whether a tripwire spoke."""
    found = {}
    for name, run in (("long", guarded), ("long_unguarded", unguarded)):
        alone = [v["preference"] for v in run["judgements"] if v["arm"] == "alone"]
        found |= {
            f"{name}_distinct": final(run)["distinct_share"],
            f"{name}_refusing": final(run)["refusing_share"],
            f"{name}_preference": alone[-1],
            f"{name}_fall_from_best": max(alone) - alone[-1],
            f"{name}_highest_kl": max(policy["kl_to_ref"] for policy in run["policies"]),
            f"{name}_tripped": float(bool(run["halted"])),
            f"{name}_versions": float(len(run["policies"])),
        }
    return found


def final(run: Run) -> dict[str, Any]:
    """Return the last judgement of the policy alone."""
    return next(v for v in reversed(run["judgements"]) if v["arm"] == "alone")


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return statistics.fmean(values)
