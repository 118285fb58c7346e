"""Configuration: defaults < file < environment, refused where it is wrong, printed so that it can be read back."""

from pathlib import Path

import pytest

from attune import config
from attune.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "attune.toml"
    file.write_text(text)
    return file


def test_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "[serve]\nport = 8100\nnum_candidates = 2\n")
    loaded = config.load(file, {"ATTUNE_SERVE__PORT": "8200", "ATTUNE_HOME": str(tmp_path / "home")})
    assert (loaded.serve.port, loaded.serve.num_candidates, loaded.serve.host) == (8200, 2, "127.0.0.1")
    assert loaded.home == tmp_path / "home"


def test_what_is_printed_reads_back_as_the_same(tmp_path: Path) -> None:
    loaded = config.load(None, {"ATTUNE_HOME": str(tmp_path), "ATTUNE_MODEL__PATH": 'a "quoted" \\ name,\n\ttwo lines \x7f'})
    assert config.load(write(tmp_path, config.as_toml(loaded)), {}) == loaded


def test_the_environment_names_the_parts_of_a_list_with_commas() -> None:
    given = {"ATTUNE_LEARNER__DEBIAS": "length, format", "ATTUNE_SERVE__ALLOWED_ORIGINS": "http://one.example"}
    loaded = config.load(None, given)
    assert (loaded.learner.debias, loaded.serve.allowed_origins) == (["length", "format"], ["http://one.example"])
    with pytest.raises(ConfigError, match="terms"):
        config.load(None, {"ATTUNE_TERMS__NAME": "x"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serve]\nprot = 1", "serve.prot: no such setting"),
        ("[server]\nport = 1", "server: no such setting"),
        ("[serve]\nport = 99999", "serve.port"),
        ("[serve]\nport = 'x'", "serve.port"),
        ("[learner]\npolicy_lr = -1", "learner.policy_lr"),
        ("port = [", "is not TOML"),
        ("[bus]\nkind = 'kafka'", "bus.bootstrap: name the broker"),
        ("[bus]\nkind = 'kafka'\nbootstrap = 'localhost'", "bus.bootstrap: name the broker as HOST:PORT (got 'localhost')"),
        ("[bus]\nkind = 'kafka'\nbootstrap = 'one:9092, two'", "bus.bootstrap: name the broker as HOST:PORT (got 'one:9092, two')"),
    ],
)
def test_a_mistake_names_the_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(write(tmp_path, text), {})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        config.load(tmp_path / "none.toml", {})


def test_what_is_loaded_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.load(None, {}).serve.port = 1  # type: ignore[misc]


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        config.load(None, {"ATTUNE_HOME": str(tmp_path / "file")})
