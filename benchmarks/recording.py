"""Recorded rollouts that every trainer gets alike: prompts, sampled answers, log-probs, rewards; and the models they were drawn from."""

import json
import shutil
from pathlib import Path
from random import Random

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from attune import config, demo_model
from attune.frozen import Answer, FrozenBase, load_base
from attune.progress import Progress

GROUPS, ANSWERS, PROMPT_TOKENS, ANSWER_TOKENS = 4, 4, 128, 64
TEMPERATURE = 0.7


def record(folder: Path, *, small: bool) -> None:
    """Write `model/` and `rollouts.json` into a folder: 16 rollouts in 4 groups, prompts of 128 tokens, answers of at most 64.

    `small` takes a model of 15M random weights, else it is the demo model; both have the same tokenizer.
    """
    shared = config.load()
    demo_model.ensure(shared, Progress().doing)
    folder.mkdir(parents=True, exist_ok=True)
    if small:
        _small_model(Path(shared.model_folder), folder / "model")
    else:
        shutil.copytree(shared.model_folder, folder / "model", dirs_exist_ok=True)
    base = FrozenBase(load_base(str(folder / "model"), None))
    random, generator = Random(0), torch.Generator().manual_seed(0)
    vocabulary = base.network.get_input_embeddings().weight.shape[0]
    groups = []
    for _ in range(GROUPS):
        prompt = [random.randrange(100, vocabulary) for _ in range(PROMPT_TOKENS)]
        answers = [_sample(base, prompt, random.randrange(ANSWER_TOKENS // 2, ANSWER_TOKENS + 1), generator) for _ in range(ANSWERS)]
        looks = base.look(prompt, [Answer(a, True) for a in answers], TEMPERATURE)
        groups.append(
            {
                "prompt": prompt,
                "answers": answers,
                "logprobs": [list(look.ref_logprobs) for look in looks],
                "rewards": [random.gauss(0.0, 1.0) for _ in answers],
            }
        )
    recorded = {"temperature": TEMPERATURE, "top_layers": top_layers(folder / "model"), "groups": groups}
    (folder / "rollouts.json").write_text(json.dumps(recorded))


def top_layers(model: Path) -> list[int]:
    """Return the layers of a model that carry an adapter by default."""
    layers = int(json.loads((model / "config.json").read_text())["num_hidden_layers"])
    return list(range(layers - round(config.ModelSection().lora_top_layers * layers), layers))


def _sample(base: FrozenBase, prompt: list[int], length: int, generator: torch.Generator) -> list[int]:
    ids, past = torch.tensor([prompt]), None
    made: list[int] = []
    with torch.inference_mode():
        for _ in range(length):
            out = base.network(input_ids=ids, past_key_values=past, use_cache=True)
            past = out.past_key_values
            probabilities_V = (out.logits[0, -1].float() / TEMPERATURE).softmax(-1)
            probabilities_V[:3] = 0.0  # the end is set by `length`
            made.append(int(torch.multinomial(probabilities_V, 1, generator=generator)))
            ids = torch.tensor([[made[-1]]])
    return made


def _small_model(tokenizer: Path, folder: Path) -> None:
    torch.manual_seed(0)
    tokens = AutoTokenizer.from_pretrained(tokenizer)
    shape = LlamaConfig(
        vocab_size=49152, hidden_size=192, intermediate_size=576, num_hidden_layers=12, num_attention_heads=6, num_key_value_heads=3,
        max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    tokens.save_pretrained(folder)
