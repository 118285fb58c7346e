"""Our trunk on recorded pairs: `reward_ours.py FOLDER`: a whole fit, and apart from it the answers' features, which serving makes."""

import json
import resource
import sys
import time
from pathlib import Path

import torch

from attune.frozen import Answer, FrozenBase, load_base
from attune.types import Candidate, Interaction, Kind, Preference, Sampling
from learner import trunk_trainer
from learner.trunk_trainer import Asked, Lesson

folder = Path(sys.argv[1])
torch.set_num_threads(1)
recorded = json.loads((folder / "pairs.json").read_text())
base = FrozenBase(load_base(str(folder / "model"), None))


def asked(number: int, pair: dict[str, list[int]]) -> Asked:
    """Return one request with its two answers and the features that serving has made."""
    answers = [tuple(pair["chosen"]), tuple(pair["rejected"])]
    features = [look.features for look in base.look(pair["prompt"], [Answer(a, True) for a in answers], 1.0)]
    candidates = tuple(Candidate(k, "a", a, (), "stop", features=f) for k, (a, f) in enumerate(zip(answers, features, strict=True)))
    made = Interaction(f"i{number}", 0.0, (), tuple(pair["prompt"]), Sampling(1.0), candidates, (0,), (1.0,), 0, 0, "bench")
    return Asked(made, answers, features)


looking = time.process_time()
requests = [asked(number, pair) for number, pair in enumerate(recorded["pairs"])]
looks_cpu_s = time.process_time() - looking
signals = [Preference(f"f{n}", a.interaction.id, (0, 1), False, 1.0, Kind.COMPARISON, None) for n, a in enumerate(requests)]
lesson = Lesson(signals, {a.interaction.id: a for a in requests}, requests[:8])
started = time.process_time()
fitted = trunk_trainer.fit(base, lesson, 0)
cpu_s = time.process_time() - started
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"cpu_s": cpu_s, "looks_cpu_s": looks_cpu_s, "peak_mb": peak_mb, "first": fitted.trunk.first}))
