"""The events that serve writes and feedback reads: CloudEvents headers, JSON bodies, one schema each in `docs/schemas/`.

Everything is checked here, once, on the way in and on the way out; what does not fit is `InvalidRecord`. Binary content mode of
CloudEvents 1.0: attributes travel as headers `ce_*`, the body is the JSON data alone. The key of every event is its interaction id.
"""

import base64
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from attune.errors import InvalidRecord
from attune.types import Candidate, Feedback, Interaction, Kind, Sampling, Withdrawal

MAX_TEXT = 100_000
MAX_NUMBER = 1e15
SOURCE = "/attune/serve"
HALF = "holds half of a surrogate pair, which is no character"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold the character NUL")
    if not encodable(text):
        raise ValueError(HALF)
    return text


def encodable(text: str) -> bool:
    """Return whether a text is UTF-8 once it is written: half of a surrogate pair is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Label = Annotated[str, Field(max_length=200), AfterValidator(_storable)]
"""A short text that becomes a column of its own, which not every database lets hold every character."""
Identifier = Annotated[Label, Field(min_length=1)]
Index = Annotated[int, Field(ge=0, le=15)]


@dataclass(frozen=True, slots=True)
class Record:
    """One event as a bus carries it: a key, CloudEvents headers and a JSON body."""

    key: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers.get("ce_id", "")

    @property
    def type(self) -> str:
        return self.headers.get("ce_type", "")


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SamplingBody(_Body):
    temperature: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    top_p: Finite = 1.0
    top_k: int = 0
    min_p: Finite = 0.0
    max_tokens: int = 0
    penalised: bool = False


class CandidateBody(_Body):
    index: Index
    text: str
    token_ids: list[int]
    logprobs: list[float | None]
    """One per token; null where the sampler gave no finite number."""
    finish_reason: str
    ref_logprobs: list[Finite] | None = None
    features: str | None = None
    """Base64 of little-endian fp16 numbers."""
    scores: dict[str, Finite] = {}
    sharp_logprobs: list[Finite] | None = None

    @model_validator(mode="after")
    def _lengths_agree(self) -> "CandidateBody":
        for name in ("logprobs", "ref_logprobs", "sharp_logprobs"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.token_ids):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.token_ids)} tokens")
        return self


class InteractionBody(_Body):
    """Data of `dev.attune.interaction.v1`: one answered request."""

    id: Identifier
    created_at: Finite
    messages: list[dict[str, Any]]
    prompt_token_ids: list[int]
    sampling: SamplingBody
    candidates: Annotated[list[CandidateBody], Field(min_length=1, max_length=16)]
    shown: Annotated[list[Index], Field(min_length=1)]
    propensities: list[Probability]
    policy_version: Annotated[int, Field(ge=0)]
    reward_version: Annotated[int, Field(ge=0)]
    prompt_version: str
    seed: int | None = None
    conversation_id: Label | None = None
    turn: int = 0
    user: Label | None = None

    @model_validator(mode="after")
    def _shown_exists(self) -> "InteractionBody":
        if [c.index for c in self.candidates] != list(range(len(self.candidates))):
            raise ValueError("candidates must be numbered 0, 1, 2, ... in order")
        if max(self.shown) >= len(self.candidates) or len(self.propensities) != len(self.shown):
            raise ValueError("shown and propensities must name the same existing candidates")
        return self


class FeedbackBody(_Body):
    """Data of `dev.attune.feedback.v1`: one vote, or a change of it under the same id."""

    id: Identifier
    interaction_id: Identifier
    kind: Kind
    value: Any
    choice: Index = 0
    received_at: Finite
    aspect: Annotated[Label, Field(max_length=100)] | None = None
    user: Label | None = None

    @field_validator("kind", mode="before")
    @classmethod
    def _known_kind(cls, kind: Any) -> Any:
        if kind not in set(Kind):
            raise ValueError("kind must be one of " + ", ".join(Kind))
        return kind

    @model_validator(mode="after")
    def _value_fits_kind(self) -> "FeedbackBody":
        check_value(self.kind, self.value)
        return self


class WithdrawalBody(_Body):
    """Data of `dev.attune.withdrawal.v1`: a vote taken back."""

    feedback_id: Identifier
    interaction_id: Identifier
    received_at: Finite


BODIES: dict[str, type[_Body]] = {
    "dev.attune.interaction.v1": InteractionBody,
    "dev.attune.feedback.v1": FeedbackBody,
    "dev.attune.withdrawal.v1": WithdrawalBody,
}
TOPICS = {"dev.attune.interaction.v1": "interactions", "dev.attune.feedback.v1": "feedback", "dev.attune.withdrawal.v1": "feedback"}

IMPLICIT = ("copied", "regenerated", "continued", "abandoned")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -MAX_NUMBER <= value <= MAX_NUMBER


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 15


def _comparison_fits(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if set(value) == {"better", "worse"}:
        pair = [value["better"], value["worse"]]
    elif set(value) == {"tie", "between"} and value["tie"] in ("good", "bad") and isinstance(value["between"], list):
        pair = value["between"]
    else:
        return False
    return len(pair) == 2 and all(map(_is_index, pair)) and pair[0] != pair[1]


def _implicit_fits(value: Any) -> bool:
    if isinstance(value, str):
        return value in IMPLICIT
    return isinstance(value, dict) and set(value) == {"dwell"} and _is_number(value["dwell"]) and value["dwell"] >= 0


def check_value(kind: Kind, value: Any) -> None:
    """Raise ValueError, saying the form that is wanted, unless `value` fits `kind`."""
    match kind:
        case Kind.THUMB:
            good, form = value in (1, -1) and not isinstance(value, bool), "1 or -1"
        case Kind.RATING:
            good, form = _is_number(value) and value in (1, 2, 3, 4, 5), "a whole number from 1 to 5"
        case Kind.COMPARISON:
            good, form = _comparison_fits(value), '{"better": i, "worse": j} or {"tie": "good" or "bad", "between": [i, j]}'
        case Kind.RANKING:
            good = isinstance(value, list) and 2 <= len(value) <= 16 and all(map(_is_index, value)) and len(set(value)) == len(value)
            form = "a list of two or more different candidate indexes, best first"
        case Kind.EDIT | Kind.COMMENT:
            good, form = isinstance(value, str) and 0 < len(value) <= MAX_TEXT, f"a text of 1 to {MAX_TEXT} characters"
        case Kind.IMPLICIT:
            good, form = _implicit_fits(value), "one of " + ", ".join(IMPLICIT) + ', or {"dwell": seconds}'
        case Kind.OUTCOME:
            good, form = _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"
    if not good:
        raise ValueError(f"the value of a {kind} must be {form}")
    if isinstance(value, str) and not encodable(value):
        raise ValueError(HALF)


def candidates_named(kind: Kind, value: Any) -> tuple[int, ...]:
    """Return the candidate indexes that a comparison or ranking names, best first; empty for other kinds."""
    if kind is Kind.COMPARISON:
        return (value["better"], value["worse"]) if "better" in value else tuple(value["between"])
    return tuple(value) if kind is Kind.RANKING else ()


def encode(event: Interaction | Feedback | Withdrawal) -> Record:
    """Return the event as a checked record; raises `InvalidRecord` if it does not fit its schema."""
    try:
        if isinstance(event, Interaction):
            return _record("dev.attune.interaction.v1", event.id, event.id, event.created_at, _interaction_body(event))
        if isinstance(event, Feedback):
            data = {k: v for k, v in asdict(event).items() if k != "event_id"}
            body: _Body = FeedbackBody(**data)
            return _record("dev.attune.feedback.v1", event.event_id, event.interaction_id, event.received_at, body)
        body = WithdrawalBody(feedback_id=event.feedback_id, interaction_id=event.interaction_id, received_at=event.received_at)
        return _record("dev.attune.withdrawal.v1", event.event_id, event.interaction_id, event.received_at, body)
    except ValidationError as error:
        raise InvalidRecord(explain(error)) from error


def decode(record: Record) -> Interaction | Feedback | Withdrawal:
    """Return the event that a record carries; raises `InvalidRecord` with a reason that a person can act on."""
    body_type = BODIES.get(record.type)
    if record.headers.get("ce_specversion") != "1.0" or body_type is None:
        raise InvalidRecord(f"unknown event type {record.type!r}; known are {', '.join(BODIES)}")
    if not record.id:
        raise InvalidRecord("the header ce_id is missing")
    try:
        body = body_type.model_validate_json(record.body)
    except ValidationError as error:
        raise InvalidRecord(explain(error)) from error
    if isinstance(body, InteractionBody):
        return _interaction(body)
    if isinstance(body, FeedbackBody):
        return Feedback(event_id=record.id, **dict(body))
    assert isinstance(body, WithdrawalBody)
    return Withdrawal(event_id=record.id, **dict(body))


def new_event_id() -> str:
    """Return a fresh event id."""
    return uuid.uuid4().hex


def explain(error: ValidationError) -> str:
    """Return the first fault of a validation as `field: what is wrong`, without repeating the person's data."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def schemas() -> dict[str, str]:
    """Return file name -> JSON Schema text, as `docs/schemas/` must hold them."""
    return {f"{name}.json": json.dumps(body.model_json_schema(), indent=2, sort_keys=True) + "\n" for name, body in BODIES.items()}


def _record(kind: str, event_id: str, key: str, at: float, body: _Body) -> Record:
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event_id,
        "ce_type": kind,
        "ce_source": SOURCE,
        "ce_time": datetime.fromtimestamp(at, UTC).isoformat(),
        "content-type": "application/json",
    }
    return Record(key, headers, body.model_dump_json(exclude_none=True).encode())


def _interaction_body(value: Interaction) -> InteractionBody:
    data = asdict(value)
    for candidate in data["candidates"]:
        candidate["logprobs"] = [x if math.isfinite(x) else None for x in candidate["logprobs"]]
        if candidate["features"] is not None:
            candidate["features"] = base64.b64encode(candidate["features"]).decode()
    return InteractionBody.model_validate(data)


def _interaction(body: InteractionBody) -> Interaction:
    fields = dict(body)
    fields["sampling"] = Sampling(**dict(body.sampling))
    fields["candidates"] = tuple(_candidate(c) for c in body.candidates)
    for name in ("messages", "prompt_token_ids", "shown", "propensities"):
        fields[name] = tuple(fields[name])
    return Interaction(**fields)


def _candidate(body: CandidateBody) -> Candidate:
    try:
        features = None if body.features is None else base64.b64decode(body.features, validate=True)
    except ValueError as error:
        raise InvalidRecord("candidates.features: not base64") from error
    return Candidate(
        index=body.index,
        text=body.text,
        token_ids=tuple(body.token_ids),
        logprobs=tuple(math.nan if x is None else x for x in body.logprobs),
        finish_reason=body.finish_reason,
        ref_logprobs=None if body.ref_logprobs is None else tuple(body.ref_logprobs),
        features=features,
        scores=dict(body.scores),
        sharp_logprobs=None if body.sharp_logprobs is None else tuple(body.sharp_logprobs),
    )
