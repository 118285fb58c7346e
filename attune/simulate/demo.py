"""`make demo`: a fresh Attune in a folder of its own, 200 votes by simulated people, and what they changed; then everything ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from attune import cli, config, demo_model
from attune.progress import Progress

START_S = 300.0


def main(argv: list[str]) -> int:
    """Run the demonstration with `attune simulate`'s options; return its exit status."""
    progress = Progress(sys.stderr)
    shared = config.load()
    demo_model.ensure(shared, progress.doing)
    home = Path(tempfile.mkdtemp(prefix="attune-demo-"))
    (home / "models").mkdir()
    (home / "models" / config.DEMO_MODEL).symlink_to(shared.model_folder)
    port = os.environ.get("ATTUNE_SERVE__PORT", "8000")
    os.environ["ATTUNE_HOME"] = str(home)
    up = subprocess.Popen([sys.executable, "-m", "attune", "up", "--port", port], stdout=subprocess.DEVNULL, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        if not _ready(url, up):
            return up.poll() or 1
        given = argv or ["--taste", "short", "--votes", "200"]
        return cli.main(["simulate", *given, "--url", url])
    finally:
        up.send_signal(signal.SIGINT)
        up.wait()
        print(f"what the run wrote lies in {home}")


def _ready(url: str, up: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + START_S
    while up.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=1.0, trust_env=False).status_code == 200:
                return True
        except httpx.HTTPError:
            time.sleep(0.25)
    return False


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
