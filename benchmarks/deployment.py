"""A fresh Attune for as long as a block runs: `attune up` in a home folder of its own, with the demo model."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from attune import config, demo_model, halt
from attune.progress import Progress
from feedback.store import Store

START_S = 300.0
PORT = int(os.environ.get("ATTUNE_SERVE__PORT", "8765"))


def lend_model(home: Path) -> None:
    """Give a home folder the demo model of our own, which is prepared if it is not there yet."""
    shared = config.load()
    demo_model.ensure(shared, Progress().doing)
    (home / "models").mkdir()
    (home / "models" / config.DEMO_MODEL).symlink_to(shared.model_folder)


class Deployment:
    """Three programs on a fixed port; `settings` are environment variables without their prefix (`LEARNER__SEED`)."""

    def __init__(self, **settings: object) -> None:
        self.settings = {f"ATTUNE_{name}": str(value) for name, value in settings.items()}
        self.url = f"http://127.0.0.1:{PORT}"
        self.ready_s = 0.0

    def __enter__(self) -> "Deployment":
        self._folder = tempfile.TemporaryDirectory(prefix="attune-bench-")
        self.home = Path(self._folder.name)
        lend_model(self.home)
        started = time.monotonic()
        argv = [sys.executable, "-m", "attune", "up", "--home", str(self.home), "--port", str(PORT)]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | self.settings)
        while self._process.poll() is None and time.monotonic() - started < START_S:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=1).status_code == 200:
                    self.ready_s = time.monotonic() - started
                    return self
            except httpx.HTTPError:
                time.sleep(0.1)
        self._process.kill()
        raise SystemExit("attune up was not ready in time")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)
        self._folder.cleanup()

    def http(self) -> httpx.Client:
        """Return a client that carries the key."""
        key = (self.home / "api-key").read_text().strip()
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=120)

    def simulate(self, **options: object) -> dict[str, Any]:
        """Run `attune simulate` with these options and return its result."""
        argv = [sys.executable, "-m", "attune", "simulate", "--url", self.url, "--out", str(self.home / "simulate" / "run")]
        for name, value in options.items():
            argv += [f"--{name.replace('_', '-')}"]
            argv += [] if value is True else [str(v) for v in value] if isinstance(value, list) else [str(value)]
        done = subprocess.run(argv, env=os.environ | {"ATTUNE_HOME": str(self.home)}, stdout=subprocess.PIPE, text=True, check=False)
        if not done.stdout.strip().endswith("}"):
            raise SystemExit(f"attune simulate failed with {done.returncode}")
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    def pid(self, program: str) -> int:
        """Return the process id of one of the three programs."""
        for pid in json.loads((self.home / "run" / "children.json").read_text()):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-3:-1] == [b"-m", program.encode()]:
                return int(pid)
        raise SystemExit(f"{program} is not running")

    def halted(self) -> list[str]:
        """Return why tripwires stopped the learner; nothing if they did not."""
        found = halt.read(self.home)
        return list(found.reasons) if found else []

    def histogram(self, name: str, **labels: str) -> list[tuple[float, float]]:
        """Return the buckets of a histogram on serve's /metrics: upper bound and cumulative count."""
        families = text_string_to_metric_families(self.http().get("/metrics").text)
        samples = [s for family in families for s in family.samples if s.name == f"{name}_bucket"]
        wanted = [s for s in samples if all(s.labels.get(k) == v for k, v in labels.items())]
        return [(float(s.labels["le"]), s.value) for s in wanted]

    def zero_lag(self) -> dict[str, float]:
        """Return how far the sampler's log-probs of version 0 are from the frozen pass's, in nats per token: mean distance and k3 KL."""
        store = Store.open(config.load(None, {"ATTUNE_HOME": str(self.home)}).store_url)
        gaps = [
            ours - theirs
            for _, i in store.interactions_after(0, 10**6)
            if i.policy_version == 0
            for c in i.candidates
            for ours, theirs in zip(c.ref_logprobs or (), c.logprobs, strict=False)
        ]
        store.close()
        distance, k3 = (sum(values) / max(1, len(gaps)) for values in ([abs(g) for g in gaps], [math.exp(g) - 1.0 - g for g in gaps]))
        return {"tokens": float(len(gaps)), "distance": distance, "k3": k3}

    def reports(self, kind: str) -> list[dict[str, Any]]:
        """Return the reports of all published versions of a kind, oldest first."""
        folders = sorted((self.home / "registry" / kind).glob("[0-9]*"))
        return [json.loads((folder / "manifest.json").read_text())["report"] for folder in folders]
