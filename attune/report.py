"""What learning has come to, read from the registry alone: per version its votes, its figures and the gate's word.

`collect` gathers it, `print_report` shows it in the terminal; `attune.report_page` makes the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from attune.registry import Registry
from attune.style import STYLES
from attune.types import QUALITY, ArtifactKind, State, Version

KINDS = ("overall", "thumb", "rating", "comparison", "tie", "ranking", "edit")


@dataclass(frozen=True, slots=True)
class Entry:
    """One published version and where it stands."""

    version: Version
    state: State
    votes: int
    """Votes that it and its ancestors learned."""
    remark: str
    """What the gate said of it, or why it was refused or taken back."""

    def figure(self, name: str) -> float | None:
        """Return a number of its report."""
        value = self.version.report.get(name)
        return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True, slots=True)
class Report:
    """All that is known of both kinds of versions, oldest first."""

    policies: Sequence[Entry]
    rewards: Sequence[Entry]

    @property
    def newest_reward(self) -> Mapping[str, Any]:
        """Return the newest reward version's report."""
        return self.rewards[-1].version.report if self.rewards else {}


def collect(registry: Registry) -> Report:
    """Return the report; raises `RegistryError` where the registry is damaged."""
    return Report(_entries(registry, "policy"), _entries(registry, "reward"))


def print_report(report: Report, console: Console) -> None:
    """Show how votes were foretold, per kind, and how the policy went, per version."""
    console.print(_quality_table(report.newest_reward))
    console.print(styles(report.newest_reward))
    console.print(_policy_table(report.policies))


def styles(figures: Mapping[str, Any]) -> str:
    """Return how far utility goes with what answers look like; empty where no version says so.

    >>> styles({"correlation_with_length": -0.4, "correlation_with_format": 0.1})
    'Utility of typical answers goes with length (r = -0.40), format (r = 0.10).'
    """
    known = [(name, figures.get(f"correlation_with_{name}")) for name in STYLES]
    said = [f"{name} (r = {value:.2f})" for name, value in known if isinstance(value, int | float)]
    return f"Utility of typical answers goes with {', '.join(said)}." if said else ""


def _entries(registry: Registry, kind: ArtifactKind) -> list[Entry]:
    entries = list[Entry]()
    learned: dict[int, int] = {0: 0}
    for number in registry.numbers(kind):
        version, state = registry.version(kind, number), registry.state(kind, number)
        learned[number] = learned.get(version.parent, 0) + len(version.events)
        remark = registry.refusal(kind, number)
        if remark is None:
            remark = "passed" if state in (State.CHAMPION, State.RETIRED) else "not judged yet"
        entries.append(Entry(version, state, learned[number], remark))
    return entries


def _quality_table(figures: Mapping[str, Any]) -> Table:
    table = Table("votes foretold", *QUALITY[:-1], "of", title="Score before you learn: each vote was predicted, then learned")
    for kind in KINDS:
        if f"{kind}_predicted" in figures:
            shown = [_number(figures.get(f"{kind}_{name}")) for name in QUALITY[:-1]]
            table.add_row(kind, *shown, f"{figures[f'{kind}_predicted']:.0f}")
    return table


def _policy_table(policies: Sequence[Entry]) -> Table:
    columns = {"score_mean": "reward", "kl_to_ref": "KL", "entropy": "entropy", "length_mean": "tokens", "explained_variance": "critic"}
    table = Table("policy", "state", "when", "votes", *columns.values(), "gate", title="Policies; reward in anchor standard deviations")
    for entry in policies:
        when = datetime.fromtimestamp(entry.version.created_at).strftime("%m-%d %H:%M:%S")
        shown = [_number(entry.figure(name)) for name in columns]
        table.add_row(str(entry.version.number), entry.state, when, str(entry.votes), *shown, entry.remark)
    return table


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else "-"
