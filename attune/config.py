"""The whole configuration: one TOML file, one section per program plus shared ones, frozen and checked once at the entry.

Defaults < file < environment (`ATTUNE_SERVE__PORT=8010` sets `port` in `[serve]`). Unknown keys are refused. Of secrets there
is one at most, the password in `store.url`.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from attune.errors import ConfigError
from attune.files import fingerprint
from attune.types import OVERALL

DEMO_MODEL = "smollm2-135m-instruct"

Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(_Section):
    """Which language model is served and learned."""

    path: str = DEMO_MODEL
    """`smollm2-135m-instruct` (prepared from an installed package), a folder, or a hub id."""
    revision: str | None = None
    max_context_tokens: Count = 2048
    lora_rank: Annotated[int, Field(ge=1, le=512)] = 16
    lora_alpha: Count = 32
    lora_top_layers: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the layers, from the top, that carry an adapter."""


class ServeSection(_Section):
    """The HTTP server and its engine."""

    host: str = "127.0.0.1"
    port: Port = 8000
    num_candidates: Annotated[int, Field(ge=1, le=16)] = 4
    default_max_tokens: Count = 256
    tool_call_parser: str = "hermes"
    """How this model writes the calls of tools: the name of one of vLLM's parsers."""
    max_body_bytes: Count = 1_000_000
    max_messages: Count = 256
    kv_cache_bytes: Count = 1_000_000_000
    max_concurrent_requests: Count = 64
    request_timeout_s: Positive = 300.0
    """A chat request that is not answered by then is given up with 504."""
    pessimism: Annotated[float, Field(ge=0.0)] = 1.0
    """Standard deviations of utility taken off the mean when candidates are ranked."""
    token_lifetime_s: Positive = 7 * 24 * 3600.0
    fingerprint_tolerance_nats: Positive = 0.15
    """Largest mean |difference| between the engine's and the learner's log-probs of a new version."""
    allowed_origins: list[Annotated[str, AfterValidator(lambda origin: origin.rstrip("/"))]] = []
    """Origins (`https://example.org`) whose pages may call this server from a browser; the server's own always may."""
    local_sessions: bool = True
    """A browser on this machine may use the page without the key. Switch it off behind a reverse proxy: its visitors seem to be here."""
    seed: int | None = None


class BusSection(_Section):
    """How events travel from serve to feedback."""

    kind: Literal["embedded", "kafka"] = "embedded"
    bootstrap: str = ""
    """kafka: one broker or more, as HOST:PORT with commas between."""
    topic_prefix: str = "attune"
    partitions: Count = 4


class StoreSection(_Section):
    """Where rows live."""

    url: str = ""
    """SQLAlchemy URL; empty means SQLite under the home folder."""


class FeedbackSection(_Section):
    """The consumer."""

    batch_events: Count = 200
    max_dead_letters_in_a_row: Count = 100
    orphan_lifetime_s: Positive = 7 * 24 * 3600.0
    metrics_port: Port = 0
    """0 switches the Prometheus listener off."""


Wire = Literal["length", "refusals", "repetition", "empty", "sameness"]


class LearnerSection(_Section):
    """The learner's loop."""

    poll_interval_s: Positive = 0.5
    min_votes_per_update: Count = 8
    max_vote_wait_s: Positive = 20.0
    """A vote is learned after this long even if there are fewer than `min_votes_per_update`."""
    max_groups_per_update: Count = 16
    top_up_groups: Annotated[int, Field(ge=0)] = 4
    """Where traffic gives an update fewer groups than this, prompts just voted on are answered anew, if serve has time; 0: never."""
    serve_url: str = ""
    """Where serve answers the learner; empty: on this machine, at `serve.port`."""
    threads: Count = 1
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    """How far the learner stands back where processors are short (see nice(1)): at 10 it has a tenth of serve's weight."""
    policy_lr: Positive = 7e-4
    optimizer_steps: Count = 8
    """Parts that an update's rollouts are split into, an optimizer step each."""
    ppo_epochs: Annotated[int, Field(ge=1, le=4)] = 1
    kl_beta: Annotated[float, Field(ge=0.0)] = 0.07
    """Reward that a nat of drift costs, counted from a base that is somewhat surer of itself: sureness itself is free up to there."""
    kl_budget_nats: Positive = 8.0
    """Budget per sequence, counted from the base as it is; beyond it `kl_hinge` is taken off the reward per nat."""
    kl_hinge: Annotated[float, Field(ge=0.0)] = 0.3
    kl_limit_nats: Positive = 30.0
    """A version whose mean KL per sequence lies above this is not published as champion."""
    pessimism: Annotated[float, Field(ge=0.0)] = 0.5
    debias: list[Literal["length", "format"]] = []
    """What answers look like that must not be learned as a taste: its effect is left out of the score."""
    trunk_votes: Annotated[int, Field(ge=0)] = 500
    """From so many votes on, and at every doubling, layers of the reward model's own are tried against the frozen ones; 0: never."""
    vote_half_life_s: Positive = 90 * 24 * 3600.0
    """A vote this much older than the newest counts half."""
    max_importance: Annotated[float, Field(ge=1.0)] = 1.0
    """Up to which 1/propensity votes on answers that were seldom shown count more; 1: they do not."""
    clip_low: Positive = 0.2
    clip_high: Positive = 0.28
    max_staleness_versions: Count = 8
    grad_clip: Positive = 1.0
    tripwires: list[Wire] = ["length", "refusals", "repetition", "empty", "sameness"]
    """What may stop policy updates (`learner.tripwires`); leave out what is wanted here, as `length` where people want a bare yes or no."""
    demonstration_weight: Annotated[float, Field(ge=0.0)] = 0.05
    """Weight of the likelihood of people's edits in a policy update; 0 leaves them out."""
    seed: int = 0
    metrics_port: Port = 0


class TermSection(_Section):
    """One named wish beside what votes teach (`[[terms]]`); what its kind needs must be given (see `attune.terms`)."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
    kind: Literal["votes", "brevity", "clarity", "regex", "mention", "avoid", "python"]
    """votes: what people say of the aspect of this name; the others are worked out from the text."""
    weight: Annotated[float, Field(allow_inf_nan=False, ge=-10, le=10)] = 1.0
    """In standard deviations of the learned utility of typical answers."""
    words: Count = 30
    """brevity: so many words are short enough."""
    pattern: str = ""
    """regex: what must be found in the answer."""
    phrases: list[str] = []
    """mention, avoid."""
    entry_point: str = ""
    """python: `module:function`, called with question and answer, returns 0 to 1."""

    @model_validator(mode="after")
    def _complete(self) -> "TermSection":
        needed = {"regex": "pattern", "mention": "phrases", "avoid": "phrases", "python": "entry_point"}.get(self.kind)
        if needed and not getattr(self, needed):
            raise ValueError(f"a term of kind {self.kind} needs {needed}")
        if self.kind == "python" and ":" not in self.entry_point:
            raise ValueError("entry_point is module:function")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern is no regular expression: {error}") from error
        return self


class Config(_Section):
    """The effective configuration of one deployment."""

    home: Path = Path(".attune")
    model: ModelSection = ModelSection()
    serve: ServeSection = ServeSection()
    bus: BusSection = BusSection()
    store: StoreSection = StoreSection()
    feedback: FeedbackSection = FeedbackSection()
    learner: LearnerSection = LearnerSection()
    terms: list[TermSection] = []

    @model_validator(mode="after")
    def _distinct_terms(self) -> "Config":
        names = [term.name for term in self.terms]
        if len(set(names)) < len(names):
            raise ValueError("two terms have the same name")
        if OVERALL in self.objectives:
            raise ValueError(f"a term of kind votes cannot be named {OVERALL}: that is the answer as a whole, which is learned anyway")
        return self

    @property
    def objectives(self) -> tuple[str, ...]:
        """Aspects of an answer that people's votes teach a utility of its own."""
        return tuple(term.name for term in self.terms if term.kind == "votes")

    @property
    def model_folder(self) -> str:
        """Folder or hub id to load the base model from."""
        if self.model.path == DEMO_MODEL:
            return str(self.home / "models" / DEMO_MODEL)
        return str(Path(self.model.path).expanduser()) if self.model_is_folder else self.model.path

    @property
    def model_is_folder(self) -> bool:
        """Whether `model.path` means a folder, there or not, in place of a hub id."""
        return self.model.path.startswith((".", "/", "~")) or Path(self.model.path).exists()

    @property
    def model_identity(self) -> str:
        """What versions name as their base: the demo model's name, a hub id, or a folder's own name."""
        return Path(self.model_folder).absolute().name if self.model_is_folder else self.model.path

    @property
    def model_revision(self) -> str:
        """What versions name as their base's revision: that of a hub id where one is set, a digest of a folder's weights; else empty."""
        return fingerprint(Path(self.model_folder)) if self.model_is_folder else self.model.revision or ""

    @property
    def base_url(self) -> str:
        """Return serve's address as a client on this machine writes it."""
        host = "127.0.0.1" if self.serve.host in ("0.0.0.0", "", "::") else self.serve.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.serve.port}"

    @property
    def store_url(self) -> str:
        return self.store.url or f"sqlite:///{self.home / 'store.sqlite'}"

    @property
    def registry_folder(self) -> Path:
        return self.home / "registry"

    @property
    def spool_file(self) -> Path:
        return self.home / "spool.sqlite"


def load(file: Path | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """Return the effective configuration; raises `ConfigError` with one line that names the key and what it wants.

    `file` defaults to `$ATTUNE_CONFIG`, else to `attune.toml` in the current folder if there is one.
    """
    env = os.environ if environment is None else environment
    named = file or (Path(env["ATTUNE_CONFIG"]) if "ATTUNE_CONFIG" in env else None)
    path = named or Path("attune.toml")
    data: dict[str, Any] = {}
    if named is not None or path.is_file():
        try:
            data = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
    for name, value in env.items():
        _apply(data, name, value)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error
    if config.bus.kind == "kafka" and not all(re.fullmatch(r"\s*\S+:\d{1,5}\s*", part) for part in config.bus.bootstrap.split(",")):
        raise ConfigError(f"bus.bootstrap: name the broker as HOST:PORT (got {config.bus.bootstrap!r}), or set bus.kind to embedded")
    home = config.home.expanduser().absolute()
    if home.exists() and not home.is_dir():
        raise ConfigError(f"home: {home} is a file; name a folder, or one that can be made (ATTUNE_HOME)")
    return config.model_copy(update={"home": home})


def as_toml(config: Config) -> str:
    """Return the configuration as TOML that `load` reads back to the same value."""
    lines = [f"home = {_literal(str(config.home))}"]
    for name, section in config:
        if isinstance(section, _Section):
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {_literal(value)}" for key, value in section if value is not None]
    for term in config.terms:
        lines += ["", "[[terms]]"]
        lines += [f"{key} = {_literal(value)}" for key, value in term if value is not None]
    return "\n".join(lines) + "\n"


def _apply(data: dict[str, Any], name: str, value: str) -> None:
    if name == "ATTUNE_HOME":
        data["home"] = value
        return
    if not name.startswith("ATTUNE_") or "__" not in name:
        return
    section, _, key = name.removeprefix("ATTUNE_").lower().partition("__")
    inner = data.setdefault(section, {})
    if not isinstance(inner, dict):
        raise ConfigError(f"{name}: there is no section {section!r}")
    inner[key] = [part.strip() for part in value.split(",") if part.strip()] if _is_list(section, key) else value


def _is_list(section: str, key: str) -> bool:
    """Whether a setting is a list: the environment names its parts with commas between."""
    known = Config.model_fields[section].annotation if section in Config.model_fields else None
    if not (isinstance(known, type) and issubclass(known, _Section)):
        return False
    return key in known.model_fields and get_origin(known.model_fields[key].annotation) is list


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return str(value)


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: no such setting; `attune config` lists the known ones"
    return f"{where}: {first['msg']} (got {first['input']!r})"
