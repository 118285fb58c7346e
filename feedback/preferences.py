"""Votes -> training signal: pure functions from an interaction and one vote on it to what the reward model learns.

How much a signal moves the model beyond its own `weight` (trust, shares per user) is the learner's business.
"""

from collections.abc import Collection
from difflib import SequenceMatcher
from functools import lru_cache
from typing import assert_never

from attune.events import candidates_named
from attune.types import OVERALL, Demonstration, Feedback, Interaction, Kind, Preference, Rating, Signal

NOT_LEARNED = frozenset({Kind.COMMENT, Kind.IMPLICIT, Kind.OUTCOME})
MIN_EDIT_WEIGHT = 0.1
MAX_WORDS_MATCHED = 1000
"""Beyond this many words the similarity of two texts is bounded from above instead of worked out (which is quadratic)."""


def derive(interaction: Interaction, feedback: Feedback, objectives: Collection[str] = ()) -> tuple[Signal, ...]:
    """Return what the vote teaches: one signal, or none if it is unusable or of a kind that nothing learns from yet.

    `objectives` are the aspects that something learns from beside the answer as a whole.
    Thumbs, ratings and edits speak of the candidate shown as `choice`; comparisons and rankings name candidates themselves.
    """
    if why_unusable(interaction, feedback, objectives) is not None:
        return ()
    kind, value = feedback.kind, feedback.value
    match kind:
        case Kind.THUMB | Kind.RATING:
            level, levels = (int(value == 1), 2) if kind is Kind.THUMB else (int(value) - 1, 5)
            candidate = interaction.shown[feedback.choice]
            return (Rating(feedback.id, interaction.id, candidate, level, levels, 1.0, kind, feedback.user),)
        case Kind.COMPARISON | Kind.RANKING:
            tie = kind is Kind.COMPARISON and "tie" in value
            order, shown = candidates_named(kind, value), interaction.shown
            places = tuple(shown.index(candidate) if candidate in shown else len(shown) for candidate in order)
            good = value["tie"] == "good" if tie else None
            return (Preference(feedback.id, interaction.id, order, tie, 1.0, kind, feedback.user, places, good),)
        case Kind.EDIT:
            candidate = interaction.shown[feedback.choice]
            weight = max(MIN_EDIT_WEIGHT, distance(interaction.candidates[candidate].text, value))
            return (Demonstration(feedback.id, interaction.id, candidate, value, weight, feedback.user),)
        case Kind.COMMENT | Kind.IMPLICIT | Kind.OUTCOME:
            return ()
        case _:
            assert_never(kind)


def teaches(feedback: Feedback, objectives: Collection[str] = ()) -> bool:
    """Return whether anything is learned from votes of this kind and aspect."""
    return feedback.kind not in NOT_LEARNED and _why_not_aspect(feedback, objectives) is None


def why_unusable(interaction: Interaction, feedback: Feedback, objectives: Collection[str] = ()) -> str | None:
    """Return why nothing is learned from a vote that is well-formed in itself; None if something is."""
    reason = misfit(interaction.shown, len(interaction.candidates), feedback, objectives)
    if reason is None and feedback.kind is Kind.EDIT:
        return unchanged(interaction.candidates[interaction.shown[feedback.choice]].text, feedback)
    return reason


def misfit(shown: tuple[int, ...], num_candidates: int, feedback: Feedback, objectives: Collection[str] = ()) -> str | None:
    """Return what keeps a vote on an interaction with these choices from being learned, whatever its answers say; None if nothing does."""
    named = candidates_named(feedback.kind, feedback.value)
    if not named and feedback.choice >= len(shown):
        return f"choice {feedback.choice} does not exist: the reply had {len(shown)}"
    missing = [index for index in named if index >= num_candidates]
    if missing:
        return f"candidate {missing[0]} does not exist: there were {num_candidates}"
    if reason := _why_not_aspect(feedback, objectives):
        return reason
    if feedback.kind in NOT_LEARNED:
        return f"votes of the kind {feedback.kind.value!r} are stored, but nothing is learned from them yet"
    return None


def unchanged(original: str, feedback: Feedback) -> str | None:
    """Return why nothing can be learned from an edit of this text; None if it says something else."""
    return "the edited text is the answer itself" if original.strip() == str(feedback.value).strip() else None


def objective(feedback: Feedback) -> str | None:
    """Return the aspect that a vote speaks of; None for the answer as a whole."""
    return None if feedback.aspect == OVERALL else feedback.aspect


def _why_not_aspect(feedback: Feedback, objectives: Collection[str]) -> str | None:
    aspect = objective(feedback)
    if aspect is not None and aspect not in objectives:
        return f"the aspect {aspect!r} is stored, but only overall votes are learned"
    if aspect is not None and feedback.kind is Kind.EDIT:
        return "an edit is the whole answer as it should have been: send it without an aspect"
    return None


@lru_cache(maxsize=4096)
def distance(before: str, after: str) -> float:
    """Return which share of the words differs between two texts, 0 (none) to 1 (all)."""
    old, new = before.split(), after.split()
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    return 1.0 - (matcher.ratio() if max(len(old), len(new)) <= MAX_WORDS_MATCHED else matcher.quick_ratio())
