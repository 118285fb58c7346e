"""A policy update's cost against TRL's trainers: the same recorded rollouts, LoRA r16, one thread, CPU seconds.

`python -m benchmarks.ppo [--quick]` on a model of 15M random weights, then on the demo model (`--quick` leaves that out). Each of TRL's
trainers is tried in fp32 and bf16, then with other batch sizes, and the best of these is measured again; all adapters are kept in fp32, as
ours are. "Same algorithm" is TRL PPO's: four epochs, a reference pass, adapters on all layers; RLOO is tried with that, too, for it does
without PPO's second network, the critic's. By "default" ours makes one epoch with adapters on the upper half of the layers, and serving has
made the reference pass already (`looked`: with that pass); it is held against each peer's better one of adapters on all layers and on the
upper half. Generation and reward passes are left out for all. Ours is measured before and after its peers; a `spread` is the largest less
the smallest of all its updates, in medians.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common, recording

SAMPLES = recording.GROUPS * recording.ANSWERS
PINS = ("torch==2.13.0", "transformers==5.19.0", "peft==0.21.2")
OLD, NEW = ("trl-1.12.0", "trl==1.12.0", "requests==2.32.5", *PINS), ("trl-1.16.0", "trl==1.16.0", *PINS)
BATCHES = {"small": ("2", "8", "16"), "demo": ("8",)}
"""The batch sizes tried once the faster precision is known."""
OURS, REPEATS = ("same", "default", "looked"), "3"


@dataclass(frozen=True)
class Peer:
    """One of TRL's trainers: its environment, its script with what comes before the layers, and where it gets adapters."""

    environment: tuple[str, ...]
    script: tuple[str, ...]
    layers: tuple[str, ...] = ("all", "top")


PEERS = {
    "trl_ppo": Peer(OLD, ("ppo_trl.py",)),
    "trl_rloo_same": Peer(NEW, ("online_trl.py", "rloo-4"), ("all",)),
    "trl_grpo": Peer(NEW, ("online_trl.py", "grpo")),
    "trl_1.12_grpo": Peer(OLD, ("online_trl.py", "grpo")),
    "trl_rloo": Peer(NEW, ("online_trl.py", "rloo")),
}


def main() -> int:
    """Measure both models, or the small one alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave the demo model out")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="attune-bench-") as folder:
        for model in ("small",) if arguments.quick else ("small", "demo"):
            place = Path(folder) / model
            recording.record(place, small=model == "small")
            figures |= {(name if model == "small" else f"demo_{name}"): value for name, value in compare(place, BATCHES[model]).items()}
    known = common.versions("torch", "transformers", "peft") | {"trl": "1.12.0, 1.16.0"}
    common.report("ppo", known, figures)
    return 0


def compare(folder: Path, batches: tuple[str, ...]) -> dict[str, float]:
    """Return samples per CPU second of every trainer, peak memory, and the ratios."""
    before = {mode: common.run(sys.executable, "ppo_ours.py", str(folder), mode, REPEATS) for mode in OURS}
    peers = {
        f"{name}_{layers}": common.fastest(
            common.peer_python(*peer.environment), (peer.script[0], str(folder), *peer.script[1:], layers), batches, "1", REPEATS
        )
        for name, peer in PEERS.items()
        for layers in peer.layers
    }
    after = {mode: common.run(sys.executable, "ppo_ours.py", str(folder), mode, REPEATS) for mode in OURS}
    runs = {mode: joined([before[mode], after[mode]]) for mode in OURS} | peers
    rates = {name: SAMPLES / statistics.median(run["cpu_s"]) for name, run in runs.items()}
    fastest = {name: max(rates[f"{name}_{layers}"] for layers in peer.layers) for name, peer in PEERS.items()}
    memory = {name: min(runs[f"{name}_{layers}"]["peak_mb"] for layers in peer.layers) for name, peer in PEERS.items()}
    ours_mb = max(runs["same"]["peak_mb"], runs["default"]["peak_mb"])
    return (
        {f"{name}_samples_per_cpu_s": rate for name, rate in rates.items()}
        | {f"{name}_spread": (max(run["cpu_s"]) - min(run["cpu_s"])) / statistics.median(run["cpu_s"]) for name, run in runs.items()}
        | {f"speedup_same_algorithm_vs_{name}": rates["same"] / rates[f"{name}_all"] for name in ("trl_ppo", "trl_rloo_same")}
        | {f"speedup_default_vs_{name}": rates["default"] / fastest[name] for name in PEERS if name != "trl_rloo_same"}
        | {f"speedup_looked_vs_{name}": rates["looked"] / fastest[name] for name in PEERS if name != "trl_rloo_same"}
        | {"peak_mb": ours_mb, "memory_vs_trl_ppo": ours_mb / memory["trl_ppo"]}
        | {f"{name}_peak_mb": value for name, value in memory.items()}
    )


def joined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the runs of one trainer as one."""
    return {"cpu_s": [one for run in runs for one in run["cpu_s"]], "peak_mb": max(run["peak_mb"] for run in runs)}


if __name__ == "__main__":
    raise SystemExit(main())
