"""Which policy versions are loaded, which one new requests get, and who still uses the others.

A request leases its version for its whole life, so a swap changes only what comes after it. Leaves loading and proving to `swap`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from attune.errors import RequestError


@dataclass(frozen=True, slots=True)
class Policy:
    """A loaded policy version: `adapter` is the engine's handle, None for version 0, the bare base model."""

    number: int
    adapter: Any | None


class Slots:
    """The loaded policies of one server."""

    def __init__(self) -> None:
        self._loaded: dict[int, Policy] = {0: Policy(0, None)}
        self._leases: dict[int, int] = {}
        self.live = 0
        """Number of the version that new requests get."""
        self.live_since: dict[int, float] = {}

    @property
    def numbers(self) -> list[int]:
        """Return the loaded versions, newest first; 0 is always among them."""
        return sorted(self._loaded, reverse=True)

    @contextmanager
    def lease(self, number: int | None = None) -> Iterator[Policy]:
        """Hold one version (None: the live one) loaded for as long as the block runs; raises a 404 if it is not loaded."""
        wanted = self.live if number is None else number
        policy = self._loaded.get(wanted)
        if policy is None:
            raise RequestError(f"The model `attune@{wanted}` is not loaded.", status=404, param="model", code="model_not_found")
        self._leases[wanted] = self._leases.get(wanted, 0) + 1
        try:
            yield policy
        finally:
            self._leases[wanted] -= 1

    def add(self, policy: Policy) -> None:
        """Make a loaded and proved version available by its number."""
        self._loaded[policy.number] = policy

    def flip(self, number: int, now: float) -> None:
        """Give this version to all requests from now on."""
        if number not in self._loaded:
            raise KeyError(f"policy {number} is not loaded")
        self.live = number
        self.live_since[number] = now

    def surplus(self, keep: int) -> list[Policy]:
        """Return the loaded versions beyond the newest `keep` that are neither live nor the base, oldest first."""
        others = [n for n in self.numbers if n not in (0, self.live)]
        return [self._loaded[n] for n in reversed(others[keep:])]

    def leased(self, number: int) -> bool:
        """Whether a request still uses this version."""
        return self._leases.get(number, 0) > 0

    def remove(self, number: int) -> None:
        """Refuse new leases of a version; the caller unloads it once `leased` is false."""
        self._loaded.pop(number, None)
