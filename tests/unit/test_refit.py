"""When a new trunk is tried, what a restart remembers of that, and how long what was made may run after the loop."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attune.frozen import FrozenBase, load_base
from learner.refit import MOST_ROUNDS, Refit
from learner.trunk_trainer import Fitted, Lesson
from tests.fixtures.world import QUICK, World

LESSON = Lesson([], {}, [])


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> FrozenBase:
    return FrozenBase(load_base(str(tiny_model), None, torch.float32))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What would have been done on the thread."""
    found: list[Callable[[], None]] = []
    monkeypatch.setattr(Refit, "_begin", lambda _, work: found.append(work))
    return found


def a_refit(base: FrozenBase, memory: Path, trunk_votes: int = 8) -> Refit:
    return Refit(base, QUICK.model_copy(update={"trunk_votes": trunk_votes}), threading.Event(), memory)


def test_a_try_waits_for_twice_the_votes_of_the_one_before_also_after_a_restart(
    base: FrozenBase, begun: list[Callable[[], None]], tmp_path: Path
) -> None:
    memory = tmp_path / "trunk" / "due"
    refit = a_refit(base, memory)
    refit.consider(7, lambda: LESSON)
    assert (len(begun), memory.exists()) == (0, False)
    refit.consider(40, lambda: LESSON)  # many came at once
    assert (len(begun), refit.due_at) == (1, 64)
    for again in (refit, a_refit(base, memory)):
        again.consider(63, lambda: LESSON)
        assert len(begun) == 1
    memory.write_text("so\n")
    assert a_refit(base, memory).due_at == 8  # what cannot be read is begun anew


def test_no_try_where_the_operator_wants_none(base: FrozenBase, begun: list[Callable[[], None]], tmp_path: Path) -> None:
    a_refit(base, tmp_path / "due", trunk_votes=0).consider(1000, lambda: LESSON)
    assert not begun


def test_one_try_at_a_time_taken_once(world: World, begun: list[Callable[[], None]], tmp_path: Path) -> None:
    refit = a_refit(world.base, tmp_path / "due")
    refit.ready = made = a_fit(world)
    refit.consider(100, lambda: LESSON)
    assert (len(begun), refit.due_at) == (0, 8)
    assert refit.take() is made
    assert refit.take() is None
    refit.consider(100, lambda: LESSON)
    assert len(begun) == 1


def test_a_trunk_does_not_run_after_a_busy_loop_for_ever(world: World, begun: list[Callable[[], None]], tmp_path: Path) -> None:
    refit, made = a_refit(world.base, tmp_path / "due"), a_fit(world)
    refit._made = made
    for rounds in range(MOST_ROUNDS):
        refit.catch_up(lambda: [(world.interaction(), []) for _ in range(50)])
        assert (refit.take(), len(begun)) == (None, rounds + 1)
    refit.catch_up(lambda: [(world.interaction(), []) for _ in range(50)])
    assert (refit.take(), len(begun)) == (made, MOST_ROUNDS)


def a_fit(world: World) -> Fitted:
    cycle = world.learner()
    world.votes(4)
    cycle.once()
    return cycle.refit.make(cycle.lesson())
