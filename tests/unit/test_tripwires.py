"""Tripwires: each way of going wrong trips its own, a healthy change of style trips none, and a stop holds until somebody resumes."""

from pathlib import Path

import pytest

from attune import cli, halt
from attune.config import LearnerSection
from learner.tripwires import MIN_ANSWERS, WIRES, tripped

TYPICAL = [(f"Question {n}?", f"This is a fine and full answer to the question of number {n}, with words to spare.") for n in range(40)]


def answers(text: str) -> list[tuple[str, str]]:
    return [(f"Question {n}?", text.format(n=n)) for n in range(40)]


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("", "words on average"),
        ("", "empty answers rose to 100%"),
        ("number {n} " + "and so on to all the things " * 20, "words on average"),
        ("I'm sorry, but I cannot help with number {n}.", "refusals rose to 100%"),
        ("number {n} is good and number {n} is good and number {n} is good and number {n} is good", "repeat themselves"),
        ("A short and friendly answer to all.", "distinct answers fell to 2%"),
    ],
)
def test_each_decay_trips_its_wire(text: str, wire: str) -> None:
    assert any(wire in reason for reason in tripped(answers(text), TYPICAL))


def test_what_is_wanted_here_can_be_left_out() -> None:
    alike = answers("A short and friendly answer to all.")
    assert tripped(alike, TYPICAL, [wire for wire in WIRES if wire != "sameness"]) == []
    assert len(tripped(answers(""), TYPICAL, WIRES)) == 3
    for wire in WIRES:
        assert len(tripped(answers(""), TYPICAL, [wire])) == int(wire in ("length", "empty", "sameness"))
    assert LearnerSection().tripwires == list(WIRES)


@pytest.mark.parametrize(
    "text",
    [
        "Number {n}.",
        "Number {n} is a fine one! " + "How about you?",
        "It is {n}: a rather long and winding answer, with many words in it that say one thing after another and then some more.",
    ],
)
def test_a_change_of_style_trips_none(text: str) -> None:
    assert tripped(answers(text), TYPICAL) == []


def test_the_same_question_may_get_the_same_answer() -> None:
    assert tripped([("What is the capital of France?", "Paris is the capital of France.")] * 40, TYPICAL) == []


def test_too_few_say_nothing() -> None:
    assert tripped(answers("")[: MIN_ANSWERS - 1], TYPICAL) == []
    assert tripped(answers(""), TYPICAL[: MIN_ANSWERS - 1]) == []


def test_a_stop_holds_until_it_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ATTUNE_HOME", str(tmp_path))
    assert halt.read(tmp_path) is None
    assert cli.main(["resume"]) == 1
    halt.stop(tmp_path, ["empty answers rose"], policy_version=7, position=120)
    found = halt.read(tmp_path)
    assert found is not None
    assert found.reasons == ("empty answers rose",)
    assert cli.main(["resume"]) == 0
    assert "policy 7: empty answers rose" in capsys.readouterr().out
    assert halt.read(tmp_path) is None
    assert halt.resumed_at(tmp_path) == 120


def test_a_damaged_stop_is_a_stop_that_can_be_resumed(tmp_path: Path) -> None:
    halt.stop(tmp_path, ["empty answers rose"], policy_version=7, position=120)
    file = tmp_path / "learner" / "stopped.json"
    for damage in ("", '{"reasons": []}', "[]"):
        file.write_text(damage)
        found = halt.read(tmp_path)
        assert found is not None
        assert "damaged" in found.reasons[0]
        assert halt.resume(tmp_path) == found
        assert halt.read(tmp_path) is None
        assert halt.resumed_at(tmp_path) == 0
