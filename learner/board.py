"""TensorBoard scalars of every published version, under the names that TRL logs; steps are version numbers.

`tensorboard --logdir .attune/tensorboard` shows them (TensorBoard itself is not among our dependencies).
"""

import contextlib
from pathlib import Path

import structlog
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from attune.types import Version

log = structlog.get_logger()

NAMES = {
    "kl_to_ref": "objective/kl",
    "score_mean": "objective/scores",
    "entropy": "policy/entropy_avg",
    "approx_kl": "policy/approxkl_avg",
    "clipfrac": "policy/clipfrac_avg",
    "policy_loss": "loss/policy_avg",
    "value_loss": "loss/value_avg",
    "importance_weight": "val/ratio",
}


class Board:
    """One learner's event files, written at once: the library's own thread ends on a full disk, and whoever writes then waits for ever."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: EventsWriter | None = None

    def show(self, version: Version) -> None:
        """Write every number of a version's report; what cannot be written is lost, and the next version begins another file."""
        numbers = {name: value for name, value in version.report.items() if isinstance(value, int | float) and not isinstance(value, bool)}
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = EventsWriter(str(self._folder / "events"), f".{version.kind}-{version.number}")
            for name, value in numbers.items():
                summary = scalar(NAMES.get(name, f"{version.kind}/{name}"), float(value))
                self._file.write_event(Event(wall_time=version.created_at, step=version.number, summary=summary))
            self._file.flush()
        except OSError as error:
            self.close()
            log.warning("scalars_lost", kind=version.kind, version=version.number, reason=str(error))

    def close(self) -> None:
        """End the file; the next version begins another."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
