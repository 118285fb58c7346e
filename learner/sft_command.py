"""`attune sft --data demonstrations.jsonl`: demonstrations in, a policy version like any other out.

Each line is `{"prompt": "..." or "messages": [...], "completion": "..."}`. One in ten is held out; the version goes live if those became
more likely. A learner that runs beside it goes on from there, and keeps a few of them in every update.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from attune import config as configuration
from attune.arguments import count, share
from attune.config import Config
from attune.errors import AttuneError, ConfigError
from attune.frozen import load_base
from attune.packing import MAX_ROW_TOKENS
from attune.progress import Progress
from attune.prompt import render
from attune.registry import Registry
from attune.telemetry import setup_logging
from attune.types import TAUGHT, State
from learner import publish, sft, turn
from learner.policy import Policy
from learner.sft import Example

HOLD_OUT_ONE_IN = 10
NUM_PROBES = 3


def main(argv: list[str] | None = None) -> int:
    """Train on the file and publish; 0: live, 1: refused by its held-out examples, 2: something needs a change."""
    parser = argparse.ArgumentParser(prog="attune sft", description="Teach the policy from demonstrations.")
    parser.add_argument("--config", type=Path, help="configuration file (TOML)")
    parser.add_argument("--data", type=Path, required=True, help='JSON lines: {"prompt" or "messages", "completion"}')
    parser.add_argument("--epochs", type=count, default=2)
    parser.add_argument("--batch", type=count, default=4, help="demonstrations per optimizer step (default 4)")
    parser.add_argument("--learning-rate", type=_rate, default=2e-4)
    args = parser.parse_args(argv)
    setup_logging("learner")
    try:
        config = configuration.load(args.config)
        torch.set_num_threads(max(config.learner.threads, 2))
        with turn.taken(config.home, lambda: Progress(sys.stderr).note("waiting for the policy update that is under way")):
            return run(config, args.data, epochs=args.epochs, batch=args.batch, learning_rate=args.learning_rate)
    except AttuneError as error:
        print(f"attune sft: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def run(config: Config, data: Path, *, epochs: int, batch: int, learning_rate: float) -> int:
    """Publish a version taught from the file, and make it champion if it passes; return the exit status."""
    registry = Registry(config.registry_folder)
    registry.check_base(config.model_identity, config.model_revision)
    tokenizer = AutoTokenizer.from_pretrained(config.model_folder, revision=config.model.revision)
    examples = read(data, tokenizer, min(config.model.max_context_tokens, MAX_ROW_TOKENS))
    held = examples[::HOLD_OUT_ONE_IN] if len(examples) > 1 else examples
    taught = [example for i, example in enumerate(examples) if i % HOLD_OUT_ONE_IN or len(examples) == 1]
    progress, started = Progress(sys.stderr), time.monotonic()
    progress.note(f"teaching {len(taught)} demonstrations, {len(held)} held out")
    live = registry.champion("policy")
    policy = Policy(
        load_base(config.model_folder, config.model.revision), config.model, config.model_identity, learning_rate, config.learner.seed
    )
    if live:
        policy.load_adapter(registry.folder("policy", live))
    probes = [(example.prompt, example.answer[: publish.FINGERPRINT_TOKENS]) for example in held[:NUM_PROBES]]
    parent = publish.probe_logprobs(policy, probes)
    before = sft.held_out_nll(policy, held)
    figures = sft.train(policy, taught, epochs=epochs, batch=batch, grad_clip=config.learner.grad_clip, seed=config.learner.seed)
    after = sft.held_out_nll(policy, held)
    report = figures | {"stage": "sft", "held_out_nll_before": before, "held_out_nll_after": after, "seconds": time.monotonic() - started}
    known = registry.version("policy", live) if live else None
    files = publish.files(policy, probes, parent, report) | {TAUGHT: sft.to_file(taught)}
    version = registry.publish(
        "policy", files, parent=live, base_model=config.model_identity,
        base_revision=config.model_revision, trained_through=known.trained_through if known else 0, report=report,
        reward_version=known.reward_version if known else 0,
    )  # fmt: skip
    reason = ""
    if not after < before:
        reason = f"held-out demonstrations became no likelier: {before:.3f} to {after:.3f} nats per token"
    elif registry.champion("policy") != live:
        reason = f"policy {registry.champion('policy')} went live meanwhile, and this one was made from {live}: run it again"
    if reason:
        registry.move("policy", version.number, State.REJECTED, by="sft", reason=reason)
        print(f"policy {version.number} is refused: {reason}")
        return 1
    registry.promote("policy", version.number, by="sft", reason="held-out demonstrations became likelier")
    print(f"policy {version.number} is champion: held-out demonstrations went from {before:.3f} to {after:.3f} nats per token")
    return 0


def read(data: Path, tokenizer: Any, max_tokens: int) -> list[Example]:
    """Return the demonstrations of a file as token ids; raises `ConfigError` that names the first line that is none."""
    try:
        lines = data.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {data}: {error}") from error
    examples = [_example(line, f"{data}:{number}", tokenizer) for number, line in enumerate(lines, start=1) if line.strip()]
    if not examples:
        raise ConfigError(f"{data} holds no demonstration")
    fitting = [example for example in examples if len(example.prompt) + len(example.answer) <= max_tokens]
    if len(fitting) < len(examples):
        raise ConfigError(
            f"{data}: {len(examples) - len(fitting)} demonstrations exceed model.max_context_tokens ({max_tokens}, and never more than "
            f"{MAX_ROW_TOKENS}, the longest row that is trained on); shorten them"
        )
    return fitting


def _example(line: str, where: str, tokenizer: Any) -> Example:
    try:
        said = json.loads(line)
        messages: Sequence[Any] = said["messages"] if "messages" in said else [{"role": "user", "content": said["prompt"]}]
        completion = said["completion"]
        if not isinstance(completion, str) or not completion.strip():
            raise ValueError("the completion is empty")
        prompt = render(tokenizer, messages)
    except KeyError as error:
        raise ConfigError(f"{where}: {error} is missing; a line needs prompt or messages, and completion") from error
    except Exception as error:  # chat templates raise whatever they like
        raise ConfigError(f"{where} is no demonstration: {error}") from error
    return Example(prompt, sft.answer_ids(tokenizer, completion.strip()))


def _rate(text: str) -> float:
    rate = share(text)
    if rate in (0.0, 1.0):
        raise argparse.ArgumentTypeError("must lie between 0 and 1, and be neither")
    return rate


if __name__ == "__main__":
    raise SystemExit(main())
