"""What learning has come to, read from the registry alone: per version its votes, its figures and the gate's word.

`collect` gathers it, `print_report` shows it in the terminal; `attune.report_page` makes the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from attune import halt
from attune.halt import Discarded
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
    discarded: Sequence[Discarded] = ()

    @property
    def newest_reward(self) -> Mapping[str, Any]:
        """Return the newest reward version's report."""
        return self.rewards[-1].version.report if self.rewards else {}


def collect(registry: Registry) -> Report:
    """Return the report; raises `RegistryError` where the registry is damaged."""
    return Report(_entries(registry, "policy"), _entries(registry, "reward"), halt.all_discarded(registry.root.parent))


def print_report(report: Report, console: Console) -> None:
    """Show how votes were foretold, per kind, and how the policy went, per version."""
    console.print(_quality_table(report.newest_reward))
    console.print(styles(report.newest_reward))
    console.print(_policy_table(report.policies))
    if report.discarded:
        console.print(thrown_away(report.discarded), highlight=False, markup=False)


def styles(figures: Mapping[str, Any]) -> str:
    """Return how far utility goes with what answers look like; empty where no version says so.

    >>> styles({"correlation_with_length": -0.4, "correlation_with_format": 0.1})
    'Utility of typical answers goes with length (r = -0.40), format (r = 0.10).'
    """
    known = [(name, figures.get(f"correlation_with_{name}")) for name in STYLES]
    said = [f"{name} (r = {value:.2f})" for name, value in known if isinstance(value, int | float)]
    return f"Utility of typical answers goes with {', '.join(said)}." if said else ""


def thrown_away(updates: Sequence[Discarded]) -> str:
    """Return how many updates no version came of, and why the newest did not; empty for none.

    >>> thrown_away([Discarded(7, "KL is 40 nats", 0.0)])
    '1 update was thrown away; the newest, from policy 7: KL is 40 nats.'
    """
    if not updates:
        return ""
    newest, many = updates[-1], "1 update was" if len(updates) == 1 else f"{len(updates)} updates were"
    return f"{many} thrown away; the newest, from policy {newest.policy_version}: {newest.reason}."


def _entries(registry: Registry, kind: ArtifactKind) -> list[Entry]:
    entries = list[Entry]()
    learned, holder = set[str](), 0
    for number in registry.numbers(kind):
        version, state = registry.version(kind, number), registry.state(kind, number)
        if version.parent != holder:  # a roll-back lies between them
            learned = _learned_by(registry, kind, version.parent)
        learned, holder = learned.union(version.events), number
        remark = registry.refusal(kind, number)
        if remark is None:
            remark = "passed" if state in (State.CHAMPION, State.RETIRED) else "not judged yet"
        entries.append(Entry(version, state, len(learned), remark))
    return entries


def _learned_by(registry: Registry, kind: ArtifactKind, number: int) -> set[str]:
    """Return the votes that a version and its ancestors learned; one that was changed is one vote."""
    learned = set[str]()
    while number:
        version = registry.version(kind, number)
        learned.update(version.events)
        number = version.parent
    return learned


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
