"""Our PPO on recorded rollouts: `ppo_ours.py FOLDER same|default|looked REPEATS`.

`same`: TRL PPO's layers, epochs, steps, and reference pass. `default`: what runs by default, given serving's reference pass; `looked`:
makes that, too.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch

from attune.config import LearnerSection, ModelSection
from attune.frozen import Answer, FrozenBase, load_base, twin
from learner import ppo
from learner.policy import Policy
from learner.rollout import Rollout

folder, mode, repeats = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
recorded = json.loads((folder / "rollouts.json").read_text())
rollouts = [
    Rollout(
        f"i{i}",
        tuple(g["prompt"]),
        tuple(map(tuple, g["answers"])),
        tuple(map(tuple, g["logprobs"])),
        tuple(map(tuple, g["logprobs"])),
        tuple(g["rewards"]),
        recorded["temperature"],
        0,
    )
    for i, g in enumerate(recorded["groups"])
]
network = load_base(str(folder / "model"), None)
base = FrozenBase(twin(network))
policy = Policy(network, ModelSection(lora_top_layers=1.0) if mode == "same" else ModelSection(), "bench", 1e-5, 0)
steps, epochs = (1, 4) if mode == "same" else (4, 1)
settings = LearnerSection(optimizer_steps=steps, ppo_epochs=epochs, policy_lr=1e-5)
cpu = []
for _ in range(1 + repeats):
    started = time.process_time()
    if mode != "default":
        for rollout in rollouts:
            base.look(rollout.prompt, [Answer(a, True) for a in rollout.answers], rollout.temperature)
    figures = ppo.update(policy, rollouts, settings, live=0)
    assert figures["steps"] == 4, figures
    cpu.append(time.process_time() - started)
print(json.dumps({"cpu_s": cpu[1:], "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
