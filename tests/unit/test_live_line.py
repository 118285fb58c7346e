"""The line that says where learning stands, and the scalars that TensorBoard shows."""

import struct
import time
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
    stopped = live_line(STATUS | {"learner_stopped": ["empty answers rose to 90%"]})
    assert stopped.endswith("LEARNING IS STOPPED: empty answers rose to 90% (attune resume)")


def test_no_server_no_line() -> None:
    assert ask("http://127.0.0.1:9", "sk-attune-x") is None


def scalars(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Yield tag, step and value of every scalar in a folder's event file: records are a length, a checksum, the data, a checksum."""
    (file,) = folder.iterdir()
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
    expected = [("objective/kl", 4, 1.5), ("policy/held_out_after", 4, 0.25), ("reward/overall_ece", 7, 0.125)]
    until = time.monotonic() + 10  # a thread of the library's own writes
    while list(scalars(tmp_path)) != expected:
        assert time.monotonic() < until, list(scalars(tmp_path))
        time.sleep(0.05)
