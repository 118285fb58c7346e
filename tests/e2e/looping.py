"""A client that never stops asking, in a thread of its own: what it met tells whether a swap disturbed anybody."""

import threading
import time
from types import TracebackType

import openai

from tests.fixtures.running import Running


class LoopingClient:
    """Asks again and again until left; `failures` holds every error, `replies` (seconds when answered, policy version) of every reply."""

    def __init__(self, running: Running) -> None:
        self.replies: list[tuple[float, int]] = []
        self.failures: list[str] = []
        self._client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0, timeout=60.0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="looping-client", daemon=True)

    def __enter__(self) -> "LoopingClient":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(60.0)
        self._client.close()

    def newest(self) -> int:
        """Return the highest policy version that answered so far; 0 before the first reply."""
        return max((version for _, version in self.replies), default=0)

    def _loop(self) -> None:
        while not self._over.is_set():
            try:
                reply = self._client.chat.completions.create(
                    model="attune",
                    messages=[{"role": "user", "content": "Tell me about rivers."}],
                    max_tokens=12,
                    extra_body={"candidates": 1},
                )
                self.replies.append((time.monotonic(), (reply.model_extra or {})["attune"]["policy_version"]))
            except (openai.OpenAIError, KeyError) as error:
                self.failures.append(repr(error))
            self._over.wait(0.7)
