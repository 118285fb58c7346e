"""Child processes that cannot outlive us unnoticed: start, stop, and find again what an earlier run left behind.

A process is named by its id, its start time and the boot it belongs to, since ids are used again: nobody else's process is ever ended.
Every child leads a session of its own; what it forks stays in it, and is ended with it.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
LISTENING = "0A"
"""State of a socket in /proc/net/tcp."""


def start(argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, its output appended to `log`; it is told to stop if we die."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=follow_parent,
        )


def ended(process: subprocess.Popen[bytes]) -> int | None:
    """Return a program's exit status, having ended whatever it left in its group; None while it runs."""
    if process.returncode is None:
        # Looked at without being taken: until it is taken its id, and so its group, cannot be somebody else's.
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        _kill_group(process.pid)
    return process.wait()


def stop(processes: Sequence[subprocess.Popen[bytes]], patience_s: float) -> None:
    """Ask all to stop, wait, and end whole groups that did not."""
    running = [process for process in processes if ended(process) is None]
    for process in running:
        os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and any(ended(process) is None for process in running):
        time.sleep(0.02)
    for process in running:
        if process.returncode is None:
            _kill_group(process.pid)
            process.wait()


def started_at(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot, or None if there is none (a zombie counts as none)."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def remember(file: Path, pids: Sequence[int]) -> None:
    """Write down which processes are ours, for a later run to find."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".new")
    aside.write_text(json.dumps({pid: _identity(pid) for pid in pids}))
    aside.replace(file)


def end_remembered(file: Path, patience_s: float = 5.0) -> list[int]:
    """End the remembered processes that still run and whatever they forked; return the ids.

    A forked one whose remembered parent is gone counts as ours if its output still goes to a file in the folder above `file`'s.
    """
    try:
        known = {int(pid): identity for pid, identity in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return []
    left = {pid: _identity(pid) for pid in _left(known, file.absolute().parent.parent)}
    for pid in left:
        if pid in known or _session(pid) not in left:  # what still has its parent is the parent's to end
            _send(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and any(_identity(pid) == identity for pid, identity in left.items()):
        time.sleep(0.05)
    for pid, identity in left.items():
        if _identity(pid) == identity:
            _send(pid, signal.SIGKILL)
    file.unlink(missing_ok=True)
    return sorted(left)


def listener(port: int) -> str | None:
    """Return the name and id of the process that listens on a TCP port, where we may see it."""
    sockets = set(_listening_sockets(port))
    for descriptor in Path("/proc").glob("[0-9]*/fd/*") if sockets else ():
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) in sockets:
                return f"{(descriptor.parents[1] / 'comm').read_text().strip()}, process {descriptor.parts[2]}"
    return None


def _listening_sockets(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"


def _left(known: Mapping[int, str | None], home: Path) -> Iterator[int]:
    for pid in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):
        leader = _session(pid)
        if leader is not None and leader in known:
            alive = _identity(leader)
            if alive == known[leader] if alive else _writes_under(pid, home):
                yield pid


def _writes_under(pid: int, home: Path) -> bool:
    try:
        return Path(os.readlink(f"/proc/{pid}/fd/1")).is_relative_to(home)
    except OSError:
        return False


def _identity(pid: int) -> str | None:
    ticks = started_at(pid)
    return None if ticks is None else f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{ticks}"


def _session(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None else int(fields[3])


def _stat(pid: int) -> list[str] | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > 19 and fields[0] != "Z" else None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def follow_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to end this process, by that signal, when its parent's thread ends; for the moment after a fork."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
