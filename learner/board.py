"""TensorBoard scalars of every published version, under the names that TRL logs; steps are version numbers.

`tensorboard --logdir .attune/tensorboard` shows them (TensorBoard itself is not among our dependencies).
"""

from pathlib import Path

from tensorboardX import SummaryWriter

from attune.types import Version

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


FLUSH_S = 1
"""A thread of the library's own writes; its `flush` does not wait for what is still queued."""


class Board:
    """One learner's event files."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(logdir=str(folder), flush_secs=FLUSH_S)

    def show(self, version: Version) -> None:
        """Write every number of a version's report."""
        for name, value in version.report.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar(NAMES.get(name, f"{version.kind}/{name}"), float(value), version.number)
