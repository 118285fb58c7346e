"""An engine client that vLLM's OpenAI server takes for the engine: everything is delegated but `generate`.

`generate` draws more candidates than were asked for, lets `answer` choose, and replays what the engine said of the chosen ones,
event by event, so that vLLM's own code builds the reply (streams, tools, JSON schemas, log-probs and usage included).
"""

import copy
from collections.abc import AsyncIterator
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

from attune.errors import AttuneError, Unavailable
from attune.types import Candidate, Interaction, Sampling
from serve.answer import Answerer, Ask, Draw, Sampler
from serve.engine import Engine
from serve.slot import Policy


class EngineProxy:
    """AsyncLLM's promises, with reranking inside."""

    def __init__(self, engine: Engine, answerer: Answerer) -> None:
        self.engine, self.answerer = engine, answerer
        self.asks: dict[str, Ask] = {}
        """Request id -> what the client wants; put there by the chat route before it calls vLLM's handler."""
        self.answered: dict[str, Interaction] = {}
        self.failed: dict[str, AttuneError] = {}
        """Request id -> our own error, which vLLM's handler would turn into a status of its own when it streams."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine.inner, name)

    async def generate(self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any) -> AsyncIterator[Any]:
        """Yield the outputs of the chosen candidates as the engine itself would have."""
        ask = self.asks[request_id]
        kwargs.pop("lora_request", None)
        params, drawn = _widen(sampling_params), _Drawn()

        async def sample(policy: Policy, total: int) -> Draw:
            params.n = 1 if _greedy(params) else total
            async for output in self.engine.inner.generate(prompt, params, request_id, lora_request=policy.adapter, **kwargs):
                drawn.take(output)
            return drawn.draw(params)

        wanted = 1 if _greedy(params) else sampling_params.n
        try:
            interaction = await self._answered(ask, wanted, sample)
        except AttuneError as error:
            self.failed[request_id] = error
            raise
        self.answered[request_id] = interaction
        for output in drawn.replay(interaction.shown, sampling_params):
            yield output

    async def _answered(self, ask: Ask, wanted: int, sample: Sampler) -> Interaction:
        try:
            return await self.answerer.answer(ask, wanted, sample)
        except EngineDeadError as error:
            raise Unavailable("The engine died while it answered; it is being restarted.") from error

    def forget(self, request_id: str) -> None:
        """Drop what is kept of a request."""
        for kept in (self.asks, self.answered, self.failed):
            kept.pop(request_id, None)


class _Drawn:
    """Every event of one drawing, kept by candidate."""

    def __init__(self) -> None:
        self.events: dict[int, list[Any]] = {}
        self.last: Any = None

    def take(self, output: Any) -> None:
        for completion in output.outputs:
            self.events.setdefault(completion.index, []).append(copy.copy(completion))
        self.last = output

    def draw(self, params: SamplingParams) -> Draw:
        streamed = params.output_kind == RequestOutputKind.DELTA
        candidates = tuple(_candidate(i, self.events[i] if streamed else self.events[i][-1:]) for i in sorted(self.events))
        return Draw(tuple(self.last.prompt_token_ids), _sampling(params), params.seed, candidates)

    def replay(self, shown: tuple[int, ...], asked: SamplingParams) -> list[Any]:
        if asked.logprobs is None:
            for completion in (c for i in shown for c in self.events[i]):
                completion.logprobs = completion.cumulative_logprob = None
        streamed = asked.output_kind == RequestOutputKind.DELTA
        tracks = [self.events[i] if streamed else self.events[i][-1:] for i in shown]
        outputs = []
        steps = max(len(track) for track in tracks)
        for step in range(steps):
            output = copy.copy(self.last)
            output.outputs = []
            for place, track in enumerate(tracks):
                if step < len(track):
                    track[step].index = place
                    output.outputs.append(track[step])
            output.finished = step == steps - 1
            outputs.append(output)
        return outputs


def _widen(asked: SamplingParams) -> SamplingParams:
    params = asked.clone()
    if params.logprobs is None:
        params.logprobs = 0
    return params


def _greedy(params: SamplingParams) -> bool:
    return bool(params.temperature < 1e-5)


def _candidate(index: int, parts: list[Any]) -> Candidate:
    token_ids = tuple(int(t) for part in parts for t in part.token_ids)
    rows = [row for part in parts for row in (part.logprobs or [])]
    return Candidate(
        index=index,
        text="".join(part.text for part in parts),
        token_ids=token_ids,
        logprobs=tuple(float(row[token].logprob) for row, token in zip(rows, token_ids, strict=True)),
        finish_reason=str(parts[-1].finish_reason or "length"),
    )


def _sampling(params: SamplingParams) -> Sampling:
    penalised = bool(
        params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
        or params.logit_bias
        or params.structured_outputs
        or params.min_tokens
        or params.bad_words
    )
    return Sampling(
        temperature=float(params.temperature),
        top_p=float(params.top_p),
        top_k=int(params.top_k),
        min_p=float(params.min_p),
        max_tokens=int(params.max_tokens or 0),
        penalised=penalised,
    )
