"""Whether a learner's cycle stays as fast when the store has grown: `python -m benchmarks.growth`.

Fills two stores, of 1,000 and of 100,000 votes, with interactions of a small model, starts a learner on each, and times what a cycle does
when eight fresh votes come: reading, the reward fit, and one policy update. Medians over cycles; the start of the learner is timed apart.
"""

import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from transformers import AutoTokenizer

from attune.config import Config, LearnerSection, ModelSection
from attune.frozen import Answer, FrozenBase, load_base, twin
from attune.registry import Registry
from attune.types import Candidate, Feedback, Interaction, Kind, Sampling
from benchmarks import common, recording
from feedback.store import Store
from learner.cycle import Cycle
from learner.policy import Policy

SIZES = (1_000, 100_000)
CYCLES, FRESH = 5, 8
LENGTHS = (8, 16, 24, 32)


def main() -> int:
    """Measure both sizes and print their ratio."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="attune-bench-") as folder:
        recording.record(Path(folder), small=True)
        for size in SIZES:
            start_s, cycle_s = measure(Path(folder) / "model", Path(folder) / str(size), size)
            figures |= {f"start_{size}_s": start_s, f"cycle_{size}_s": cycle_s}
    figures["cycle_growth"] = figures[f"cycle_{SIZES[1]}_s"] / figures[f"cycle_{SIZES[0]}_s"]
    common.report("growth", common.versions("torch", "sqlalchemy"), figures)
    return 0


def measure(model: Path, home: Path, size: int) -> tuple[float, float]:
    """Return how long a learner takes to start on a store of so many votes, and the median time of a cycle."""
    home.mkdir()
    config = Config(home=home, model=ModelSection(path=str(model)), learner=LearnerSection(min_votes_per_update=FRESH, top_up_groups=0))
    store, network = Store.open(config.store_url), load_base(str(model), None)
    base = FrozenBase(twin(network))
    people = People(base)
    for start in range(0, size, 500):
        store.write(people.votes(min(500, size - start)))
    policy = Policy(network, config.model, config.model_identity, config.learner.policy_lr, 0)
    stop, started = threading.Event(), time.perf_counter()
    cycle = Cycle(config, store, Registry(config.registry_folder), base, policy, AutoTokenizer.from_pretrained(model), stop)
    cycle.once()
    start_s = time.perf_counter() - started
    times = []
    for _ in range(CYCLES):
        store.write(people.votes(FRESH, version=cycle.at.policy))
        started = time.perf_counter()
        cycle.once()
        times.append(time.perf_counter() - started)
    stop.set()
    cycle.refit.wait()  # or the trunk that it began would take its time from the next learner's
    store.close()
    return start_s, statistics.median(times)


class People:
    """Votes on interactions whose candidates differ in length; a few hundred real ones, copied under new names."""

    def __init__(self, base: FrozenBase) -> None:
        self.random, self.count = Random(0), 0
        self.samples = [self._interaction(base) for _ in range(200)]

    def votes(self, number: int, version: int = 0) -> list[Interaction | Feedback]:
        """Return so many interactions, each followed by a vote on it."""
        made: list[Interaction | Feedback] = []
        for _ in range(number):
            self.count += 1
            name, at = f"i{self.count}", float(self.count)
            made.append(replace(self.random.choice(self.samples), id=name, created_at=at, policy_version=version))
            made.append(
                Feedback(
                    f"f{name}", f"e{name}", name, Kind.RANKING, self.random.sample(range(4), 4), 0, at, None, f"user-{self.count % 50}"
                )
            )
        return made

    def _interaction(self, base: FrozenBase) -> Interaction:
        prompt = tuple(self.random.randrange(100, 40_000) for _ in range(24))
        answers = [tuple(self.random.randrange(100, 40_000) for _ in range(length)) for length in LENGTHS]
        looks = base.look(prompt, [Answer(a, True) for a in answers], 0.7)
        candidates = tuple(
            v.at(Candidate(k, f"{k} " * len(a), a, v.ref_logprobs, "stop")) for k, (a, v) in enumerate(zip(answers, looks, strict=True))
        )
        messages = ({"role": "user", "content": f"question {self.random.random()}"},)
        return Interaction("i", 0.0, messages, prompt, Sampling(0.7), candidates, (0, 1, 2, 3), (1.0,) * 4, 0, 0, "template-bench")


if __name__ == "__main__":
    raise SystemExit(main())
