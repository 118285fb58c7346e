"""A utility of its own for every aspect that people vote on: as for the answer as a whole, but over the frozen features alone.

Fitted anew when a vote on the aspect came, changed or went; else taken over from the version before.
"""

from collections.abc import Mapping
from dataclasses import replace

from attune.config import LearnerSection
from attune.reward import RewardModel
from attune.style import NUM_LOOKS
from attune.types import Version
from learner import reward_trainer
from learner.data import Journal
from learner.reward_trainer import Judged, Typical


def learned(
    journal: Journal,
    weights: Mapping[str, float],
    typical: Typical,
    model: RewardModel,
    before: Version | None,
    settings: LearnerSection,
    feature_width: int,
) -> tuple[dict[str, RewardModel], dict[str, float]]:
    """Return the utility of every objective with a vote in force, and how many votes each stands on (`objective_<name>_votes`).

    `model` is the version `before`, the last one.
    """
    width, through = NUM_LOOKS + feature_width, int(before.report.get("taught_through", 0)) if before else 0
    models, report = dict[str, RewardModel](), dict[str, float]()
    bare = Typical(typical.features_ND[:, :width], typical.texts)
    for name, position in journal.objective_taught.items():
        judged = journal.judged_answers({}, weights, name)
        if not judged.signals:
            continue
        known = model.objectives.get(name)
        if known is None or position > through:
            known, _ = reward_trainer.fit(_bare(judged, width), bare, settings.pessimism, settings.seed + position)
        models[name] = known
        report[f"objective_{name}_votes"] = float(len(judged.signals))
    return models, report


def _bare(judged: Judged, width: int) -> Judged:
    return replace(judged, features_MD=judged.features_MD[:, :width])
