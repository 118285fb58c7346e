"""The nouns: frozen values that the programs pass around, with no behaviour that needs I/O.

Bytes that cross a border are described in `attune.events`; these are the shapes inside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


class Kind(StrEnum):
    """What a person can say about an answer; the value's form is given in `attune.events.check_value`."""

    THUMB = "thumb"
    RATING = "rating"
    COMPARISON = "comparison"
    RANKING = "ranking"
    EDIT = "edit"
    COMMENT = "comment"
    IMPLICIT = "implicit"
    OUTCOME = "outcome"


QUALITY = ("accuracy", "auroc", "spearman", "pearson", "ece", "predicted")
"""How well votes were predicted before they were learned: `<kind>_<figure>` in a reward version's report."""
OVERALL = "overall"
"""The aspect of a vote on the answer as a whole; none means the same. Votes on others are stored, and nothing is learned from them."""
OWN_NAMES = "attune:"
LEARNING = f"{OWN_NAMES}learning"
"""The conversation of answers that nobody asked for: the learner had them drawn."""
EVALUATION = f"{OWN_NAMES}evaluation"
"""The conversation of answers that measure: they are kept and can be voted on, but nothing is learned from them unvoted."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the candidates of one interaction were drawn."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 0
    penalised: bool = False

    @property
    def greedy(self) -> bool:
        """Whether nothing was left to chance."""
        return self.temperature < 1e-5  # as vLLM has it

    @property
    def train_grade(self) -> bool:
        """Whether log-probs are those of the plain policy, so that PPO may learn from the samples."""
        return not self.greedy and self.top_p >= 1.0 and self.top_k <= 0 and self.min_p <= 0.0 and not self.penalised


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sampled completion. `logprobs` and `ref_logprobs` (the base's) are per token, at the sampling temperature, in nats."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    ref_logprobs: tuple[float, ...] | None = None
    features: bytes | None = None
    """Little-endian fp16 vector of `attune.frozen.feature_width` numbers; None where no frozen pass was made."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Utility per objective, plus `spread` (standard deviation over particles) and `total` (what ranked it)."""
    sharp_logprobs: tuple[float, ...] | None = None
    """The base's at `attune.frozen.SHARPNESS` of that temperature: what drift is priced against."""


@dataclass(frozen=True, slots=True)
class Interaction:
    """One answered request with everything that learning needs to know of how it was answered."""

    id: str
    created_at: float
    """Seconds since the epoch."""
    messages: tuple[Mapping[str, Any], ...]
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    candidates: tuple[Candidate, ...]
    shown: tuple[int, ...]
    """Candidate indexes in the order of the reply's choices."""
    propensities: tuple[float, ...]
    """Probability that the selection rule shows `shown[i]` at place i, given the candidates."""
    policy_version: int
    reward_version: int
    prompt_version: str
    seed: int | None = None
    conversation_id: str | None = None
    turn: int = 0
    user: str | None = None
    """Pseudonym: a keyed hash, never the name that the client sent."""

    @property
    def num_tokens(self) -> int:
        """Return how long the prompt and all candidates are together."""
        return len(self.prompt_token_ids) + sum(len(c.token_ids) for c in self.candidates)


def question(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text that a conversation's last user message asks; empty if there is none."""
    return next((str(m.get("content") or "") for m in reversed(messages) if m.get("role") == "user"), "")


@dataclass(frozen=True, slots=True)
class Feedback:
    """One signal on one interaction, in force until it is replaced or withdrawn."""

    id: str
    """Identity of the vote: the same for a later change of it."""
    event_id: str
    interaction_id: str
    kind: Kind
    value: Any
    choice: int
    received_at: float
    aspect: str | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A person takes a vote back; `feedback_id` is `Feedback.id`."""

    event_id: str
    feedback_id: str
    interaction_id: str
    received_at: float


@dataclass(frozen=True, slots=True)
class Preference:
    """Candidates of one interaction in order, best first (Plackett-Luce), or two of them compared, maybe a `tie` (Davidson)."""

    feedback_id: str
    interaction_id: str
    order: tuple[int, ...]
    tie: bool
    weight: float
    source: Kind
    user: str | None
    places: tuple[int, ...] = ()
    """Where each of `order` stood in the reply, 0 first; those that were not shown count as shown last."""
    good: bool | None = None
    """Of a tie: whether both are good or both bad; None where nobody said."""


@dataclass(frozen=True, slots=True)
class Rating:
    """A judgement of one candidate alone, on a scale of `levels` steps from 0 (thumb: 2, stars: 5)."""

    feedback_id: str
    interaction_id: str
    candidate: int
    level: int
    levels: int
    weight: float
    source: Kind
    user: str | None


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An answer as a person would have had it; preferred to candidate `candidate`."""

    feedback_id: str
    interaction_id: str
    candidate: int
    text: str
    weight: float
    user: str | None


Signal = Preference | Rating | Demonstration


class State(StrEnum):
    """Where a version stands; the legal moves are `attune.registry.MOVES`."""

    PUBLISHED = "published"
    REJECTED = "rejected"
    TRIAL = "trial"
    CHAMPION = "champion"
    RETIRED = "retired"
    ROLLED_BACK = "rolled_back"


TAUGHT = "demonstrations.json"
"""The file of a policy version that holds what `attune sft` taught it."""
ArtifactKind = Literal["policy", "reward"]


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable published artifact: `files` maps each file name to its sha256."""

    kind: ArtifactKind
    number: int
    files: Mapping[str, str]
    parent: int
    base_model: str
    base_revision: str
    created_at: float
    trained_through: int
    """Store position (see `feedback.store`) up to which feedback has been learned."""
    reward_version: int
    """For a policy: the reward version that judged its rollouts; for a reward version: its own number."""
    report: Mapping[str, Any]
    events: tuple[str, ...] = ()
    """Feedback ids that this version learned and its parent had not."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """One numbered record of the promotion log."""

    number: int
    kind: ArtifactKind
    version: int
    move: State
    reason: str
    by: str
    at: float


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Whether a challenger may go live, with the reasons and the report it was judged by."""

    promote: bool
    reasons: tuple[str, ...]
    report: Mapping[str, Any]
