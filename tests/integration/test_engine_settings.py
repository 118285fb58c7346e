"""Settings that vLLM refuses are a configuration error with its own words, and not a program that dies again and again."""

from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from vllm.config.lora import MaxLoRARanks

from attune.config import Config, ModelSection, ServeSection
from attune.errors import ConfigError, Unavailable
from attune.registry import Registry
from serve import engine
from serve.slot import Slots
from serve.swap import MAX_FAILED_REBUILDS, Swapper


async def test_a_context_that_the_model_does_not_have_is_named(tiny_model: Path, tmp_path: Path) -> None:
    config = Config(home=tmp_path, model=ModelSection(path=str(tiny_model), max_context_tokens=1_000_000))
    with pytest.raises(ConfigError, match=r"vLLM cannot run this model with these settings.*max_model_len"):
        await engine.start(config, 0)


async def test_a_tool_parser_that_vllm_does_not_have_is_named_with_those_that_it_has(tiny_model: Path, tmp_path: Path) -> None:
    config = Config(home=tmp_path, model=ModelSection(path=str(tiny_model)), serve=ServeSection(tool_call_parser="hermit"))
    with pytest.raises(ConfigError, match=r"serve\.tool_call_parser: vLLM has no 'hermit', but .*hermes.*mistral"):
        await engine.start(config, 0)


def test_there_is_room_for_an_adapter_of_every_rank_that_may_be_configured() -> None:
    assert get_args(MaxLoRARanks) == engine.LORA_RANKS
    with pytest.raises(ValueError, match="less than or equal to 512"):
        ModelSection(lora_rank=513)


class Away:
    """An engine that is dead, and that cannot be brought back the next few times."""

    def __init__(self, failures: int) -> None:
        self.dead, self.failures, self.tries = True, failures, 0

    async def rebuild(self) -> None:
        self.tries += 1
        self.failures -= 1
        if self.failures >= 0:
            raise Unavailable("the engine died")
        self.dead = False


@pytest.mark.parametrize(("failures", "tries", "hopeless"), [(0, 1, False), (2, 3, False), (9, MAX_FAILED_REBUILDS, True)])
async def test_an_engine_that_comes_back_in_time_keeps_the_server_and_every_death_counts_anew(
    tmp_path: Path, failures: int, tries: int, hopeless: bool
) -> None:
    engine, slots, scorer = Away(failures), Slots(), SimpleNamespace(reward=SimpleNamespace(version=0))
    swapper = Swapper(Config(home=tmp_path), Registry(tmp_path / "registry"), engine, slots, scorer, None, None)  # type: ignore[arg-type]
    await swapper.begin()
    assert (engine.tries, swapper.hopeless, slots.suspended) == (tries, hopeless, hopeless)
    if not hopeless:
        engine.dead, engine.failures = True, 2
        await swapper.begin()
        assert not engine.dead
        assert not swapper.hopeless
