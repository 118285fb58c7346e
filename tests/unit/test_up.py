"""`attune up`'s pieces on real processes: restart with back-off, a wrong configuration ends all, nothing is left running."""

import argparse
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attune import config, processes, up
from attune.errors import ConfigError

FOREVER = "import time; time.sleep(600)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def supervisor(tmp_path: Path, notes: list[str], **programs: str) -> up.Supervisor:
    argv = {name: python(code) for name, code in programs.items()}
    return up.Supervisor(argv, tmp_path / "logs", tmp_path / "run" / "children.json", os.environ, notes.append)


def until(what: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_pauses_double_up_to_a_bound() -> None:
    assert [up.pause_s(n) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


def test_what_dies_is_started_again(tmp_path: Path) -> None:
    notes: list[str] = []
    watcher = supervisor(tmp_path, notes, steady=FOREVER, crashing="raise SystemExit(4)")
    watcher.start()
    try:
        now = time.monotonic()
        until(lambda: watcher.check(now) or bool(notes))
        assert "crashing ended with status 4; starting" in notes[0]
        watcher.check(now + 0.5)  # too early
        assert len(notes) == 1
        until(lambda: watcher.check(now + 1.5) or len(notes) == 2)
        assert "in 2 s" in notes[1]
    finally:
        watcher.stop()


def test_a_full_disk_ends_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    watcher = supervisor(tmp_path, notes, steady=FOREVER, other=FOREVER)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(processes, "remember", full)
        watcher.start()
    try:
        assert notes == ["steady: No space left on device", "other: No space left on device"]
        watcher._children[1].process.kill()  # type: ignore[union-attr]
        now = time.monotonic()
        until(lambda: watcher.check(now) or len(notes) == 3)
        with monkeypatch.context() as memory:
            memory.setattr(processes, "start", full)
            watcher.check(now + 1.5)
        assert notes[3:] == ["other: No space left on device"]
        later = time.monotonic() + 5
        watcher.check(later)
        assert [child.process is not None for child in watcher._children] == [True, True]
    finally:
        watcher.stop()


def test_what_only_an_operator_can_mend_is_said_and_not_left_in_a_log(tmp_path: Path) -> None:
    notes: list[str] = []
    code = "import sys; print('feedback: 101 events in a row cannot be read', file=sys.stderr); sys.exit(3)"
    watcher = supervisor(tmp_path, notes, feedback=code)
    watcher.start()
    try:
        until(lambda: watcher.check(time.monotonic()) or bool(notes))
        assert "feedback ended with status 3: 101 events in a row cannot be read; starting it again" in notes[0]
    finally:
        watcher.stop()


def test_a_wrong_configuration_ends_them_all_with_its_message(tmp_path: Path) -> None:
    code = "import sys; print('attune serve: cannot listen on 1.2.3.4', file=sys.stderr); sys.exit(2)"
    watcher = supervisor(tmp_path, [], steady=FOREVER, serve=code)
    watcher.start()
    try:
        with pytest.raises(ConfigError, match="serve cannot start: cannot listen on"):
            until(lambda: watcher.check(time.monotonic()) or False)
    finally:
        watcher.stop()


def test_stopping_leaves_nothing_not_even_grandchildren(tmp_path: Path) -> None:
    grandchild = tmp_path / "pid"
    code = (
        f"import subprocess, sys, time, signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
        f"p = subprocess.Popen([sys.executable, '-c', {FOREVER!r}]); open({str(grandchild)!r}, 'w').write(str(p.pid)); time.sleep(600)"
    )
    watcher = supervisor(tmp_path, [], parent=code)
    watcher.start()
    until(lambda: grandchild.exists() and bool(grandchild.read_text()))
    watcher.stop()
    until(lambda: processes.started_at(int(grandchild.read_text())) is None)


GRANDCHILD = (
    "import subprocess, sys, time; "
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); open(sys.argv[1], 'w').write(str(p.pid)); "
)


def test_what_a_crashed_program_forked_does_not_stay(tmp_path: Path) -> None:
    notes: list[str] = []
    watcher = up.Supervisor(
        {"parent": [*python(GRANDCHILD + "raise SystemExit(1)"), str(tmp_path / "pid")]},
        tmp_path / "logs", tmp_path / "run" / "children.json", os.environ, notes.append,
    )  # fmt: skip
    watcher.start()
    try:
        until(lambda: watcher.check(time.monotonic()) or bool(notes))
        until(lambda: processes.started_at(int((tmp_path / "pid").read_text())) is None)
    finally:
        watcher.stop()


def test_what_an_earlier_run_left_is_ended_and_a_stranger_is_not(tmp_path: Path) -> None:
    memory = tmp_path / "run" / "children.json"
    left, stranger = (subprocess.Popen(python(FOREVER), start_new_session=True) for _ in range(2))
    try:
        processes.remember(memory, [left.pid, stranger.pid])
        known = json.loads(memory.read_text())
        known[str(stranger.pid)] += "0"  # the same id, but started at another time: not ours
        memory.write_text(json.dumps(known))
        assert processes.end_remembered(memory) == [left.pid]
        assert left.wait(5) == -signal.SIGTERM
        assert stranger.poll() is None
        assert processes.end_remembered(memory) == []
    finally:
        left.kill()
        stranger.kill()
        left.wait()
        stranger.wait()


def test_an_orphan_of_an_earlier_run_is_found_by_its_session_and_its_log(tmp_path: Path) -> None:
    """As an engine core is, whose server was killed together with `attune up`; the same orphan with another log is nobody's."""
    memory, pids = tmp_path / "home" / "run" / "children.json", {}
    for name, log in {"ours": tmp_path / "home" / "logs" / "serve.log", "theirs": tmp_path / "elsewhere.log"}.items():
        parent = processes.start([*python(GRANDCHILD + FOREVER), str(tmp_path / name)], log, os.environ)
        until(lambda name=name: (tmp_path / name).exists() and bool((tmp_path / name).read_text()))
        pids[name] = (parent, int((tmp_path / name).read_text()))
    processes.remember(memory, [parent.pid for parent, _ in pids.values()])
    for parent, _ in pids.values():
        parent.kill()
        parent.wait()
    try:
        assert processes.end_remembered(memory) == [pids["ours"][1]]
        until(lambda: processes.started_at(pids["ours"][1]) is None)
        assert processes.started_at(pids["theirs"][1]) is not None
    finally:
        os.kill(pids["theirs"][1], signal.SIGKILL)


def test_children_follow_their_parent(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = (
        "import os, time; from pathlib import Path; from attune import processes; "
        f"p = processes.start([{sys.executable!r}, '-c', {FOREVER!r}], Path({str(tmp_path)!r}) / 'log', os.environ); "
        f"Path({str(file)!r}).write_text(str(p.pid)); time.sleep(600)"
    )
    parent = subprocess.Popen(python(code))
    until(lambda: file.exists() and bool(file.read_text()))
    time.sleep(0.2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: processes.started_at(int(file.read_text())) is None)


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"config": None, "kafka": None, "database": None, "model": None, "home": None, "port": None} | given)


def test_a_port_in_use_and_a_second_start_are_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}.*process {os.getpid()}.*--port"):
            up.run(options(home=tmp_path, port=port))
    with up._alone(tmp_path), pytest.raises(ConfigError, match="already running"):
        up.run(options(home=tmp_path, port=0))


def test_options_become_settings() -> None:
    given = up.overrides(options(kafka="k:9092", database="postgresql://x", port=0))
    assert given == {
        "ATTUNE_BUS__KIND": "kafka",
        "ATTUNE_BUS__BOOTSTRAP": "k:9092",
        "ATTUNE_STORE__URL": "postgresql://x",
        "ATTUNE_SERVE__PORT": "0",
    }


def test_the_welcome_names_what_was_chosen(tmp_path: Path) -> None:
    (tmp_path / "api-key").write_text("sk-attune-x\n")
    text = up.welcome(config.load(None, {"ATTUNE_HOME": str(tmp_path), "ATTUNE_SERVE__PORT": "8123", "ATTUNE_SERVE__HOST": "0.0.0.0"}))
    for part in (
        "http://127.0.0.1:8123/\n",
        "curl http://127.0.0.1:8123/v1/chat/completions",
        "Bearer sk-attune-x",
        f"ATTUNE_HOME={tmp_path} ",
    ):
        assert part in text
    assert "simulate --taste short --votes 200 --url http://127.0.0.1:8123" in text
