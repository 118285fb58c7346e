"""Which policy versions are loaded, which one new requests get, and who still uses the others.

A request leases its version for its whole life, so a swap changes only what comes after it. Leaves loading and proving to `swap`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from attune.errors import RequestError, Unavailable


@dataclass(frozen=True, slots=True)
class Policy:
    """A loaded policy version: `adapter` is the engine's handle, None for version 0, the bare base model."""

    number: int
    adapter: Any | None


@dataclass(slots=True)
class _Slot:
    policy: Policy
    leases: int = 0


class Slots:
    """The loaded policies of one server."""

    def __init__(self) -> None:
        self._loaded: dict[int, _Slot] = {0: _Slot(Policy(0, None))}
        self._draining: list[_Slot] = []
        self.live = 0
        """Number of the version that new requests get."""
        self.live_since: dict[int, float] = {}
        """When each version began to answer here, first of all (seconds since the epoch)."""
        self.started = time.time()
        self.suspended = False
        """Set while the engine is away: nobody gets a lease."""

    @property
    def numbers(self) -> list[int]:
        """Return the loaded versions, newest first; 0 is always among them."""
        return sorted(self._loaded, reverse=True)

    @contextmanager
    def lease(self, number: int | None = None) -> Iterator[Policy]:
        """Hold one version (None: the live one) loaded for as long as the block runs.

        Raises a 404 if it is not loaded, and `Unavailable` while the engine is away.
        """
        if self.suspended:
            raise Unavailable("The engine is being restarted.")
        wanted = self.live if number is None else number
        slot = self._loaded.get(wanted)
        if slot is None:
            raise RequestError(f"The model `attune@{wanted}` is not loaded.", status=404, param="model", code="model_not_found")
        slot.leases += 1
        try:
            yield slot.policy
        finally:
            slot.leases -= 1

    def add(self, policy: Policy) -> None:
        """Make a loaded and proved version available by its number."""
        self._loaded[policy.number] = _Slot(policy)

    def flip(self, number: int, now: float) -> None:
        """Give this version to all requests from now on."""
        if number not in self._loaded:
            raise KeyError(f"policy {number} is not loaded")
        self.live = number
        self.live_since.setdefault(number, now)

    def retire(self, keep: int) -> None:
        """Refuse new leases of all but the newest `keep` versions, the live one and the base."""
        others = [n for n in self.numbers if n not in (0, self.live)]
        self._draining += [self._loaded.pop(n) for n in others[keep:]]

    def drained(self) -> list[Policy]:
        """Hand over, once, the retired versions that nobody uses any more: the caller unloads them."""
        idle = [slot.policy for slot in self._draining if slot.leases == 0]
        self._draining = [slot for slot in self._draining if slot.leases]
        return idle

    def forget_all(self) -> None:
        """Let nobody in, and forget every adapter, because the engine that held them is gone."""
        self.suspended = True
        self._loaded = {0: _Slot(Policy(0, None))}
        self._draining = []
        self.live = 0
