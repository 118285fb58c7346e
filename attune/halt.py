"""The learner's emergency stop: a file in the home folder that says why, written by a tripwire, taken away by an operator.

And beside it, why updates were thrown away: the newest is shown while the policy that it began from is still live, else nobody would see
a standstill.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from attune.files import write_durably


@dataclass(frozen=True, slots=True)
class Halt:
    """Why and when policy updates were stopped."""

    reasons: tuple[str, ...]
    policy_version: int
    position: int
    """Store position of the newest answer looked at: what lies before it is not looked at again."""
    at: float


def read(home: Path) -> Halt | None:
    """Return the stop in force; None if learning goes on. What a crash left unreadable is a stop, too."""
    file = _file(home)
    try:
        said = json.loads(file.read_text())
        return Halt(tuple(said["reasons"]), int(said["policy_version"]), int(said["position"]), float(said["at"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        return Halt((f"something stopped the learner, but {file} is damaged and does not say what",), 0, 0, 0.0)


def stop(home: Path, reasons: Sequence[str], *, policy_version: int, position: int) -> None:
    """Stop policy updates until `resume`."""
    file = _file(home)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".new")
    aside.unlink(missing_ok=True)
    write_durably(aside, json.dumps(asdict(Halt(tuple(reasons), policy_version, position, time.time())), indent=1).encode())
    aside.replace(file)


def resume(home: Path) -> Halt | None:
    """Let learning go on, and return what had stopped it; None if nothing had."""
    halted = read(home)
    if halted is not None:
        _file(home).replace(_file(home).with_name("resumed.json"))
    return halted


def resumed_at(home: Path) -> int:
    """Return the store position from which on answers are looked at, after the last resume; 0 if there was none."""
    try:
        return int(json.loads(_file(home).with_name("resumed.json").read_text())["position"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return 0


@dataclass(frozen=True, slots=True)
class Discarded:
    """An update that no version came of."""

    policy_version: int
    """The policy that it began from."""
    reason: str
    at: float


def discarded(home: Path, reason: str, *, policy_version: int) -> None:
    """Keep why an update of a policy was thrown away, where `all_discarded` finds it; a disk that refuses loses that and no more."""
    with contextlib.suppress(OSError):
        file = _file(home).with_name("discarded.jsonl")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lines:
            lines.write(json.dumps(asdict(Discarded(policy_version, reason, time.time()))) + "\n")


def all_discarded(home: Path) -> list[Discarded]:
    """Return the updates that were thrown away, oldest first; a line that a full disk or a kill cut off is left out."""
    found = list[Discarded]()
    with contextlib.suppress(FileNotFoundError):
        for line in _file(home).with_name("discarded.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                found.append(Discarded(**json.loads(line)))
    return found


def last_discarded(home: Path, policy_version: int) -> str | None:
    """Return why the newest update was thrown away, if it began from this policy; else None."""
    newest = all_discarded(home)[-1:]
    return newest[0].reason if newest and newest[0].policy_version == policy_version else None


def _file(home: Path) -> Path:
    return home / "learner" / "stopped.json"
