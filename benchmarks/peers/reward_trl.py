"""TRL's RewardTrainer on recorded pairs: `reward_trl.py FOLDER all|top|cut float32|bfloat16 BATCH STEPS`, each step on 8 pairs.

`top`: LoRA on our trunk's layers alone; `cut`: so, too, and the model ends where our trunk does.
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
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer

folder, layers, dtype = Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3])
batch, steps = int(sys.argv[4]), int(sys.argv[5])
torch.set_num_threads(1)
recorded = json.loads((folder / "pairs.json").read_text())
tokenizer = AutoTokenizer.from_pretrained(folder / "model")
if tokenizer.pad_token_id is None:
    tokenizer.pad_token_id = 0
ends = {"num_hidden_layers": recorded["last"]} if layers == "cut" else {}
model = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1, dtype=dtype, **ends)
model.config.pad_token_id = tokenizer.pad_token_id
where = {"layers_to_transform": list(range(recorded["first"], recorded["last"]))} if layers != "all" else {}
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Clock(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self):
        self.cpu = []

    def on_step_end(self, *args, **kwargs):
        self.cpu.append(time.process_time())


clock, pairs = Clock(), recorded["pairs"][: recorded["taught"]]
rows = [{"chosen_ids": pair["prompt"] + pair["chosen"], "rejected_ids": pair["prompt"] + pair["rejected"]} for pair in pairs]
arguments = RewardConfig(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch,
    max_steps=steps, learning_rate=3e-4, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
    logging_strategy="no", gradient_checkpointing=False, disable_tqdm=True,
)  # fmt: skip
trainer = RewardTrainer(
    model=model, args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_list(rows),
    peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="SEQ_CLS", **where), callbacks=[clock],
)  # fmt: skip
trainer.train()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"cpu_s": [b - a for a, b in pairwise(clock.cpu)], "peak_mb": peak}))
