"""Published versions and the promotion log: the only code that writes to the registry folder.

A version is an immutable folder, written aside and renamed into place; what happens to it later is a numbered record, created only
if absent, as in Delta Lake's log: so compare-and-swap, history, audit and rollback need nothing else. Version 0 is the bare base
model; it has no folder and stands at the bottom of every history.

    registry/policy/000041/   manifest.json, adapter_model.safetensors, ...
    registry/reward/000012/   manifest.json, reward.safetensors, ...
    registry/log/00000001.json
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attune.errors import ConfigError, Conflict, IllegalMove, RegistryError
from attune.files import sync_folder, write_durably
from attune.types import ArtifactKind, Promotion, State, Version

MANIFEST = "manifest.json"
NEW, ABANDONED_S = ".new-", 24 * 3600.0
"""What is being written begins with this; what a crash left of it is deleted after so long."""

MOVES: dict[State, frozenset[State]] = {
    State.PUBLISHED: frozenset({State.REJECTED, State.TRIAL}),
    State.TRIAL: frozenset({State.CHAMPION, State.REJECTED}),
    State.CHAMPION: frozenset({State.RETIRED, State.ROLLED_BACK}),
    State.REJECTED: frozenset(),
    State.RETIRED: frozenset(),
    State.ROLLED_BACK: frozenset(),
}
"""The only moves there are. A retired version serves again when all that came after it were rolled back: see `Registry.champion`."""


class Registry:
    """Versions and promotions under one folder; safe for many readers and writers, in threads and in processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._log: list[Promotion] = []
        self._champions: dict[str, list[int]] = {}
        """By kind, the versions in the order in which they became champion, without those rolled back since."""
        self._moves: dict[tuple[str, int], Promotion] = {}
        """The last move of each version."""
        self._lock = threading.Lock()
        self._versions: dict[tuple[str, int], Version] = {}

    def publish(
        self,
        kind: ArtifactKind,
        files: Mapping[str, bytes],
        *,
        parent: int,
        base_model: str,
        base_revision: str,
        trained_through: int,
        report: Mapping[str, Any],
        reward_version: int | None = None,
        events: tuple[str, ...] = (),
    ) -> Version:
        """Write a new immutable version, visible whole or not at all, and return it; its state is `published`."""
        folder = self.root / kind
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        aside = Path(tempfile.mkdtemp(prefix=NEW, dir=folder))
        try:
            for name, data in files.items():
                write_durably(aside / name, data)
            digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
            while True:
                number = max(self.numbers(kind), default=0) + 1
                version = Version(
                    kind, number, digests, parent, base_model, base_revision, time.time(), trained_through,
                    number if reward_version is None else reward_version, dict(report), events,
                )  # fmt: skip
                write_durably(aside / MANIFEST, json.dumps(asdict(version), indent=1).encode())
                try:
                    aside.rename(folder / f"{number:06d}")
                except OSError:
                    if not (folder / f"{number:06d}").exists():
                        raise
                    continue  # somebody else took the number: try the next
                sync_folder(folder)
                return version
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def numbers(self, kind: ArtifactKind) -> list[int]:
        """Return the numbers of all published versions, ascending, without 0."""
        folder = self.root / kind
        names = os.listdir(folder) if folder.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch(r"\d{6,}", name))

    def version(self, kind: ArtifactKind, number: int) -> Version:
        """Return a version's manifest; raises `RegistryError` if there is none or it cannot be read."""
        if (kind, number) not in self._versions:
            path = self.folder(kind, number) / MANIFEST
            try:
                data = json.loads(path.read_bytes())
                data["events"] = tuple(data["events"])
                self._versions[kind, number] = Version(**data)
            except FileNotFoundError as error:
                raise RegistryError(f"there is no {kind} version {number}; `attune versions` lists those there are") from error
            except (ValueError, TypeError, KeyError) as error:
                raise RegistryError(f"the manifest of {kind} version {number} is damaged: {error}") from error
        return self._versions[kind, number]

    def folder(self, kind: ArtifactKind, number: int) -> Path:
        """Return the folder in which a version's files lie."""
        return self.root / kind / f"{number:06d}"

    def verify(self, kind: ArtifactKind, number: int) -> Version:
        """Return the version after checking that its files, and no others, are there with the published sha256."""
        version, folder = self.version(kind, number), self.folder(kind, number)
        found = {p.name for p in folder.iterdir()} - {MANIFEST}
        if found != set(version.files):
            raise RegistryError(f"{kind} version {number} holds {sorted(found)} but published {sorted(version.files)}")
        for name, digest in version.files.items():
            with open(folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise RegistryError(f"{name} of {kind} version {number} is not the file that was published (sha256 differs)")
        return version

    def check_base(self, identity: str, revision: str = "") -> None:
        """Raise `ConfigError` if versions here were trained on another base model than the one that is configured.

        Revisions are compared where both are known.
        """
        kinds: tuple[ArtifactKind, ...] = ("policy", "reward")
        for kind in kinds:
            for number in self.numbers(kind)[-1:]:
                known = self.version(kind, number)
                another = revision and known.base_revision and revision != known.base_revision
                if known.base_model != identity or another:
                    trained_on, named = (
                        f"{name} ({which})" if another else name
                        for name, which in ((known.base_model, known.base_revision), (identity, revision))
                    )
                    raise ConfigError(
                        f"{self.root.parent} holds versions that were trained on {trained_on}, and the configuration names {named}: "
                        "go back to that model, or give this one a home folder of its own (--home or ATTUNE_HOME)"
                    )

    def log(self) -> list[Promotion]:
        """Return all promotion records in order."""
        self._catch_up()
        return list(self._log)

    def state(self, kind: ArtifactKind, number: int) -> State:
        """Return where a version stands now; a champion under a newer champion is `retired`."""
        champion, moved = self.champion(kind), self._moves.get((kind, number))
        last = State.CHAMPION if number == 0 else moved.move if moved else State.PUBLISHED
        return State.RETIRED if last is State.CHAMPION and champion != number else last

    def refusal(self, kind: ArtifactKind, number: int) -> str | None:
        """Return why a version was rejected or rolled back; None if it was neither."""
        self._catch_up()
        moved = self._moves.get((kind, number))
        return moved.reason if moved and moved.move in (State.REJECTED, State.ROLLED_BACK) else None

    def champion(self, kind: ArtifactKind) -> int:
        """Return the version that most users get: the last made champion that was not rolled back since; else 0."""
        self._catch_up()
        return self._champions.get(kind, [0])[-1]

    def champions(self, kind: ArtifactKind) -> list[int]:
        """Return the versions that became champion and were not rolled back, newest promotion first; 0 is always the last."""
        self._catch_up()
        return self._champions.get(kind, [0])[::-1]

    def live_since(self, kind: ArtifactKind, number: int) -> float | None:
        """Return when a version became champion (seconds since the epoch); None if it never did."""
        times = [p.at for p in self.log() if (p.kind, p.version, p.move) == (kind, number, State.CHAMPION)]
        return times[0] if times else None

    def move(self, kind: ArtifactKind, number: int, to: State, *, by: str, reason: str) -> Promotion:
        """Append one promotion record if the state table allows it.

        Raises `IllegalMove` if it does not, `Conflict` if another writer's record came first, `RegistryError` if there is no such version.
        """
        if number == 0:
            raise IllegalMove("version 0 is the base model: it cannot be moved")
        self.version(kind, number)
        records = self.log()
        state = self.state(kind, number)
        if to not in MOVES[state] or to is State.RETIRED:
            allowed = ", ".join(sorted(MOVES[state])) or "nothing"
            raise IllegalMove(f"{kind} version {number} is {state}: it can become {allowed}, not {to}")
        record = Promotion(len(records) + 1, kind, number, to, reason, by, time.time())
        self._append(record)
        return record

    def promote(self, kind: ArtifactKind, number: int, *, by: str, reason: str) -> None:
        """Take a published or tried version through every remaining move to champion."""
        if self.state(kind, number) is State.PUBLISHED:
            self.move(kind, number, State.TRIAL, by=by, reason=reason)
        self.move(kind, number, State.CHAMPION, by=by, reason=reason)

    def roll_back(self, kind: ArtifactKind, *, by: str, reason: str) -> int:
        """Take the champion out of service and return the number of the one that serves again."""
        number = self.champion(kind)
        if number == 0:
            raise IllegalMove(f"the {kind} champion is version 0, the base model: there is nothing to roll back to")
        self.move(kind, number, State.ROLLED_BACK, by=by, reason=reason)
        return self.champion(kind)

    def _path(self, number: int) -> Path:
        return self.root / "log" / f"{number:08d}.json"

    def _catch_up(self) -> None:
        """Read the records that came since, and keep where they left the versions: what is asked often does not read the whole log."""
        with self._lock:
            while (record := self._read(len(self._log) + 1)) is not None:
                line = self._champions.setdefault(record.kind, [0])
                if record.move is State.CHAMPION:
                    line.append(record.version)
                elif record.move is State.ROLLED_BACK:
                    line.remove(record.version)
                self._moves[record.kind, record.version] = record
                self._log.append(record)

    def _read(self, number: int) -> Promotion | None:
        try:
            data = json.loads(self._path(number).read_bytes())
            return Promotion(**{**data, "move": State(data["move"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise RegistryError(f"promotion record {number} is damaged: {error}") from error

    def _append(self, record: Promotion) -> None:
        path = self._path(record.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=NEW, delete=False) as file:
            file.write(json.dumps(asdict(record)).encode())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(file.name, path)  # fails if the record exists: this is the compare-and-swap
        except FileExistsError as error:
            raise Conflict(f"promotion record {record.number} was written by somebody else just now: look again") from error
        finally:
            os.unlink(file.name)
        sync_folder(path.parent)


def _clear(folder: Path) -> None:
    for left in folder.glob(f"{NEW}*"):
        if left.stat().st_mtime < time.time() - ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)
