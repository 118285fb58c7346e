"""Child processes that cannot outlive us unnoticed: start, stop, and find again what an earlier run left behind.

A process is named by its id and its start time, since ids are used again: nobody else's process is ever ended.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1


def start(argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in a group of its own, its output appended to `log`; it is told to stop if we die."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=_follow_parent,
        )


def stop(processes: Sequence[subprocess.Popen[bytes]], patience_s: float) -> None:
    """Ask all to stop, wait, and end whole groups that did not."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + patience_s
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        _end_group(process.pid)
        process.wait()


def started_at(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot, or None if there is none (a zombie counts as none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def remember(file: Path, pids: Sequence[int]) -> None:
    """Write down which processes are ours, for a later run to find."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".new")
    aside.write_text(json.dumps({pid: started_at(pid) for pid in pids}))
    aside.replace(file)


def end_remembered(file: Path, patience_s: float = 5.0) -> list[int]:
    """End the groups of remembered processes that still run; return their ids."""
    try:
        known = {int(pid): ticks for pid, ticks in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return []
    left = [pid for pid, ticks in known.items() if ticks is not None and started_at(pid) == ticks]
    for pid in left:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while any(started_at(pid) == known[pid] for pid in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        if started_at(pid) == known[pid]:
            _end_group(pid)
    file.unlink(missing_ok=True)
    return left


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _follow_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
