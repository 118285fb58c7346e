"""The command: one line and exit status 2 for what the operator has to change, 1 for what cannot be done."""

from pathlib import Path

import pytest

from attune import cli
from attune.registry import Registry
from attune.types import State


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


def test_versions_say_why_and_what_for(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    registry = Registry(home / "registry")
    report = {"kl_after": 1.25, "held_out_after": -0.5}
    for _ in range(2):
        registry.publish("policy", {"x": b""}, parent=0, base_model="m", base_revision="", trained_through=41, report=report)
    registry.move("policy", 1, State.REJECTED, by="gate", reason="entropy fell")
    assert cli.main(["versions"]) == 0
    first, second = [line for line in capsys.readouterr().out.splitlines() if "policy" in line]
    assert "rejected" in first
    assert "entropy fell" in first
    assert all(part in second for part in ("published", " 41 ", "reward -0.50, KL 1.25"))


def test_a_damaged_version_is_not_promoted(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    registry = Registry(home / "registry")
    version = registry.publish("policy", {"x": b"weights"}, parent=0, base_model="m", base_revision="", trained_through=0, report={})
    (registry.folder("policy", version.number) / "x").write_bytes(b"weight")
    assert cli.main(["promote", "1"]) == 1
    assert "sha256 differs" in one_line(capsys)
    assert registry.champion("policy") == 0
