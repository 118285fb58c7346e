"""Starts vLLM and speaks to it: sample, load, unload, prove, start anew. The only file that knows how vLLM is started.

Facts behind the settings are measured ones: one OpenMP thread (two that spin cost ten times as much beside a trainer), a forked
core (half the start-up time), exact LoRA rank, a warm-up prompt of more than sixteen tokens (a shorter first one can kill the core).
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tool_parsers import ToolParserManager
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from attune.config import Config
from attune.errors import AdapterError, ConfigError, Unavailable
from attune.processes import follow_parent
from serve import engine_lora_cpu

log = structlog.get_logger()

SERVED_NAME = "attune"
MAX_LOADED = 8
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM keeps room for: an adapter of another rank takes the next."""
PLAIN_SAMPLING = {
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0
}  # fmt: skip
"""For requests that do not say: most models bring defaults of their own, and samples drawn with those teach the policy nothing."""


class Engine:
    """One vLLM engine: the base model and the adapters loaded beside it."""

    def __init__(self, inner: AsyncLLM, args: AsyncEngineArgs) -> None:
        self.inner, self.args = inner, args
        self._first = inner
        """Kept for its renderer, which the chat handlers use for good and which would be shut down with it."""
        self._next_id = 1

    @property
    def dead(self) -> bool:
        """Whether the core has died; every request fails until `rebuild`."""
        return bool(self.inner.errored)

    @property
    def max_context_tokens(self) -> int:
        """Return how many tokens prompt and reply may have together."""
        return int(self.inner.model_config.max_model_len)

    async def load(self, number: int, folder: Path) -> LoRARequest:
        """Load an adapter under a name and id never used before; raises `AdapterError` and leaves nothing half-loaded."""
        ident, self._next_id = self._next_id, self._next_id + 1
        request = LoRARequest(f"attune-{number}-{ident}-{os.getpid()}", ident, str(folder))
        try:
            added = await self.inner.add_lora(request)
        except Exception as error:  # vLLM reports a bad adapter as a plain Exception
            if self.dead or isinstance(error, EngineDeadError):
                raise Unavailable("The engine died.") from error
            await self.unload(request)
            raise AdapterError(f"the engine refused the adapter: {error}") from error
        if not added:
            await self.unload(request)
            raise AdapterError("the engine did not take the adapter")
        return request

    async def unload(self, request: LoRARequest) -> None:
        """Forget an adapter; its id is never used again."""
        if not self.dead:
            await self.inner.remove_lora(request.lora_int_id)

    async def logprobs(self, adapter: LoRARequest | None, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Return the log-probs (nats, temperature 1) of `tokens` after `prompt` under an adapter; raises `Unavailable`."""
        params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)
        ident, whole = f"canary-{os.urandom(8).hex()}", [*prompt, *tokens]
        try:
            outputs = [o async for o in self.inner.generate({"prompt_token_ids": whole}, params, ident, lora_request=adapter)]
        except EngineDeadError as error:
            raise Unavailable("The engine died.") from error
        rows = outputs[-1].prompt_logprobs[len(prompt) :]
        return [row[token].logprob for row, token in zip(rows, tokens, strict=True)]

    async def rebuild(self) -> None:
        """Start a new core in the place of a dead one; all adapters are gone, and requests of before fail."""
        old = self.inner
        old.output_processor.propagate_error(EngineDeadError())  # or requests that wait for the old core would wait for ever
        if old.output_handler is not None:
            old.output_handler.cancel()
        # Not old.shutdown(): that would end the renderer too.
        await asyncio.to_thread(old.engine_core.shutdown, 1.0)
        self.args.seed += 1  # or the new core would repeat the samples of the old one
        # In a thread that stays: the core is told to die with the very thread that forked it, and asyncio keeps its threads.
        self.inner = await asyncio.to_thread(_launch, self.args)
        await _warm_up(self)

    async def close(self) -> None:
        """End the engine core."""
        await asyncio.to_thread(self.inner.shutdown)


async def start(config: Config, seed: int) -> Engine:
    """Start vLLM with the configured model, warm it up and return it ready; raises `ConfigError` for settings that it refuses."""
    if config.serve.tool_call_parser not in (parsers := ToolParserManager.list_registered()):
        raise ConfigError(f"serve.tool_call_parser: vLLM has no {config.serve.tool_call_parser!r}, but {', '.join(parsers)}")
    # A forked core computes on for ever when its parent is killed.
    os.register_at_fork(after_in_child=partial(follow_parent, signal.SIGKILL))
    args = AsyncEngineArgs(
        model=config.model_folder,
        revision=config.model.revision,
        served_model_name=[SERVED_NAME],
        max_model_len=config.model.max_context_tokens,
        enable_lora=True,
        max_lora_rank=next(rank for rank in LORA_RANKS if rank >= config.model.lora_rank),
        max_loras=2,
        max_cpu_loras=MAX_LOADED + 4,
        enforce_eager=True,
        block_size=32,
        kv_cache_memory_bytes=config.serve.kv_cache_bytes,
        distributed_executor_backend="uni",
        seed=seed,
        override_generation_config=PLAIN_SAMPLING,
        logprobs_mode="processed_logprobs",
        enable_log_requests=False,
        disable_log_stats=True,
    )
    engine_lora_cpu.install()
    engine = Engine(_launch(args), args)
    await _warm_up(engine)
    return engine


def _launch(args: AsyncEngineArgs) -> AsyncLLM:
    try:
        vllm_config = args.create_engine_config()
    except (ValueError, NotImplementedError) as error:  # pydantic's are ValueErrors, too
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"model: vLLM cannot run this model with these settings: {said}") from error
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # only now: the CPU platform overwrites it in create_engine_config
    return AsyncLLM.from_vllm_config(vllm_config)


def weights_folder(config: Config) -> Path:
    """Return the folder in which the base model's weights lie, downloaded or not."""
    folder = Path(config.model_folder)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(config.model_folder, revision=config.model.revision, allow_patterns=["*.safetensors", "*.json"]))


async def _warm_up(engine: Engine) -> None:
    tokens = list(range(5, 37))
    params = SamplingParams(n=2, max_tokens=4, temperature=1.0, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)
    stream: AsyncIterator[Any] = engine.inner.generate({"prompt_token_ids": tokens}, params, f"warm-up-{engine.args.seed}")
    async for _ in stream:
        pass
    await engine.logprobs(None, tokens[:20], tokens[20:])
