"""A policy update's cost against TRL's trainers: the same recorded rollouts, LoRA r16, one thread, CPU seconds.

`python -m benchmarks.ppo [--quick]` on a model of 15M random weights, then on the demo model (`--quick` leaves that out). A peer is tried
in fp32 and bf16 and with several batch sizes; its best counts. Generation and reward passes are left out for all; TRL's PPO makes its
reference pass and trains a value network of its own, and ours makes the reference pass, too, where it says "same algorithm"; there all
linear layers of both carry an adapter. By "default" ours has adapters on the upper half of the layers, and serving has made the reference
pass already; it is held against the peer's better one of adapters on all layers and on the upper half.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common, recording

SAMPLES = recording.GROUPS * recording.ANSWERS
PINS = ("torch==2.13.0", "transformers==5.19.0", "peft==0.21.2")
PPO, GRPO = ("trl-1.12.0", "trl==1.12.0", *PINS), ("trl-1.16.0", "trl==1.16.0", *PINS)
BOTH = [(layers, dtype, "4") for layers in ("all", "top") for dtype in ("bfloat16", "float32")]
VARIANTS = {"small": [*BOTH, ("all", "bfloat16", "16")], "demo": BOTH}
"""Layers with adapters, precision, batch size."""


def main() -> int:
    """Measure both models, or the small one alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave the demo model out")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="attune-bench-") as folder:
        for model in ("small",) if arguments.quick else ("small", "demo"):
            place = Path(folder) / model
            recording.record(place, small=model == "small")
            figures |= {(name if model == "small" else f"demo_{name}"): value for name, value in compare(place, VARIANTS[model]).items()}
    known = common.versions("torch", "transformers", "peft") | {"trl ppo": "1.12.0", "trl grpo": "1.16.0"}
    common.report("ppo", known, figures)
    return 0


def compare(folder: Path, variants: list[tuple[str, str, str]]) -> dict[str, float]:
    """Return samples per CPU second of every trainer, peak memory, and the ratios."""
    same = common.run(sys.executable, "ppo_ours.py", str(folder), "same", "5")
    default = common.run(sys.executable, "ppo_ours.py", str(folder), "default", "5")
    peers = {
        f"{name}{suffix}": best(
            [common.run(common.peer_python(*environment), script, str(folder), *v, "2") for v in variants if v[0] == layers]
        )
        for name, environment, script in (("trl_ppo", PPO, "ppo_trl.py"), ("trl_grpo", GRPO, "grpo_trl.py"))
        for layers, suffix in (("all", ""), ("top", "_top_layers"))
    }
    rates = {name: SAMPLES / seconds(m) for name, m in {"same_algorithm": same, "default": default, **peers}.items()}
    fastest = {name: max(rates[name], rates[f"{name}_top_layers"]) for name in ("trl_ppo", "trl_grpo")}
    least = {name: min(peers[name]["peak_mb"], peers[f"{name}_top_layers"]["peak_mb"]) for name in ("trl_ppo", "trl_grpo")}
    return {f"{name}_samples_per_cpu_s": rate for name, rate in rates.items()} | {
        "speedup_same_algorithm_vs_trl_ppo": rates["same_algorithm"] / rates["trl_ppo"],
        "speedup_default_vs_trl_ppo": rates["default"] / fastest["trl_ppo"],
        "speedup_default_vs_trl_grpo": rates["default"] / fastest["trl_grpo"],
        "peak_mb": max(same["peak_mb"], default["peak_mb"]),
        "trl_ppo_peak_mb": least["trl_ppo"],
        "trl_grpo_peak_mb": least["trl_grpo"],
        "memory_vs_trl_ppo": max(same["peak_mb"], default["peak_mb"]) / least["trl_ppo"],
    }


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a peer's fastest run, with the smallest memory that any of its runs needed."""
    return min(runs, key=seconds) | {"peak_mb": min(run["peak_mb"] for run in runs)}


def seconds(measured: dict[str, Any]) -> float:
    """Return the median CPU seconds of one update."""
    return statistics.median(measured["cpu_s"])


if __name__ == "__main__":
    raise SystemExit(main())
