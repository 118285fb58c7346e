"""The rules of the join, for every order, repetition and division of what arrives."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from attune.types import Feedback, Kind
from feedback.join import Changes, Event, Known, join
from tests.suites.events import interaction, vote, withdrawal

INTERACTIONS = [interaction(f"i{n}", candidates=1, shown=[0]) for n in range(2)]
SAID = [
    vote(f"e{n}-{moment}", of=f"i{n % 3}", name=f"fb-{n}", at=float(moment), value=moment, kind=Kind.RATING)
    if moment % 3
    else withdrawal(f"e{n}-{moment}", of=f"i{n % 3}", name=f"fb-{n}", at=float(moment))
    for n in range(4)
    for moment in range(1, 6)
]
"""Four votes, each changed and withdrawn over time; those on i2 stay orphans."""


class Kept:
    """What a store would hold after each batch."""

    def __init__(self) -> None:
        self.known = Known(0)
        self.positions: list[int] = []

    def take(self, batch: list[Event]) -> Changes:
        changes = join(batch, replace(self.known), now=0.0)
        given_out = [position for position, _ in changes.interactions] + [v.position for v in changes.votes.values() if v.position]
        assert all(position > self.known.position for position in given_out), "a reader who had read up to here would miss it"
        self.known.position = changes.position
        self.positions += given_out
        return changes


@settings(max_examples=200, deadline=None)
@given(
    st.permutations([*INTERACTIONS, *SAID]),
    st.lists(st.sampled_from([*INTERACTIONS, *SAID]), max_size=8),
    st.sets(st.integers(0, 30), max_size=4),
)
def test_the_latest_is_in_force_whatever_the_order(order: list[Event], again: list[Event], cuts: set[int]) -> None:
    kept, arrivals = Kept(), [*order, *again]
    edges = [0, *sorted(cuts), len(arrivals)]
    for start, end in pairwise(edges):
        kept.take(arrivals[start:end])
    assert len(kept.positions) == len(set(kept.positions))
    for n in range(4):
        found = kept.known.votes[f"fb-{n}"]
        assert found.feedback == max((e for e in SAID if isinstance(e, Feedback) and e.id == f"fb-{n}"), key=lambda e: e.received_at)
        assert found.in_force, "the last of the five events of each vote is a vote"
        assert (found.position is None) == (n % 3 == 2)


@settings(max_examples=50, deadline=None)
@given(st.permutations([INTERACTIONS[0], vote("e1", of="i0", at=1.0), withdrawal("e2", of="i0", at=2.0)]))
def test_withdrawn_is_withdrawn_whatever_the_order(order: list[Event]) -> None:
    kept = Kept()
    for event in order:
        kept.take([event])
    assert not kept.known.votes["fb-i0"].in_force
    assert kept.known.votes["fb-i0"].position is not None


def test_what_was_seen_changes_nothing() -> None:
    kept = Kept()
    batch: list[Event] = [*INTERACTIONS, *SAID]
    kept.take(batch)
    again = kept.take(batch)
    assert (again.interactions, again.votes, again.withdrawals, again.events) == ([], {}, {}, {})
    assert again.ignored == {"duplicate": len(batch)}


def test_a_vote_that_is_sent_again_as_it_was_is_news_to_nobody() -> None:
    kept = Kept()
    kept.take([INTERACTIONS[0], vote("e1", of="i0", at=1.0)])
    before = kept.known.votes["fb-i0"]
    changes = join([vote("e2", of="i0", at=2.0)], replace(kept.known), now=9.0)
    assert changes.ignored == {"unchanged": 1}
    assert changes.position == kept.known.position  # so that it is not learned again
    again = kept.known.votes["fb-i0"]
    assert (again.position, again.stored_at, again.in_force) == (before.position, before.stored_at, True)
    assert again.feedback.event_id == "e2"  # and its receipt knows the new event
    for event in (withdrawal("e3", of="i0", at=3.0), vote("e4", of="i0", at=4.0), vote("e5", of="i0", at=5.0, value=-1)):
        position = kept.known.position
        assert kept.take([event]).position == position + 1
