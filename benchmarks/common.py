"""What every benchmark has in common: machine and versions in words, environments for peers, and one JSON object as the last line."""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attune import config

RESULTS = Path(__file__).parent / "results"
PEERS = Path(__file__).parent / "peers"


def machine() -> str:
    """Return processor, cores and memory in words."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return f"{model or platform.machine()}, {os.cpu_count()} cores, {memory} GiB"


def commit() -> str:
    """Return which version of the code this is; `+` where files were changed since, empty where nothing says."""
    said = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=PEERS, capture_output=True, text=True, check=False)
    return said.stdout.strip()


def versions(*names: str) -> dict[str, str]:
    """Return the versions that matter for the figures."""
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def report(benchmark: str, known: dict[str, str], figures: dict[str, float], where: str = "", commits: Collection[str] = ()) -> None:
    """Print the figures as a table, keep them under `benchmarks/results/`, and end with one JSON line.

    What is kept there of the same machine and versions, and was not measured now, stays. `where`: the machine, if it was not this one;
    `commits`: what was measured, if it was not what lies here.
    """
    about = {"benchmark": benchmark, "machine": where or machine(), "versions": known}
    result: dict[str, Any] = about | {"commits": sorted(commits) or [commit()]} | {"figures": {k: round(v, 4) for k, v in figures.items()}}
    print(f"{result['machine']}; {', '.join(f'{name} {number}' for name, number in known.items())}")
    for name, value in result["figures"].items():
        print(f"{name:44s} {value:10.4g}")
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{benchmark}.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    if {name: kept.get(name) for name in about} == about:
        result["figures"] = kept["figures"] | result["figures"]
        result["commits"] = sorted({*kept.get("commits", []), *result["commits"]})
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)


def peer_python(name: str, *requirements: str) -> str:
    """Return the interpreter of an environment of a peer's own, made on first use beside our own state."""
    folder = config.load().home / "bench" / name
    python = folder / "bin" / "python"
    uv = Path(sys.executable).parent / "uv"
    installed = folder / ".installed"
    if not installed.exists() or installed.read_text().split() != list(requirements):
        print(f"installing {', '.join(requirements)} into an environment of its own", flush=True)
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *requirements], check=True)
        installed.write_text(" ".join(requirements))
    return str(python)


def run(python: str, script: str, *arguments: str) -> dict[str, Any]:
    """Run a script of `benchmarks/peers` on one thread and return the JSON of its last line."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    quiet = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | threads | quiet
    if python == sys.executable:
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    done = subprocess.run([python, PEERS / script, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def fastest(python: str, script: tuple[str, ...], batches: tuple[str, ...], trial: str, repeats: str) -> dict[str, Any]:
    """Return a peer's repeats in the variant that its trials found fastest, with the smallest memory that any trial needed.

    Both precisions are tried with a batch size of 4, then the faster one with the other sizes.
    """
    tried: dict[tuple[str, str], dict[str, Any]] = {}

    def quickest() -> tuple[str, str]:
        return min(tried, key=lambda variant: float(statistics.median(tried[variant]["cpu_s"])))

    for dtype in ("bfloat16", "float32"):
        tried[dtype, "4"] = run(python, *script, dtype, "4", trial)
    better = quickest()[0]
    for batch in batches:
        tried[better, batch] = run(python, *script, better, batch, trial)
    chosen = quickest()
    print(f"{script[0]} {' '.join(script[2:])}: {' '.join(chosen)}", flush=True)
    return run(python, *script, *chosen, repeats) | {"peak_mb": min(one["peak_mb"] for one in tried.values())}
