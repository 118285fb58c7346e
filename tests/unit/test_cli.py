"""The command: one line and exit status 2 for what the operator has to change, 1 for what cannot be done."""

from pathlib import Path

import pytest

from attune import cli, demo_model
from attune.errors import ConfigError
from attune.registry import Registry


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTUNE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_config_prints_what_holds(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "attune.toml").write_text("[serve]\nport = 8123\n")
    assert cli.main(["config"]) == 0
    assert "port = 8123" in capsys.readouterr().out


def test_an_unknown_setting_is_exit_2(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "attune.toml").write_text("[serve]\nprot = 1\n")
    assert cli.main(["config"]) == 2
    assert "serve.prot: no such setting" in one_line(capsys)


@pytest.mark.parametrize("command", ["serve", "feedback", "learner"])
def test_programs_say_it_too(command: str, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "attune.toml").write_text("[learner]\nthreads = 0\n")
    assert cli.main([command]) == 2
    assert "learner.threads" in one_line(capsys)


def test_versions_promote_and_roll_back(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    registry = Registry(home / "registry")
    for _ in range(2):
        registry.publish("policy", {"x": b""}, parent=0, base_model="m", base_revision="", trained_through=0, report={"kl_to_ref": 1.25})
    assert cli.main(["promote", "1"]) == 0
    assert cli.main(["promote", "2"]) == 0
    assert cli.main(["rollback"]) == 0
    assert cli.main(["versions"]) == 0
    out = capsys.readouterr().out
    assert "version 1 serves again" in out
    assert "rolled_back" in out
    assert cli.main(["promote", "2"]) == 1
    assert "rolled_back" in one_line(capsys)
    assert cli.main(["promote", "9"]) == 1
    assert "no policy version 9" in one_line(capsys)


def test_a_model_that_is_none(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "folder").mkdir()
    for path, said in [("./folder", "lacks config.json"), ("./nowhere", "is not a folder")]:
        (home / "attune.toml").write_text(f"[model]\npath = '{path}'\n")
        assert cli.main(["model", "prepare"]) == 2
        assert said in one_line(capsys)
    (home / "folder" / "config.json").write_text('{"architectures": ["BertModel"]}')
    for name in ("x.safetensors", "tokenizer.json"):
        (home / "folder" / name).write_text("")
    with pytest.raises(ConfigError, match="not a causal language model"):
        demo_model.check_folder(home / "folder")


def test_the_tiny_model_is_one(tiny_model: Path) -> None:
    demo_model.check_folder(tiny_model)


def test_a_prepared_model_is_prepared_once(home: Path) -> None:
    said: list[str] = []
    folder = home / "model"
    folder.mkdir()
    (folder / "prepared.json").write_text(f'{{"source_sha256": "{demo_model.GGUF_SHA256}", "files": {{}}}}')
    demo_model.prepare(folder, said.append)
    assert said == ["model: smollm2-135m-instruct is ready"]
