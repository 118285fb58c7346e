"""One suite for the store on every database: which rows follow from which events, in which order readers see them."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from attune.errors import ConfigError, InvalidRecord, Unavailable
from attune.types import Interaction, Kind
from feedback.bus import Partition
from feedback.database import HEAD, open_engine, reading, writing
from feedback.models import Base
from feedback.store import Fenced, Store, StoreCounts
from feedback.views import InteractionSummary, Views
from tests.suites.events import interaction, vote, withdrawal

HERE = Partition("here", 0)


def in_force(store: Store) -> dict[str, object]:
    return {s.feedback.id: s.feedback.value for s in store.feedback_after(0) if s.in_force}


def test_an_interaction_comes_back_as_it_was(store: Store) -> None:
    some = [interaction("i1"), replace(interaction("i2", candidates=1, shown=[0]), user=None, seed=None, conversation_id=None)]
    bare = replace(some[1].candidates[0], ref_logprobs=None, sharp_logprobs=None, features=None, scores={}, token_ids=(), logprobs=())
    some.append(replace(some[1], id="i3", candidates=(bare,)))
    store.write(some)
    assert store.interactions(["i1", "i2", "i3", "nowhere"]) == {i.id: i for i in some}
    assert store.interactions_after(0) == [(n, i) for n, i in enumerate(some, 1)]
    assert store.interactions_after(1, limit=1) == [(2, some[1])]


def test_a_vote_comes_back_as_it_was_in_every_kind(store: Store) -> None:
    values = {
        Kind.THUMB: -1,
        Kind.RATING: 5,
        Kind.COMPARISON: {"tie": "bad", "between": [3, 1]},
        Kind.RANKING: [3, 1, 2],
        Kind.EDIT: "as I'd \0 have it \N{SNOWMAN}",
        Kind.COMMENT: "<b>hm</b>",
        Kind.IMPLICIT: {"dwell": 2.5},
        Kind.OUTCOME: 0.75,
    }
    votes = [vote(f"e{kind}", name=f"fb-{kind}", kind=kind, value=value, at=1700000000.123456) for kind, value in values.items()]
    store.write([interaction(), *votes])
    assert [stored.feedback for stored in store.feedback_after(0)] == votes
    assert [stored.position for stored in store.feedback_after(0)] == list(range(2, 10))


def test_a_vote_waits_for_its_interaction_and_is_then_new_to_the_reader(store: Store) -> None:
    store.write([vote("e1")])
    assert store.counts() == StoreCounts(interactions=0, feedback=0, orphans=1, dead_letters=0)
    assert store.feedback_after(0) == []
    store.write([interaction("other")])
    seen = store.position()
    store.write([interaction("i1")])
    assert [(s.feedback.event_id, s.in_force) for s in store.feedback_after(seen)] == [("e1", True)]
    assert store.counts() == StoreCounts(interactions=2, feedback=1, orphans=0, dead_letters=0)


def test_what_comes_twice_counts_once(store: Store) -> None:
    batch = [interaction(), vote("e1"), vote("e1"), interaction()]
    first = store.write(batch)
    before = store.position()
    second = store.write(batch)
    assert (first.ignored["duplicate"], second.ignored["duplicate"]) == (2, 4)
    assert store.position() == before
    assert store.counts() == StoreCounts(interactions=1, feedback=1, orphans=0, dead_letters=0)


def test_a_change_replaces_the_vote_at_a_new_position(store: Store) -> None:
    store.write([interaction(), vote("e1", value=1, at=1001)])
    seen = store.position()
    store.write([vote("e2", value=-1, at=1002)])
    assert [(s.feedback.value, s.position > seen) for s in store.feedback_after(0)] == [(-1, True)]
    assert store.counts().feedback == 1


def test_an_older_change_that_comes_again_reverts_nothing(store: Store) -> None:
    store.write([interaction(), vote("e1", value=1, at=1001), vote("e2", value=-1, at=1002)])
    seen = store.position()
    store.write([vote("e1", value=1, at=1001)])
    store.write([vote("e1", value=1, at=1009)])  # the same event, retried by a client: its first arrival counts
    store.write([vote("e0", value=1, at=1000)])  # an older change, late
    assert in_force(store) == {"fb-i1": -1}
    assert store.feedback_after(seen) == []


def test_a_withdrawal_takes_the_vote_out_and_a_later_vote_puts_it_back(store: Store) -> None:
    store.write([interaction(), vote("e1", at=1001)])
    seen = store.position()
    store.write([withdrawal("e2", at=1002)])
    assert [(s.feedback.event_id, s.in_force) for s in store.feedback_after(seen)] == [("e1", False)]
    assert store.counts().feedback == 0
    store.write([vote("e3", value=-1, at=1003)])
    assert in_force(store) == {"fb-i1": -1}


def test_a_withdrawal_may_come_before_its_vote(store: Store) -> None:
    store.write([withdrawal("e2", at=1002), interaction()])
    store.write([vote("e1", at=1001)])
    assert [(s.feedback.event_id, s.in_force) for s in store.feedback_after(0)] == [("e1", False)]


def test_any_order_of_arrival_ends_in_the_same_state(store_url: str, store: Store) -> None:
    history = [interaction(), vote("e1", value=1, at=1), vote("e2", value=-1, at=2), withdrawal("e3", at=3), vote("e4", value=1, at=4)]
    rng = random.Random(5)
    for round_ in range(12):
        renamed = [
            replace(e, id=f"r{round_}")
            if isinstance(e, Interaction)
            else replace(e, event_id=f"r{round_}{e.event_id}", interaction_id=f"r{round_}", **{_vote_field(e): f"fb-r{round_}"})
            for e in history
        ]
        shuffled = rng.sample(renamed + renamed[:2], len(renamed) + 2)
        cut = rng.randrange(len(shuffled))
        store.write(shuffled[:cut])
        store.write(shuffled[cut:])
    assert in_force(store) == {f"fb-r{n}": 1 for n in range(12)}


def _vote_field(event: object) -> str:
    return "feedback_id" if hasattr(event, "feedback_id") else "id"


def test_a_slot_out_of_bounds_is_stored_and_named_unusable(store_url: str, store: Store) -> None:
    pair = {"better": 4, "worse": 0}
    store.write([interaction(), vote("e1", choice=2), vote("e2", name="fb-2", kind=Kind.COMPARISON, value=pair), vote("e3", name="fb-3")])
    reasons = {s.feedback.id: s.unusable for s in store.feedback_after(0)}
    assert reasons == {
        "fb-i1": "choice 2 does not exist: the reply had 2",
        "fb-2": "candidate 4 does not exist: there were 4",
        "fb-3": None,
    }


def test_offsets_move_by_compare_and_set_with_the_rows(store: Store) -> None:
    store.write([interaction()], before={HERE: 0}, after={HERE: 5})
    assert store.offsets([HERE, Partition("new", 1)]) == {HERE: 5, Partition("new", 1): 0}
    with pytest.raises(Fenced):
        store.write([interaction("zombie")], before={HERE: 0}, after={HERE: 6})
    with pytest.raises(Fenced):
        store.write([interaction("zombie")], before={Partition("never", 0): 7}, after={Partition("never", 0): 8})
    assert store.interactions(["zombie"]) == {}
    assert store.offsets([HERE]) == {HERE: 5}
    store.write([], before={HERE: 5}, after={HERE: 9})
    assert store.offsets([HERE]) == {HERE: 9}


def test_a_value_that_the_database_refuses_writes_nothing(store: Store) -> None:
    with pytest.raises(InvalidRecord):
        store.write([interaction(), replace(vote("e1"), choice=2**70)], before={HERE: 0}, after={HERE: 2})
    assert store.counts() == StoreCounts(0, 0, 0, 0)
    assert store.offsets([HERE]) == {HERE: 0}


def test_orphans_that_waited_too_long_become_dead_letters_and_can_be_taken_in_later(store: Store) -> None:
    store.write([vote("old", name="fb-old")])
    between = time.time()
    time.sleep(0.01)
    store.write([vote("new", name="fb-new")])
    assert store.expire_orphans(between) == 1
    assert store.expire_orphans(between) == 0
    assert store.counts() == StoreCounts(interactions=0, feedback=0, orphans=1, dead_letters=1)
    [letter] = store.dead_letters()
    assert letter.reason == "its interaction never came"
    store.write([interaction()])
    assert store.replay(letter) is None
    assert in_force(store) == {"fb-old": 1, "fb-new": 1}
    assert store.counts().dead_letters == 0
    assert not store.discard(letter)


def test_a_reader_who_follows_misses_nothing_while_many_write(store_url: str, store: Store) -> None:
    stores = [store, *(Store.open(store_url) for _ in range(2))]
    done = threading.Event()
    seen: list[str] = []

    def follow() -> None:
        position = 0
        while True:
            last = done.is_set()
            for stored in store.feedback_after(position, limit=7):
                assert stored.position > position
                position = stored.position
                seen.append(stored.feedback.id)
            if last and not store.feedback_after(position, limit=1):
                return

    def write(worker: int) -> None:
        for n in range(30):
            name = f"i{worker}-{n}"
            halves = [interaction(name, candidates=1, shown=[0]), vote(f"e-{name}", of=name)]
            for event in halves if n % 2 else reversed(halves):
                _patiently(stores[worker], event)

    with ThreadPoolExecutor(4) as pool:
        reader = pool.submit(follow)
        for writer in [pool.submit(write, worker) for worker in range(3)]:
            writer.result()
        done.set()
        reader.result(timeout=30)
    assert sorted(seen) == sorted(f"fb-i{w}-{n}" for w in range(3) for n in range(30))
    for other in stores[1:]:
        other.close()


def _patiently(store: Store, event: object) -> None:
    for _ in range(20):
        try:
            store.write([event])  # type: ignore[list-item]
            return
        except Unavailable:  # SQLite's lock was busy for longer than its timeout
            time.sleep(0.05)
    raise AssertionError("the store stayed busy")


def test_views_show_what_serve_needs(store_url: str, store: Store) -> None:
    views = Views(store_url)
    store.write([vote("e1"), vote("e2", of="i2", name="fb-2")])
    assert views.receipt("fb-i1") is None
    store.write([interaction()])
    assert views.interaction("i1") == InteractionSummary("i1", (2, 0), 4, "u1", 3)
    assert views.interaction("i2") is None
    receipt = views.receipt("fb-i1")
    assert receipt is not None
    assert (receipt.position, receipt.in_force, receipt.feedback) == (2, True, vote("e1"))
    assert views.counts() == store.counts() == StoreCounts(interactions=1, feedback=1, orphans=1, dead_letters=0)
    views.close()


def test_views_tell_what_teaches_from_what_is_only_kept(store_url: str, store: Store) -> None:
    views, same = Views(store_url), interaction().candidates[2].text
    edits = [vote("e2", name="fb-2", kind=Kind.EDIT, value=same + " "), vote("e3", name="fb-3", kind=Kind.EDIT, value="better")]
    store.write([interaction(), vote("e1"), *edits, vote("e4", name="fb-4", kind=Kind.COMMENT, value="hm")])
    said = {name: found.unusable for name in ("fb-i1", "fb-2", "fb-3", "fb-4") if (found := views.receipt(name))}
    assert said == {
        "fb-i1": None,
        "fb-2": "the edited text is the answer itself",
        "fb-3": None,
        "fb-4": "votes of the kind 'comment' are stored, but nothing is learned from them yet",
    }
    assert views.learned(store.position()) == 3
    aspects = [replace(vote("e5", name="fb-5"), aspect="tone"), replace(edits[1], id="fb-6", event_id="e6", aspect="tone")]
    store.write(aspects)
    wishing = Views(store_url, ("tone",))
    found = [wishing.receipt(name) for name in ("fb-5", "fb-6")]
    reasons = [None, "an edit is the whole answer as it should have been: send it without an aspect"]
    assert [receipt and receipt.unusable for receipt in found] == reasons
    assert (views.learned(store.position()), wishing.learned(store.position())) == (3, 4)
    wishing.close()
    views.close()


def test_views_cannot_write(store_url: str, store: Store) -> None:
    engine = open_engine(store_url, read_only=True)
    with pytest.raises(Unavailable), writing(engine) as db:
        db.execute(text("UPDATE counter SET value = 99"))
    engine.dispose()
    assert store.position() == 0


def test_programs_that_start_together_make_the_tables_once(store_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: Store.open(store_url), range(8)))
    assert [each.position() for each in stores] == [0] * 8
    for each in stores:
        each.close()


def test_the_migrations_lead_to_the_models(store_url: str, store: Store) -> None:
    engine = open_engine(store_url)
    with reading(engine) as db:
        context = MigrationContext.configure(db)
        assert compare_metadata(context, Base.metadata) == []
        assert context.get_current_revision() == HEAD
    engine.dispose()


def test_a_store_from_before_a_column_gets_it_and_keeps_its_rows(store_url: str, store: Store) -> None:
    before = interaction()
    store.write([before])
    engine = open_engine(store_url)
    with writing(engine) as db:
        db.execute(text("ALTER TABLE candidates DROP COLUMN sharp_logprobs"))
        db.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    engine.dispose()
    again = Store.open(store_url)
    found = again.interactions([before.id])[before.id]
    again.close()
    assert found == replace(before, candidates=tuple(replace(c, sharp_logprobs=None) for c in before.candidates))


def test_a_store_of_a_newer_version_is_refused(store_url: str, store: Store) -> None:
    engine = open_engine(store_url)
    with writing(engine) as db:
        db.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(ConfigError, match="newer version"):
        Store.open(store_url)


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://host/name", "sqlite://", "sqlite:///:memory:"])
def test_an_address_that_will_not_do_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.url"):
        Store.open(url)


def test_a_database_that_is_away_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        Store.open("postgresql://nobody@127.0.0.1:1/nowhere")
