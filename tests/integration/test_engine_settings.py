"""Settings that vLLM refuses are a configuration error with its own words, and not a program that dies again and again."""

from pathlib import Path
from typing import Any, get_args

import pytest
from vllm.config.lora import MaxLoRARanks

from attune.config import Config, ModelSection, ServeSection
from attune.errors import ConfigError, Unavailable
from serve import engine
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


class Dying(Swapper):
    """A swapper whose engine dies a few times while it brings the champion in."""

    def __init__(self, deaths: int) -> None:
        self.left, self.rounds, self._failed_rebuilds = deaths, 0, 0

    async def once(self) -> None:
        self.rounds += 1
        if self.rounds <= self.left:
            self._failed_rebuilds = self.rounds
            raise Unavailable("the engine died")


@pytest.mark.parametrize(("deaths", "rounds", "hopeless"), [(0, 1, False), (2, 3, False), (9, MAX_FAILED_REBUILDS, True)])
async def test_a_champion_that_kills_the_engine_does_not_keep_the_server_from_starting(deaths: int, rounds: int, hopeless: Any) -> None:
    swapper = Dying(deaths)
    await swapper.begin()
    assert (swapper.rounds, swapper.hopeless) == (rounds, hopeless)
