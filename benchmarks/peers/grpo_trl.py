"""TRL's GRPO on recorded rollouts: `grpo_trl.py FOLDER all|top float32|bfloat16 BATCH REPEATS`.

`top`: LoRA on our default layers alone. One epoch, beta 0: no reference pass, no critic.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

folder, layers, dtype, batch, repeats = Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
torch.set_num_threads(1)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # all linear ones but the head
recorded = json.loads((folder / "rollouts.json").read_text())
where = {"layers_to_transform": recorded["top_layers"]} if layers == "top" else {}
groups, size = recorded["groups"], len(recorded["groups"][0]["answers"])
rows = len(groups) * size
tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
if tokenizer.pad_token_id is None:
    tokenizer.pad_token_id = 0


def answers(prompts, trainer):
    picked = [int(str(p)) for p in prompts]
    own = dict.fromkeys(picked, 0)
    out = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "mark": []}
    for g in picked:
        out["prompt_ids"].append(groups[g]["prompt"])
        out["completion_ids"].append(groups[g]["answers"][own[g] % size])
        out["logprobs"].append([[x] for x in groups[g]["logprobs"][own[g] % size]])
        out["mark"].append(groups[g]["rewards"][own[g] % size])
        own[g] += 1
    return out


def reward(prompts, completions, mark, **more):
    return list(mark)


class Clock(TrainerCallback):
    def __init__(self):
        self.cpu, self.wall = [], []

    def on_step_end(self, *args, **kwargs):
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())


clock = Clock()
arguments = GRPOConfig(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, gradient_accumulation_steps=rows // batch, num_generations=size,
    steps_per_generation=rows // batch, max_completion_length=max(len(a) for g in groups for a in g["answers"]), beta=0.0, num_iterations=1,
    temperature=recorded["temperature"], learning_rate=1e-5, max_steps=2 + repeats, report_to="none", use_cpu=True, bf16=False,
    save_strategy="no", logging_strategy="no", gradient_checkpointing=False, shuffle_dataset=False,
)  # fmt: skip
trainer = GRPOTrainer(
    model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype), reward_funcs=reward, args=arguments,
    train_dataset=Dataset.from_dict({"prompt": [str(g) for g in range(len(groups))] * (2 + repeats)}), processing_class=tokenizer,
    peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM", **where),
    rollout_func=answers, callbacks=[clock],
)  # fmt: skip
trainer.train()
cpu = [b - a for a, b in zip(clock.cpu[1:], clock.cpu[2:], strict=False)]
wall = [b - a for a, b in zip(clock.wall[1:], clock.wall[2:], strict=False)]
print(json.dumps({"cpu_s": cpu, "wall_s": wall, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
