"""Rollouts on demand: prompts that people just voted on, answered anew by the live policy, when traffic alone gives too few to learn from.

Asked of serve like any request, so that they travel and are stored like all rollouts; serve turns them away while a person waits.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import structlog

from attune.config import Config
from attune.hosts import is_here
from attune.types import Interaction
from learner import metrics

log = structlog.get_logger()

TIMEOUT_S = 60.0
FRESH_S = 15.0
"""After which a draw that nobody came back for says nothing of what is needed now: traffic was enough meanwhile."""


class TopUp:
    """The learner's own client of serve. It asks on a thread of its own, so that votes do not wait for answers."""

    def __init__(self, config: Config, transport: httpx.BaseTransport | None = None) -> None:
        """`transport` stands in for the network in tests."""
        self._key_file: Path = config.home / "api-key"
        url = config.learner.serve_url or config.base_url
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, transport=transport, trust_env=not is_here(url))
        self._candidates = config.serve.num_candidates
        self._thread: threading.Thread | None = None
        self._made, self._done_at = 0, 0.0

    def ask(self, interactions: Sequence[Interaction]) -> int | None:
        """Begin to have the prompts of these interactions answered anew; return how many were once it is done, and None until then.

        While answers are being drawn, asking for others only tells how it stands.
        """
        if self._thread is None or (not self._thread.is_alive() and time.monotonic() - self._done_at > FRESH_S):
            self._thread = threading.Thread(target=self._draw, args=(interactions,), name="top-up", daemon=True)
            self._thread.start()
        if self._thread.is_alive():
            return None
        self._thread = None
        return self._made

    def _draw(self, interactions: Sequence[Interaction]) -> None:
        """Ask one after the other; stop at the first that serve turns away."""
        self._made = 0
        for interaction in interactions:
            try:
                reply = self._http.post("/v1/chat/completions", json=self._body(interaction), headers=self._headers())
                reply.raise_for_status()
            except (httpx.HTTPError, OSError) as error:
                metrics.TOP_UPS.labels("refused").inc()
                log.info("top_up_refused", reason=type(error).__name__, made=self._made)
                break
            metrics.TOP_UPS.labels("made").inc()
            self._made += 1
        self._done_at = time.monotonic()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key_file.read_text().strip()}"}

    def _body(self, interaction: Interaction) -> dict[str, object]:
        return {
            "model": "attune",
            "purpose": "learning",
            "messages": [dict(message) for message in interaction.messages],
            "candidates": max(2, self._candidates),
            "temperature": None if interaction.sampling.greedy else interaction.sampling.temperature,
            "max_tokens": interaction.sampling.max_tokens or None,
        }
