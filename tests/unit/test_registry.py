"""The registry: versions whole or not at all, records that only one writer wins, and the state table as the only way to move."""

import json
import multiprocessing
import os
import time
from itertools import product
from pathlib import Path

import pytest

from attune.config import Config, ModelSection
from attune.errors import ConfigError, Conflict, IllegalMove, RegistryError
from attune.registry import Registry
from attune.types import State, Version


def publish(registry: Registry, text: bytes = b"weights", parent: int = 0) -> Version:
    return registry.publish(
        "policy", {"a.bin": text, "b.json": b"{}"}, parent=parent, base_model="tiny", base_revision="", trained_through=7,
        report={"kl": 1.5}, reward_version=2, events=("fb-1",),
    )  # fmt: skip


def champion(registry: Registry) -> Version:
    version = publish(registry)
    registry.promote("policy", version.number, by="test", reason="good")
    return version


def test_what_is_published_reads_back_in_another_process_s_eyes(tmp_path: Path) -> None:
    version = publish(Registry(tmp_path))
    again = Registry(tmp_path)
    assert again.version("policy", 1) == version == again.verify("policy", 1)
    assert again.numbers("policy") == [1]
    assert again.state("policy", 1) is State.PUBLISHED
    assert again.champion("policy") == 0


def test_numbers_only_grow(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert [publish(registry).number for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    registry = Registry(tmp_path)
    folder = registry.folder("policy", publish(registry).number)
    match damage:
        case "change":
            (folder / "a.bin").write_bytes(b"weighty")
        case "remove":
            (folder / "a.bin").unlink()
        case "add":
            (folder / "c.bin").write_bytes(b"")
    with pytest.raises(RegistryError, match="policy version 1"):
        registry.verify("policy", 1)


def test_a_half_written_version_is_not_seen(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    publish(registry)
    (tmp_path / "policy" / ".new-crashed").mkdir()
    (tmp_path / "policy" / ".new-crashed" / "a.bin").write_bytes(b"half")
    assert registry.numbers("policy") == [1]
    assert publish(registry).number == 2


def test_what_a_crash_left_goes_after_a_day_and_what_is_being_written_stays(tmp_path: Path) -> None:
    for name, hours in (("crashed", 25), ("writing", 1)):
        folder = tmp_path / "policy" / f".new-{name}"
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - 3600 * hours,) * 2)
    publish(Registry(tmp_path))
    assert sorted(p.name for p in (tmp_path / "policy").iterdir()) == [".new-writing", "000001"]


def test_a_version_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no policy version 5"):
        Registry(tmp_path).version("policy", 5)


def test_a_damaged_manifest_or_record_says_so(tmp_path: Path) -> None:
    champion(Registry(tmp_path))
    (tmp_path / "policy" / "000001" / "manifest.json").write_text("{")
    with pytest.raises(RegistryError, match="damaged"):
        Registry(tmp_path).version("policy", 1)
    (tmp_path / "log" / "00000001.json").write_text(json.dumps({"number": 1}))
    with pytest.raises(RegistryError, match="record 1 is damaged"):
        Registry(tmp_path).log()


def test_champions_follow_and_roll_back(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    first, second = champion(registry), champion(registry)
    assert registry.champion("policy") == second.number
    assert registry.state("policy", first.number) is State.RETIRED
    assert registry.champions("policy") == [2, 1, 0]
    assert registry.roll_back("policy", by="test", reason="bad") == first.number
    assert registry.state("policy", second.number) is State.ROLLED_BACK
    assert registry.state("policy", first.number) is State.CHAMPION
    assert registry.roll_back("policy", by="test", reason="bad") == 0
    with pytest.raises(IllegalMove, match="base model"):
        registry.roll_back("policy", by="test", reason="bad")


def stand(registry: Registry, state: State) -> int:
    """Return the number of a version brought into a state by legal moves."""
    number = publish(registry).number
    path = {
        State.PUBLISHED: [], State.TRIAL: [State.TRIAL], State.REJECTED: [State.REJECTED], State.CHAMPION: [State.TRIAL, State.CHAMPION],
        State.RETIRED: [State.TRIAL, State.CHAMPION], State.ROLLED_BACK: [State.TRIAL, State.CHAMPION, State.ROLLED_BACK],
    }  # fmt: skip
    for move in path[state]:
        registry.move("policy", number, move, by="test", reason="test")
    if state is State.RETIRED:
        champion(registry)
    return number


BY_HAND = {
    (State.PUBLISHED, State.REJECTED), (State.PUBLISHED, State.TRIAL), (State.TRIAL, State.CHAMPION), (State.TRIAL, State.REJECTED),
    (State.CHAMPION, State.ROLLED_BACK),
}  # fmt: skip
"""What may be said of a version; that one retires follows from another's rise."""


@pytest.mark.parametrize(("state", "move"), list(product(State, State)))
def test_only_the_table_s_moves_exist(tmp_path: Path, state: State, move: State) -> None:
    registry = Registry(tmp_path)
    number = stand(registry, state)
    assert registry.state("policy", number) is state
    if (state, move) in BY_HAND:
        registry.move("policy", number, move, by="test", reason="test")
        assert registry.state("policy", number) is move
    else:
        with pytest.raises(IllegalMove):
            registry.move("policy", number, move, by="test", reason="test")


def _race(root: Path, number: int, barrier: "multiprocessing.synchronize.Barrier", won: "multiprocessing.Queue[bool]") -> None:
    registry = Registry(root)
    registry.log()
    registry.state("policy", number)
    barrier.wait()
    try:
        registry.move("policy", number, State.TRIAL, by="racer", reason="race")
        won.put(True)
    except (Conflict, IllegalMove):
        won.put(False)


def test_one_of_many_writers_wins_a_record(tmp_path: Path) -> None:
    number = publish(Registry(tmp_path)).number
    context = multiprocessing.get_context("fork")
    barrier, won = context.Barrier(6), context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, number, barrier, won)) for _ in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sum(won.get() for _ in racers) == 1
    assert len(Registry(tmp_path).log()) == 1


def test_publishing_at_once_gives_every_writer_a_number_of_its_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=lambda k=k: publish(Registry(tmp_path), f"w{k}".encode())) for k in range(5)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    registry = Registry(tmp_path)
    assert registry.numbers("policy") == [1, 2, 3, 4, 5]
    for number in registry.numbers("policy"):
        assert registry.verify("policy", number).number == number


def test_versions_of_another_base_model_are_not_taken_over(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.check_base("anything")
    registry.publish("policy", {"x": b""}, parent=0, base_model="one", base_revision="", trained_through=0, report={})
    registry.check_base("one")
    with pytest.raises(ConfigError, match="trained on one, and the configuration names other"):
        registry.check_base("other")
    registry.check_base("one", "b")  # which it was trained on is not known
    registry.publish("policy", {"x": b""}, parent=0, base_model="one", base_revision="a", trained_through=0, report={})
    registry.check_base("one", "a")
    registry.check_base("one")
    with pytest.raises(ConfigError, match=r"trained on one \(a\), and the configuration names one \(b\)"):
        registry.check_base("one", "b")


def test_a_folder_of_the_same_name_with_other_weights_is_another_model(tmp_path: Path) -> None:
    revisions = list[str]()
    for part in ("here", "there", "nowhere"):
        model = tmp_path / part / "model"
        model.mkdir(parents=True)
        if part != "nowhere":
            (model / "model.safetensors").write_bytes(f"weights {part}".encode())
        revisions.append(Config(model=ModelSection(path=str(model))).model_revision)
    assert len(set(revisions)) == 3
    assert revisions[2] == ""
    assert [Config(model=ModelSection(path="owner/name", revision=r)).model_revision for r in (None, "v1")] == ["", "v1"]
