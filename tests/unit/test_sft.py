"""Demonstrations: a version like any other out of a file, refused where it taught nothing, and what is said of lines that are none."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from attune.config import Config, LearnerSection, ModelSection
from attune.errors import ConfigError
from attune.frozen import load_base
from attune.prompt import render
from attune.registry import Registry
from attune.types import State
from learner import challenger, ppo, sft, sft_command, turn
from learner.cycle import TAUGHT_PER_UPDATE
from learner.policy import Policy
from learner.rollout import Rollout
from learner.sft import Example
from tests.fixtures.world import World

LINES = [{"prompt": f"Question {n}?", "completion": "The same answer to all."} for n in range(12)]


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Config:
    return Config(home=tmp_path, model=ModelSection(path=str(tiny_model)))


def write(folder: Path, lines: list[object]) -> Path:
    file = folder / "demonstrations.jsonl"
    file.write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    return file


def test_demonstrations_become_a_live_version(config: Config) -> None:
    registry = Registry(config.registry_folder)
    assert sft_command.run(config, write(config.home, list(LINES)), epochs=2, batch=4, learning_rate=1e-3) == 0
    assert registry.champion("policy") == 1
    first = registry.verify("policy", 1)
    assert first.report["held_out_nll_after"] < first.report["held_out_nll_before"]
    assert sft_command.run(config, write(config.home, list(LINES)), epochs=1, batch=4, learning_rate=1e-3) == 0
    second = registry.version("policy", 2)
    assert (second.parent, second.report["stage"]) == (1, "sft")
    assert second.report["held_out_nll_before"] == pytest.approx(first.report["held_out_nll_after"], abs=0.05)  # it went on from there


def test_a_version_that_learned_nothing_is_refused(config: Config) -> None:
    assert sft_command.run(config, write(config.home, list(LINES)), epochs=0, batch=4, learning_rate=1e-3) == 1
    registry = Registry(config.registry_folder)
    assert registry.champion("policy") == 0
    assert registry.state("policy", 1) is State.REJECTED


def test_a_policy_that_went_live_meanwhile_is_not_overrun(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, train = Registry(config.registry_folder), sft.train

    def slowly(policy: Policy, *args: Any, **more: Any) -> dict[str, float]:
        files = policy.adapter_files()
        lineage = {"base_model": config.model_identity, "base_revision": "", "trained_through": 5, "report": {}, "reward_version": 0}
        other = registry.publish("policy", files, parent=0, **lineage)
        registry.promote("policy", other.number, by="learner", reason="passed the gate")
        return train(policy, *args, **more)

    monkeypatch.setattr(sft, "train", slowly)
    assert sft_command.run(config, write(config.home, list(LINES)), epochs=2, batch=4, learning_rate=1e-3) == 1
    assert (registry.champion("policy"), registry.state("policy", 2)) == (1, State.REJECTED)


def test_nobody_else_makes_a_policy_while_it_teaches(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(*_: Any, **__: Any) -> int:
        with turn.taken(config.home) as free:
            return int(free)

    monkeypatch.setattr(sft_command, "run", tried)
    monkeypatch.setenv("ATTUNE_HOME", str(config.home))
    assert sft_command.main(["--data", "x.jsonl"]) == 0
    with turn.taken(config.home) as free:
        assert free


def test_votes_go_on_with_what_the_policy_was_taught(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, train, rode = World(tmp_path, tiny_model), challenger.train, list[Sequence[Example]]()

    def watched(*args: Any, demonstrations: Sequence[Example], **more: Any) -> challenger.Challenger:
        rode.append(demonstrations)
        return train(*args, demonstrations=demonstrations, **more)

    monkeypatch.setattr(challenger, "train", watched)
    assert sft_command.run(world.config, write(tmp_path, list(LINES)), epochs=2, batch=4, learning_rate=1e-3) == 0
    cycle, taught = world.learner(), sft.taught(world.registry, 1)
    assert len(taught) == 10
    world.votes(5)
    world.votes(5, version=1)
    cycle.once()
    assert len(rode[0]) == TAUGHT_PER_UPDATE
    assert set(rode[0]) <= set(taught)
    assert world.registry.version("policy", world.registry.champion("policy")).parent == 1
    for _ in range(2):
        world.registry.roll_back("policy", by="operator", reason="test")
    world.votes(5)
    cycle.once()
    assert rode[1] == []
    world.store.close()


def test_people_who_come_only_after_the_demonstrations_are_learned_from(tmp_path: Path, tiny_model: Path) -> None:
    world = World(tmp_path, tiny_model)
    assert sft_command.run(world.config, write(tmp_path, list(LINES)), epochs=2, batch=4, learning_rate=1e-3) == 0
    cycle = world.learner()
    world.votes(5, version=1)
    cycle.once()
    assert (world.registry.champion("reward"), world.registry.version("policy", 2).parent) == (1, 1)
    world.votes(1, version=2)
    assert {i.policy_version for i in world.learner().journal.anchors.values()} <= {1}  # what votes have taught is no yardstick
    world.store.close()


@pytest.mark.parametrize(("option", "value"), [("--batch", "0"), ("--epochs", "-1"), ("--learning-rate", "-1"), ("--learning-rate", "nan")])
def test_options_that_make_no_sense_are_named(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sft_command.main(["--data", "x.jsonl", option, value])
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"prompt": "Why?"}, "'completion' is missing"),
        ({"prompt": "Why?", "completion": " "}, "the completion is empty"),
        ({"messages": 5, "completion": "Because."}, "is no demonstration"),
        ({"prompt": "word " * 3000, "completion": "Because."}, "exceed model.max_context_tokens"),
    ],
)
def test_a_line_that_is_no_demonstration_is_named(config: Config, line: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as told:
        sft_command.run(config, write(config.home, [LINES[0], line]), epochs=1, batch=4, learning_rate=1e-3)
    assert "demonstrations.jsonl" in str(told.value)


def test_a_file_without_any_and_no_file(config: Config) -> None:
    for data, reason in ((write(config.home, []), "holds no demonstration"), (config.home / "none.jsonl", "cannot read")):
        with pytest.raises(ConfigError, match=reason):
            sft_command.run(config, data, epochs=1, batch=4, learning_rate=1e-3)


def test_messages_are_rendered_with_the_models_template(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = tokenizer.decode(render(tokenizer, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]))
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("weight", [1.0, 0.05])
def test_edits_ride_along_in_a_policy_update_as_far_as_they_weigh(tiny_model: Path, weight: float) -> None:
    policy = Policy(load_base(str(tiny_model), None, torch.float32), ModelSection(), "tiny", 1e-3, 0)
    edit = Example(tuple(range(10, 20)), tuple(range(30, 40)))
    answers = (tuple(range(40, 50)), tuple(range(60, 70)))
    settings = LearnerSection(optimizer_steps=1, max_groups_per_update=1, kl_beta=0.0, demonstration_weight=weight)
    before, masters = sft.held_out_nll(policy, [edit]), policy.snapshot().masters
    with torch.no_grad():
        behaviour = tuple(tuple(policy.logprobs(policy.row(edit.prompt, [a]), 1.0)[0].tolist()) for a in answers)
    rollout = Rollout("i", edit.prompt, answers, behaviour, behaviour, (0.0, 0.0), 1.0, 0)
    ppo.update(policy, [rollout], settings, demonstrations=[edit])
    furthest = max(float((new - old).detach().abs().max()) for new, old in zip(policy.masters, masters, strict=True))
    assert furthest == pytest.approx(weight * 1e-3, rel=0.01)  # Adam's first step is the learning rate
    assert sft.held_out_nll(policy, [edit]) < before - 0.01 * weight
