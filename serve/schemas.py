"""Request bodies of the HTTP API, with every bound that must hold before any work is done.

OpenAI's parameters are an allow-list: what is not on it is ignored, as OpenAI's own clients expect, and never reaches vLLM.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from attune.events import Identifier, Label, check_value
from attune.types import OVERALL, OWN_NAMES, Kind

MAX_CANDIDATES = 16

Text = Annotated[str, Field(max_length=400_000)]


class _Open(BaseModel):
    model_config = ConfigDict(extra="ignore")


class TextPart(_Open):
    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One message of a conversation; tool calls and names pass through unchanged."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Annotated[str, Field(max_length=200)] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def flat(self) -> dict[str, Any]:
        """Return the message with its parts joined to one text."""
        data = self.model_dump(exclude_none=True)
        if isinstance(self.content, list):
            data["content"] = "".join(part.text for part in self.content)
        data.setdefault("content", "")
        return data


class ChatRequest(_Open):
    """OpenAI's chat completion request plus Attune's extensions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    model: Label = "attune"
    n: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = 1
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[str, Field(max_length=200)] | Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=4)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=300)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    user: Label | None = None
    # Attune's own
    candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] | None = None
    rerank: Literal["full", "off"] = "full"
    purpose: Literal["answer", "learning", "evaluation"] = "answer"
    objectives: Annotated[dict[str, Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]], Field(max_length=32)] | None = None
    conversation_id: Label | None = None

    @model_validator(mode="before")
    @classmethod
    def _nothing_said(cls, data: Any) -> Any:
        """Leave out what is null: OpenAI takes that as not said, and many clients write every parameter."""
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data

    @field_validator("conversation_id")
    @classmethod
    def _a_name_of_the_client_s(cls, name: str | None) -> str | None:
        if name is not None and name.startswith(OWN_NAMES):
            raise ValueError(f"names that begin with {OWN_NAMES} are the server's own")
        return name

    @model_validator(mode="after")
    def _enough_candidates(self) -> "ChatRequest":
        if self.candidates is not None and self.candidates < self.n:
            raise ValueError(f"candidates is {self.candidates}, fewer than the n = {self.n} choices asked for")
        return self


OWN = {"model", "user", "candidates", "rerank", "purpose", "objectives", "conversation_id", "messages"}


class FeedbackRequest(BaseModel):
    """One vote, as a client sends it."""

    model_config = ConfigDict(extra="forbid")

    interaction_id: Identifier
    kind: Kind
    value: Any
    choice: Annotated[int, Field(ge=0, lt=MAX_CANDIDATES)] = 0
    user: Label | None = None
    aspect: Annotated[Label, Field(max_length=100)] | None = None
    token: Annotated[str, Field(max_length=2000)] | None = None

    @field_validator("aspect")
    @classmethod
    def _one_overall(cls, aspect: str | None) -> str | None:
        """Return None for what speaks of the answer as a whole, however it is said: it is one vote, not three."""
        return None if aspect in ("", OVERALL) else aspect

    @model_validator(mode="after")
    def _value_fits(self) -> "FeedbackRequest":
        check_value(self.kind, self.value)
        return self
