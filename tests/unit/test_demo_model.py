"""What can be loaded is told from what cannot before any program starts: folders, hub ids, and the demo model's own folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attune import cli, demo_model
from attune.config import DEMO_MODEL
from attune.errors import ConfigError


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """Return a real model's folder that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "folder"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_real_model_is_one(folder: Path) -> None:
    demo_model.check_folder(folder)


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ("config.json", "lacks config.json"),
        ("model.safetensors", "lacks weights as"),
        ("tokenizer.json", "lacks a tokenizer"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_what_is_missing_is_named(folder: Path, removed: str, said: str) -> None:
    (folder / removed).unlink()
    with pytest.raises(ConfigError, match=said):
        demo_model.check_folder(folder)


def test_another_kind_of_model_is_none(folder: Path) -> None:
    edit(folder / "config.json", architectures=["BertModel"])
    with pytest.raises(ConfigError, match=r"BertModel.*not a causal language model"):
        demo_model.check_folder(folder)
    edit(folder / "config.json", architectures=None)
    with pytest.raises(ConfigError, match="not a causal language model"):
        demo_model.check_folder(folder)


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "garbage"])
def test_weights_that_are_not_whole_are_told_by_their_header(folder: Path, damage: str) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes({"cut": data[:-1], "longer": data + b"\0", "empty": b"", "garbage": os.urandom(1000)}[damage])
    with pytest.raises(ConfigError, match=r"model\.safetensors is cut off"):
        demo_model.check_folder(folder)


def test_the_command_says_it_with_exit_2(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for path, said in [("./nowhere", "is not a folder"), (str(folder), "lacks config.json")]:
        (folder / "config.json").unlink(missing_ok=True)
        (folder.parent / "attune.toml").write_text(f"[model]\npath = '{path}'\n")
        for command in (["model", "prepare"], ["serve"], ["learner"]):
            assert cli.main(command) == 2
            error = capsys.readouterr().err
            assert said in error
            assert error.count("\n") == 1


def test_a_hub_id_that_cannot_be_fetched_is_exit_2(tmp_path: Path) -> None:
    settings = {"ATTUNE_MODEL__PATH": "nobody/nothing", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "ATTUNE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "attune", "up", "--port", "0"]
    done = subprocess.run(command, env={**os.environ, **settings}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nobody/nothing is neither a folder nor a model that can be fetched" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "logs").exists(), "programs were started"


def test_another_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="sha256 differs"):
        demo_model.prepare(tmp_path / "model", [].append, source=tmp_path / "other.gguf")
    assert not (tmp_path / "model").exists()


def test_too_little_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MiB of disk space"):
        demo_model.prepare(tmp_path / "models" / "model", [].append, needed_bytes=1 << 60)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_model_is_ready_for_chat_and_for_ppo(demo_model: Path) -> None:
    from safetensors import safe_open
    from transformers import AutoTokenizer

    with safe_open(demo_model / "model.safetensors", "pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 (not a mapping)
    assert kinds == {"BF16"}
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    generation = json.loads((demo_model / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id
    assert (generation["temperature"], generation["top_p"], generation["top_k"]) == (0.7, 1.0, 0)


def test_what_is_prepared_is_known_by_a_look_and_damage_is_seen(demo_model: Path, tmp_path: Path) -> None:
    from attune.demo_model import is_prepared, prepare

    said: list[str] = []
    prepare(demo_model, said.append)
    assert said == [f"model: {DEMO_MODEL} is ready"]
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in demo_model.iterdir():
        (copy / file.name).symlink_to(file)
    assert is_prepared(copy)
    (copy / "tokenizer.json").unlink()
    assert not is_prepared(copy)
    (copy / "tokenizer.json").symlink_to(demo_model / "tokenizer.json")
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").write_bytes((demo_model / "model.safetensors").read_bytes()[:-1])
    assert not is_prepared(copy)
