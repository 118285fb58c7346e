"""The line that says where learning stands, and the scalars that TensorBoard shows."""

import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from attune.live_line import ask, live_line
from attune.types import Version
from learner.board import Board

STATUS = {
    "policy_version": 3,
    "reward_version": 9,
    "votes": {"received": 42, "stored": 42, "learned": 40},
    "versions": [
        {"kind": "policy", "number": 3, "report": {"kl_to_ref": 1.25}},
        {"kind": "reward", "number": 9, "report": {"overall_accuracy": 0.8}},
    ],
}


def test_the_line_says_where_learning_stands() -> None:
    assert live_line(STATUS) == "policy 3, reward 9, votes 42, learned 40, foretold 80%, KL 1.2 nats"
    thrown = live_line(STATUS | {"update_discarded": "KL to the base is 40 nats"})
    assert thrown.endswith(", the last update was thrown away: KL to the base is 40 nats")
    stopped = live_line(STATUS | {"learner_stopped": ["empty answers rose to 90%"]})
    assert stopped.endswith("LEARNING IS STOPPED: empty answers rose to 90% (attune resume)")


def test_no_server_no_line() -> None:
    assert ask("http://127.0.0.1:9", "sk-attune-x") is None


def scalars(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Yield tag, step and value of every scalar in a folder's event files: records are a length, a checksum, the data, a checksum."""
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at + 12 < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)
            at += 16 + length


def test_reports_become_scalars_under_trls_names(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.show(Version("policy", 4, {}, 3, "m", "", 0.0, 0, 1, {"kl_to_ref": 1.5, "held_out_after": 0.25, "stage": "ppo"}))
    board.show(Version("reward", 7, {}, 6, "m", "", 0.0, 0, 7, {"overall_ece": 0.125, "reliability": [[0.5, 0.5, 3]]}))
    board.close()
    expected = [("objective/kl", 4, 1.5), ("policy/held_out_after", 4, 0.25), ("reward/overall_ece", 7, 0.125)]
    assert list(scalars(tmp_path)) == expected


def test_a_full_disk_costs_scalars_and_not_the_learner(tmp_path: Path) -> None:
    (tmp_path / "board").touch()
    board = Board(tmp_path / "board")
    board.show(numbered(1))  # there is no folder
    (tmp_path / "board").unlink()
    board.show(numbered(2))
    assert board._file is not None
    file = board._file._py_recordio_writer
    with file._writer, Path("/dev/full").open("wb", buffering=0) as file._writer:
        board.show(numbered(3))
    board.show(numbered(4))
    board.close()
    assert list(scalars(tmp_path / "board")) == [("policy/figure", 2, 0.5), ("policy/figure", 4, 0.5)]


def numbered(number: int) -> Version:
    return Version("policy", number, {}, number - 1, "m", "", 0.0, 0, 1, {"figure": 0.5})
