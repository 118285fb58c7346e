"""TRL's trainers without a critic on recorded rollouts: `online_trl.py FOLDER grpo|rloo|rloo-4 all|top float32|bfloat16 BATCH REPEATS`.

`grpo`: one epoch, beta 0, so no reference pass and no log-probs of its own. `rloo`: one epoch, beta 0; it makes its own log-probs.
`rloo-4`: four epochs and the reference pass, which is TRL PPO's work without the value network. `top`: LoRA on our default layers alone.
"""

import json
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

folder, kind, layers, dtype = Path(sys.argv[1]), sys.argv[2], sys.argv[3], getattr(torch, sys.argv[4])
batch, repeats = int(sys.argv[5]), int(sys.argv[6])
torch.set_num_threads(1)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # all linear ones but the head
recorded = json.loads((folder / "rollouts.json").read_text())
where = {"layers_to_transform": recorded["top_layers"]} if layers == "top" else {}
groups, size = recorded["groups"], len(recorded["groups"][0]["answers"])
rows, epochs = len(groups) * size, 4 if kind == "rloo-4" else 1
tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
if tokenizer.pad_token_id is None:
    tokenizer.pad_token_id = 0


def answers(prompts):
    """Return the columns of a batch: each group's answers in turn. A prompt is its group's number."""
    picked = [int(p) for p in prompts]
    own = dict.fromkeys(picked, 0)
    out = {"prompt_ids": [], "completion_ids": [], "logprobs": []}
    for g in picked:
        out["prompt_ids"].append(groups[g]["prompt"])
        out["completion_ids"].append(groups[g]["answers"][own[g] % size])
        out["logprobs"].append([[x] for x in groups[g]["logprobs"][own[g] % size]])
        own[g] += 1
    return out


def reward(prompts, completions, completion_ids, **more):
    """Return the recorded reward of each answer."""
    return [groups[int(p)]["rewards"][groups[int(p)]["answers"].index(a)] for p, a in zip(prompts, completion_ids, strict=True)]


class RecordedRLOO(RLOOTrainer):
    """RLOO that gets its answers from the record; GRPO has a hook for that."""

    def _generate(self, prompts):
        out = answers(prompts)
        return out["prompt_ids"], out["completion_ids"], [""] * len(prompts)


class Clock(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self):
        self.cpu = []

    def on_step_end(self, *args, **kwargs):
        self.cpu.append(time.process_time())


clock, shared = Clock(), {
    "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": batch, "gradient_accumulation_steps": rows // batch,
    "num_generations": size, "steps_per_generation": rows // batch, "num_iterations": epochs, "temperature": recorded["temperature"],
    "max_completion_length": max(len(a) for g in groups for a in g["answers"]), "beta": 0.05 if epochs > 1 else 0.0, "learning_rate": 1e-5,
    "max_steps": (1 + repeats) * epochs, "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no",
    "logging_strategy": "no", "gradient_checkpointing": False, "shuffle_dataset": False,
}  # fmt: skip
common = {
    "model": AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype), "reward_funcs": reward, "processing_class": tokenizer,
    "train_dataset": Dataset.from_dict({"prompt": [str(g) for g in range(len(groups))] * (1 + repeats)}), "callbacks": [clock],
    "peft_config": LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM", **where),
}  # fmt: skip
if kind == "grpo":
    trainer = GRPOTrainer(args=GRPOConfig(**shared), rollout_func=lambda prompts, _: answers(prompts), **common)
else:
    trainer = RecordedRLOO(args=RLOOConfig(**shared), **common)
trainer.train()
ends = clock.cpu[epochs - 1 :: epochs]
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"cpu_s": [b - a for a, b in pairwise(ends)], "peak_mb": peak_mb}))
