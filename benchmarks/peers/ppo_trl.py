"""TRL's PPO on recorded rollouts: `ppo_trl.py FOLDER all|top float32|bfloat16 BATCH REPEATS`.

Generation and the reward model's pass are left out (the answers and rewards are the recorded ones): its log-probs, reference pass, values,
epochs and steps are its own.
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
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

folder, layers, dtype, batch, repeats = Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
torch.set_num_threads(1)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # all linear ones but the head
recorded = json.loads((folder / "rollouts.json").read_text())
where = {"layers_to_transform": recorded["top_layers"]} if layers == "top" else {}
rows = [(g["prompt"], a, r) for g in recorded["groups"] for a, r in zip(g["answers"], g["rewards"], strict=True)]
longest = max(len(a) for _, a, _ in rows)
tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
    tokenizer.pad_token_id = 0
pad = tokenizer.pad_token_id
answers = {tuple(g["prompt"]): [a + [pad] * (longest - len(a)) for a in g["answers"]] for g in recorded["groups"]}
scores = {(*p, *a, *[pad] * (longest - len(a))): r for p, a, r in rows}
marks = []


def recorded_generation(model, queries, local_batch, pad_token_id, generation_config):
    marks.append(time.process_time())
    given = [tuple(query) for query in queries.tolist()]
    responses = [answers[query][given[:n].count(query) % len(answers[query])] for n, query in enumerate(given)]
    both = torch.cat([queries, torch.tensor(responses)], 1)
    logits = []
    for start in range(0, len(both), local_batch):
        out = ppo_trainer.forward(model, both[start : start + local_batch], pad_token_id)
        logits.append(out.logits[:, queries.shape[1] - 1 : -1].float() / recorded["temperature"])
    logits = torch.cat(logits)
    marks.append(time.process_time())
    return both, logits


def recorded_reward(model, query_responses, pad_token_id, context_length):
    if model is reward_model:
        return None, torch.tensor([scores[tuple(row)] for row in query_responses.tolist()]), None
    return own_reward(model, query_responses, pad_token_id, context_length)


own_reward = ppo_trainer.get_reward
ppo_trainer.get_reward, ppo_trainer.batch_generation = recorded_reward, recorded_generation
policy = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)
value_model = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1, dtype=dtype)
reward_model = torch.nn.Linear(1, 1)
arguments = PPOConfig(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, gradient_accumulation_steps=len(rows) // batch, num_mini_batches=1,
    num_ppo_epochs=4, local_rollout_forward_batch_size=batch, response_length=longest, temperature=recorded["temperature"],
    total_episodes=len(rows) * (1 + repeats), learning_rate=1e-5, report_to="none", use_cpu=True, bf16=False, num_sample_generations=0,
    save_strategy="no", eval_strategy="no", logging_strategy="no", gradient_checkpointing=False,
    dataloader_drop_last=False,
)  # fmt: skip
data = Dataset.from_dict({"input_ids": [p for p, _, _ in rows] * (1 + repeats)})
trainer = PPOTrainer(
    args=arguments, processing_class=tokenizer, model=policy, ref_model=None, reward_model=reward_model, value_model=value_model,
    train_dataset=data, eval_dataset=data.select(range(len(rows))),
    peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM", **where),
)  # fmt: skip
trainer.train()
marks.append(time.process_time())
cpu = [after - before for before, after in zip(marks[1::2], marks[2::2], strict=True)]
print(json.dumps({"cpu_s": cpu[1:], "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
