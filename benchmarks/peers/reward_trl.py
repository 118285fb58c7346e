"""TRL's RewardTrainer on recorded pairs: `reward_trl.py FOLDER all|top float32|bfloat16 BATCH`. `top`: LoRA on our trunk's layers alone."""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer

folder, layers, dtype, batch = Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
recorded = json.loads((folder / "pairs.json").read_text())
tokenizer = AutoTokenizer.from_pretrained(folder / "model")
if tokenizer.pad_token_id is None:
    tokenizer.pad_token_id = 0
model = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1, dtype=dtype)
model.config.pad_token_id = tokenizer.pad_token_id
where = {"layers_to_transform": list(range(recorded["first"], recorded["last"]))} if layers == "top" else {}
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Clock(TrainerCallback):
    def __init__(self):
        self.cpu = []

    def on_epoch_begin(self, *args, **kwargs):
        self.cpu.append(time.process_time())

    def on_train_end(self, *args, **kwargs):
        self.cpu.append(time.process_time())


clock, pairs = Clock(), recorded["pairs"][: recorded["taught"]]
rows = [{"chosen_ids": pair["prompt"] + pair["chosen"], "rejected_ids": pair["prompt"] + pair["rejected"]} for pair in pairs]
arguments = RewardConfig(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, gradient_accumulation_steps=max(1, 8 // batch),
    num_train_epochs=recorded["epochs"], learning_rate=3e-4, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
    logging_strategy="no", gradient_checkpointing=False, disable_tqdm=True,
)  # fmt: skip
trainer = RewardTrainer(
    model=model, args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_list(rows),
    peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="SEQ_CLS", **where), callbacks=[clock],
)  # fmt: skip
trainer.train()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"cpu_s": clock.cpu[-1] - clock.cpu[0], "peak_mb": peak}))
