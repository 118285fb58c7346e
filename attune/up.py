"""`attune up`: the three programs on one machine, started, watched, restarted, and ended together."""

import argparse
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import httpx

from attune import config as configuration
from attune import demo_model, live_line, processes
from attune.config import Config
from attune.errors import ConfigError
from attune.progress import Progress
from attune.registry import Registry
from attune.terms import Terms

PROGRAMS = ("feedback", "learner", "serve")
FIRST_PAUSE_S, LONGEST_PAUSE_S, HEALTHY_S = 1.0, 30.0, 60.0
PATIENCE_S = 10.0
LINE_EVERY_S = 2.0
CONFIG_EXIT, SAID_EXIT = 2, 3
"""What a program ends with whose last line says why: for good, and until it is started again."""
PRIVATE = 0o077
"""What others may not do with files that we make: they hold what people wrote."""


def pause_s(crashes: int) -> float:
    """Return how long to wait before the restart after so many crashes in a row: 1, 2, 4 ... 30 seconds."""
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** max(0, crashes - 1)))


@dataclass(slots=True)
class _Child:
    name: str
    argv: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    crashes: int = 0
    started: float = 0.0
    restart_at: float = 0.0


@dataclass(slots=True)
class Supervisor:
    """Keeps programs running; a program that says its configuration is wrong (exit 2) ends them all."""

    programs: Mapping[str, Sequence[str]]
    logs: Path
    memory: Path
    environment: Mapping[str, str]
    say: Callable[[str], None]
    _children: list[_Child] = field(default_factory=list)

    def start(self) -> None:
        """Start every program."""
        self._children = [_Child(name, argv) for name, argv in self.programs.items()]
        for child in self._children:
            self._start(child)

    def check(self, now: float) -> None:
        """Restart what has died and waited long enough; raises `ConfigError` if a program's configuration is wrong."""
        for child in self._children:
            if child.process is None:
                if now >= child.restart_at:
                    self._start(child)
            elif (status := processes.ended(child.process)) is not None:
                self._died(child, status, now)

    def stop(self) -> None:
        """End every program and all that it started."""
        processes.stop([c.process for c in self._children if c.process], PATIENCE_S)
        self.memory.unlink(missing_ok=True)

    def _start(self, child: _Child) -> None:
        """Start a program; where the disk is full or memory short, the others go on, and this one is tried again."""
        child.started = time.monotonic()
        try:
            child.process = processes.start(child.argv, self.logs / f"{child.name}.log", self.environment)
            processes.remember(self.memory, [c.process.pid for c in self._children if c.process])
        except OSError as error:
            if child.process is None:
                child.crashes += 1
                child.restart_at = child.started + pause_s(child.crashes)
            self.say(f"{child.name}: {error.strerror or error}")

    def _died(self, child: _Child, status: int, now: float) -> None:
        if status == CONFIG_EXIT:
            raise ConfigError(f"{child.name} cannot start: {last_line(self.logs / f'{child.name}.log')}")
        child.crashes = 1 if now - child.started > HEALTHY_S else child.crashes + 1
        child.restart_at = now + pause_s(child.crashes)
        child.process = None
        log = self.logs / f"{child.name}.log"
        why = f": {last_line(log)}" if status == SAID_EXIT else ""
        self.say(f"{child.name} ended with status {status}{why}; starting it again in {pause_s(child.crashes):g} s (see {_short(log)})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `attune up` takes."""
    parser.add_argument("--kafka", metavar="HOST:PORT", help="use this Apache Kafka in place of the embedded log")
    parser.add_argument("--database", metavar="URL", help="use this database (SQLAlchemy URL) in place of SQLite")
    parser.add_argument("--model", help="a model folder or hub id in place of the demo model")
    parser.add_argument("--home", type=Path, help="where everything that a run writes lies (default: .attune)")
    parser.add_argument("--port", type=int, help="port of the HTTP server (default: 8000; 0: any free one)")


def overrides(args: argparse.Namespace) -> dict[str, str]:
    """Return the environment variables that say what the options say."""
    given = {
        "ATTUNE_BUS__KIND": "kafka" if args.kafka else None,
        "ATTUNE_BUS__BOOTSTRAP": args.kafka,
        "ATTUNE_STORE__URL": args.database,
        "ATTUNE_MODEL__PATH": args.model,
        "ATTUNE_HOME": str(args.home.absolute()) if args.home else None,
        "ATTUNE_SERVE__PORT": None if args.port is None else str(args.port),
    }
    return {name: value for name, value in given.items() if value is not None}


def run(args: argparse.Namespace) -> int:
    """Start everything, say how to use it, and watch until told to stop."""
    os.umask(PRIVATE)
    environment = {**os.environ, **overrides(args)}
    config = configuration.load(args.config, environment)
    environment |= {"ATTUNE_HOME": str(config.home)} | ({"ATTUNE_CONFIG": str(args.config)} if args.config else {})
    progress = Progress(sys.stderr)
    with _alone(config.home), _stopped_by_signals():
        left = processes.end_remembered(config.home / "run" / "children.json")
        if left:
            progress.note(f"ended {len(left)} processes that an earlier run left behind")
        environment["ATTUNE_SERVE__PORT"] = str(_free_port(config))
        config = configuration.load(args.config, environment)
        Registry(config.registry_folder).check_base(config.model_identity, config.model_revision)
        Terms.load(config.terms)
        demo_model.ensure(config, progress.doing)
        if config.bus.kind == "kafka" and (fault := _unreachable(config.bus.bootstrap)):
            progress.note(f"Kafka is away ({fault}): votes wait on this disk, and none is learned, until it answers")
        programs = {name: [sys.executable, "-P", "-m", name] for name in PROGRAMS}
        supervisor = Supervisor(programs, config.home / "logs", config.home / "run" / "children.json", environment, progress.note)
        try:
            supervisor.start()
            _wait_ready(config, supervisor, progress)
            progress.done()
            print(welcome(config), flush=True)
            _watch(config, supervisor, progress)
        except KeyboardInterrupt:
            progress.note("stopping")
            return 0
        finally:
            supervisor.stop()
            progress.done()


def welcome(config: Config) -> str:
    """Return what a newcomer needs next: address, key, and three things to try."""
    url, command = config.base_url, _short(Path(sys.executable).with_name("attune"))
    key = (config.home / "api-key").read_text().strip()
    home = "" if config.home == Path(".attune").absolute() else f"ATTUNE_HOME={_short(config.home)} "
    return f"""
Attune is ready.

  page     {url}/
  API      {url}/v1     (OpenAI-compatible; model "attune")
  key      {key}

  1. Open the page, ask something, press a thumb: {config.learner.min_votes_per_update} votes make a new policy.
  2. Ask from a program:
     curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\
       -H 'Content-Type: application/json' -d '{{"model": "attune", "messages": [{{"role": "user", "content": "What is a river?"}}]}}'
  3. Let simulated people vote:
     {home}{command} simulate --taste short --votes 200 --url {url}

  Logs: {_short(config.home / "logs")}    Stop: Ctrl-C
"""


def last_line(log: Path) -> str:
    """Return the last line of a program's log without its name in front."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return lines[-1].partition(": ")[2] or lines[-1] if lines else f"see {log}"


def _wait_ready(config: Config, supervisor: Supervisor, progress: Progress) -> None:
    started = time.monotonic()
    while True:
        supervisor.check(time.monotonic())
        elapsed = time.monotonic() - started
        progress.doing(f"starting the engine and loading {config.model_identity} ({elapsed:.0f} s, usually 15 to 60)")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(config.base_url + "/readyz", timeout=1.0, trust_env=False).status_code == 200:
                return
        time.sleep(0.25)


def _watch(config: Config, supervisor: Supervisor, progress: Progress) -> NoReturn:
    """Keep the programs running until interrupted; on a terminal, show how far learning has come."""
    key, asked = (config.home / "api-key").read_text().strip(), 0.0
    while True:
        now = time.monotonic()
        supervisor.check(now)
        if progress.watched and now - asked >= LINE_EVERY_S:
            if line := live_line.ask(config.base_url, key):
                progress.doing(line)
            asked = now
        time.sleep(0.2)


def _unreachable(servers: str) -> str | None:
    """Return why none of the brokers takes connections; None if one does."""
    faults = []
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S / 2).close()
            return None
        except (OSError, OverflowError) as error:
            faults.append(f"{server.strip()}: {error}")
    return "; ".join(faults)


def _free_port(config: Config) -> int:
    """Return the configured port, or any free one for 0; raises `ConfigError` if somebody listens on it."""
    host, port = config.serve.host, config.serve.port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            who = processes.listener(port)
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}{f': {who}' if who else ''}): "
                "stop what uses it, or choose another port with --port or ATTUNE_SERVE__PORT"
            ) from error
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    try:
        (home / "run").mkdir(parents=True, exist_ok=True)
        lock = open(home / "run" / "up.lock", "w")  # noqa: SIM115 (held open for as long as we run)
    except OSError as error:
        raise ConfigError(f"cannot write to {home} ({error.strerror}): set ATTUNE_HOME to a folder that can be written") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"Attune is already running on {home}: stop it first, or choose another folder with --home") from error
        yield


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
