"""From the log into the store, on every database: nothing lost, nothing twice, whatever stops on the way."""

import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from prometheus_client import REGISTRY

from attune.config import Config, FeedbackSection, as_toml
from attune.errors import TooManyDeadLetters, Unavailable
from attune.events import Record, encode
from attune.types import Feedback, Interaction, Withdrawal
from feedback.bus import Bus, open_bus
from feedback.consumer import Consumer
from feedback.dlq import main
from feedback.spool import Spool
from feedback.store import Fenced, Store, StoreCounts
from tests.suites.events import corrupt, interaction, vote, withdrawal

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bus(store_config: Config) -> Iterator[Bus]:
    opened = open_bus(store_config, "writer")
    yield opened
    opened.close()


def publish(bus: Bus, *events: Interaction | Feedback | Withdrawal | Record) -> None:
    bus.publish([event if isinstance(event, Record) else encode(event) for event in events])


def drain(consumer: Consumer) -> None:
    while consumer.step():
        pass


def fallen(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_events_become_rows_and_one_invalid_among_many_is_set_aside(bus: Bus, store: Store) -> None:
    publish(
        bus,
        vote("e1"),
        interaction("i1"),
        corrupt("bad"),
        vote("e2", of="i2", name="fb-2"),
        interaction("i2"),
        withdrawal("e3", of="i2", name="fb-2"),
    )
    drain(Consumer(bus, store, FeedbackSection()))
    assert store.counts() == StoreCounts(interactions=2, feedback=1, orphans=0, dead_letters=1)
    assert {s.feedback.id: s.in_force for s in store.feedback_after(0)} == {"fb-i1": True, "fb-2": False}
    [letter] = store.dead_letters()
    assert (letter.record, letter.offset, letter.attempts) == (corrupt("bad"), 2, 1)
    assert "Invalid JSON" in letter.reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record("i1", {"ce_specversion": "1.0", "ce_id": "x", "ce_type": "dev.attune.feedback.v99"}, b"{}"), "unknown event type"),
        (Record("i1", {"ce_specversion": "0.3", "ce_id": "x", "ce_type": "dev.attune.feedback.v1"}, b"{}"), "unknown event type"),
        (replace(encode(vote("e1")), headers={**encode(vote("e1")).headers, "ce_id": ""}), "ce_id is missing"),
        (
            Record("i1", encode(vote("e1")).headers, encode(vote("e1")).body.replace(b'"value":1', b'"value":7')),
            "the value of a thumb must be",
        ),
        (
            Record("i1", encode(vote("e1")).headers, encode(vote("e1")).body.replace(b'"u1"', b'"u\\u0000"')),
            "must not hold the character NUL",
        ),
        (Record("", {}, b""), "unknown event type"),
    ],
)
def test_what_cannot_be_read_says_why(bus: Bus, store: Store, record: Record, reason: str) -> None:
    publish(bus, record, interaction(), vote("e2"))
    drain(Consumer(bus, store, FeedbackSection()))
    assert reason in store.dead_letters()[0].reason
    assert store.counts() == StoreCounts(interactions=1, feedback=1, orphans=0, dead_letters=1)


def test_a_value_that_only_the_database_refuses_is_found_and_set_aside_alone(bus: Bus, store: Store) -> None:
    whole = encode(replace(interaction("huge"), sampling=interaction().sampling))
    assert b'"index":3' in whole.body
    bad = replace(whole, body=whole.body.replace(b"49152", b"99999999999"))
    publish(bus, *(vote(f"e{n}", name=f"fb-{n}") for n in range(9)), bad, interaction("i1"))
    drain(Consumer(bus, store, FeedbackSection()))
    assert store.counts() == StoreCounts(interactions=1, feedback=9, orphans=0, dead_letters=1)


def test_dead_letters_are_listed_replayed_and_discarded(
    bus: Bus, store: Store, store_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    file = store_config.home / "attune.toml"
    file.write_text(as_toml(store_config))
    publish(bus, corrupt(), vote("e1"))
    drain(Consumer(bus, store, FeedbackSection()))
    assert store.expire_orphans(time.time() + 1) == 1
    publish(bus, interaction())
    drain(Consumer(bus, store, FeedbackSection()))

    def dlq(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()  # the log lines until now
        code = main(["--config", str(file), *arguments])
        return code, capsys.readouterr().out

    code, listing = dlq("list")
    unread, orphan = [line.split("\t")[0] for line in listing.splitlines()]
    assert (code, orphan) == (0, "orphans/0/1")
    assert "Invalid JSON" in dlq("show", unread)[1]
    assert dlq("replay", "all")[0] == 1
    assert store.counts() == StoreCounts(interactions=1, feedback=1, orphans=0, dead_letters=1)
    assert dlq("discard", unread) == (0, f"{unread}\tdiscarded\n")
    assert dlq("discard", unread)[0] == 1
    assert store.counts().dead_letters == 0


def test_what_the_broker_refused_is_taken_in_without_it_or_discarded(
    store: Store, store_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    file, spool = store_config.home / "attune.toml", Spool(store_config.spool_file)
    file.write_text(as_toml(store_config))
    spool.append([encode(vote("large")), encode(interaction()), encode(vote("other", name="fb-2"))])
    for row in spool.read(0, 3):
        spool.set_aside(row, "larger than the broker takes")
    assert main(["--config", str(file), "list"]) == 0
    assert capsys.readouterr().out.count("larger than the broker takes") == 3
    assert main(["--config", str(file), "discard", "refused/0/2"]) == 0
    assert main(["--config", str(file), "replay", "all"]) == 0
    assert store.counts() == StoreCounts(interactions=1, feedback=1, orphans=0, dead_letters=0)
    assert (spool.refused(), spool.count()) == ([], 0)
    spool.close()


def test_a_long_run_of_bad_events_stops_the_consumer_and_discards_nothing(bus: Bus, store: Store) -> None:
    section = FeedbackSection(max_dead_letters_in_a_row=5, batch_events=4)
    publish(bus, interaction(), *(corrupt(f"bad{n}") for n in range(5)), vote("e1"))
    drain(Consumer(bus, store, section))
    assert store.counts() == StoreCounts(interactions=1, feedback=1, orphans=0, dead_letters=5)
    publish(bus, *(corrupt(f"worse{n}") for n in range(20)), vote("e2", name="fb-2"))
    consumer = Consumer(bus, store, section)
    with pytest.raises(TooManyDeadLetters, match="max_dead_letters_in_a_row"):
        consumer.run(threading.Event())
    assert store.counts().dead_letters < 5 + 6
    drain(Consumer(bus, store, FeedbackSection()))
    assert store.counts() == StoreCounts(interactions=1, feedback=2, orphans=0, dead_letters=25)


def test_the_whole_log_read_again_changes_nothing(bus: Bus, store: Store, store_config: Config) -> None:
    publish(bus, vote("e1"), interaction(), vote("e2", value=-1, at=1002), corrupt(), withdrawal("e3", of="i9", name="fb-9"))
    drain(Consumer(bus, store, FeedbackSection()))
    before = (store.feedback_after(0), store.interactions_after(0), store.counts(), store.position())
    for _ in range(2):
        deliveries = bus.read({}, 1000, 1.0)
        publish(bus, *(delivery.record for delivery in deliveries if delivery.record.id != "bad"))
        drain(Consumer(bus, store, FeedbackSection()))
    assert (store.feedback_after(0), store.interactions_after(0), store.counts(), store.position()) == before


def test_of_two_consumers_the_zombie_is_fenced_and_catches_up(bus: Bus, store: Store, store_url: str) -> None:
    zombie, other = Consumer(bus, store, FeedbackSection()), Consumer(bus, Store.open(store_url), FeedbackSection())
    publish(bus, interaction())
    assert zombie.step() == 1
    publish(bus, vote("e1"))
    drain(other)
    publish(bus, vote("e2", value=-1, at=1002))
    with pytest.raises(Fenced):
        zombie.step()
    assert [s.feedback.event_id for s in store.feedback_after(0)] == ["e1"]
    stop, fenced = threading.Event(), fallen("attune_feedback_fenced_total")
    runner = threading.Thread(target=zombie.run, args=(stop,))
    runner.start()
    wait_for(lambda: [s.feedback.event_id for s in store.feedback_after(0)] == ["e2"])
    stop.set()
    runner.join(timeout=10)
    assert not runner.is_alive()
    assert fallen("attune_feedback_fenced_total") == fenced + 1
    other._store.close()


def wait_for(done: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


class Outage:
    """Takes a test's own database away, as its server or its disk would."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock: sqlite3.Connection | None = None

    def begin(self) -> None:
        if self._url.startswith("sqlite"):
            self._lock = sqlite3.connect(self._url.removeprefix("sqlite:///").partition("?")[0], isolation_level=None, timeout=30)
            self._lock.execute("BEGIN EXCLUSIVE")
        else:
            self._server("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
            self._server("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    def end(self) -> None:
        if self._lock is not None:
            self._lock.execute("ROLLBACK")
            self._lock.close()
        else:
            self._server("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")

    def _server(self, statement: str) -> None:
        name = self._url.partition("?")[0].rpartition("/")[2]
        with psycopg.connect(self._url.replace(name, "postgres"), autocommit=True) as connection:
            connection.execute(statement.format(name=name))


def test_while_the_database_is_away_nothing_is_lost(bus: Bus, store: Store, store_url: str) -> None:
    consumer, stop = Consumer(bus, store, FeedbackSection(batch_events=10)), threading.Event()
    runner = threading.Thread(target=consumer.run, args=(stop,))
    runner.start()
    outage, away = Outage(store_url), fallen("attune_feedback_unavailable_total")
    publish(bus, interaction(), vote("before", name="fb-before"))
    wait_for(lambda: store.counts().feedback == 1)
    outage.begin()
    publish(bus, *(vote(f"e{n}", name=f"fb-{n}") for n in range(50)), corrupt())
    wait_for(lambda: fallen("attune_feedback_unavailable_total") >= away + 1)
    outage.end()
    wait_for(lambda: _counted(store) == StoreCounts(interactions=1, feedback=51, orphans=0, dead_letters=1))
    stop.set()
    runner.join(timeout=10)
    assert not runner.is_alive()


def _counted(store: Store) -> StoreCounts | None:
    try:
        return store.counts()
    except Unavailable:
        return None


def test_orphans_are_counted_until_their_interaction_comes(bus: Bus, store: Store) -> None:
    publish(bus, vote("e1"), vote("e2", of="i2", name="fb-2"))
    drain(Consumer(bus, store, FeedbackSection()))
    assert fallen("attune_feedback_orphans") == 2
    publish(bus, interaction())
    drain(Consumer(bus, store, FeedbackSection()))
    assert fallen("attune_feedback_orphans") == 1
    Consumer(bus, store, FeedbackSection(orphan_lifetime_s=1e-6)).step()
    assert store.counts() == StoreCounts(interactions=1, feedback=1, orphans=0, dead_letters=1)


@pytest.fixture
def start() -> Iterator[Callable[[Path], "subprocess.Popen[bytes]"]]:
    """Starts the program; what still runs after the test is ended."""
    started: list[subprocess.Popen[bytes]] = []

    def one(config_file: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "feedback", "--config", str(config_file)]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
        return started[-1]

    yield one
    for program in started:
        if program.poll() is None:
            program.kill()
            program.communicate()


Start = Callable[[Path], "subprocess.Popen[bytes]"]


def test_a_consumer_killed_over_and_over_stores_every_event_once(bus: Bus, store: Store, store_config: Config, start: Start) -> None:
    file = store_config.home / "attune.toml"
    file.write_text(as_toml(store_config.model_copy(update={"feedback": FeedbackSection(batch_events=7)})))
    rng, enough, sent = random.Random(3), threading.Event(), []

    def feed() -> None:
        while not enough.wait(0.003):
            n = len(sent)
            halves = [interaction(f"i{n}", candidates=1, shown=[0]), vote(f"e{n}", of=f"i{n}")]
            publish(bus, *(halves if n % 2 else reversed(halves)), *(halves if n % 10 == 0 else ()))
            sent.append(n)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        for _ in range(3):
            program, seen = start(file), store.position()
            wait_for(lambda seen=seen: store.position() > seen)
            time.sleep(rng.uniform(0.0, 0.3))
            program.kill()
            program.communicate()
    finally:
        enough.set()
        feeder.join()
    program, total = start(file), len(sent)
    wait_for(lambda: store.counts().feedback == total)
    time.sleep(0.3)
    program.send_signal(signal.SIGTERM)
    program.communicate(timeout=30)
    assert program.returncode == 0
    assert store.counts() == StoreCounts(interactions=total, feedback=total, orphans=0, dead_letters=0)
    positions = [s.position for s in store.feedback_after(0, limit=100_000)]
    assert len(set(positions)) == total
    assert store.position() == 2 * total


def test_a_vote_can_be_asked_for_within_a_second(bus: Bus, store: Store) -> None:
    stop = threading.Event()
    runner = threading.Thread(target=Consumer(bus, store, FeedbackSection()).run, args=(stop,))
    runner.start()
    publish(bus, interaction())
    waits = []
    for n in range(20):
        begun = time.monotonic()
        publish(bus, vote(f"e{n}", name=f"fb-{n}"))
        wait_for(lambda n=n: store.counts().feedback == n + 1)
        waits.append(time.monotonic() - begun)
    stop.set()
    runner.join(timeout=10)
    assert sorted(waits)[18] <= 1.0, f"the slowest: {max(waits):.2f} s"


def test_the_program_says_in_one_line_what_is_wrong_with_the_configuration(tmp_path: Path, start: Start) -> None:
    (tmp_path / "bad.toml").write_text('[store]\nurl = "mysql://somewhere/else"\n')
    program = start(tmp_path / "bad.toml")
    _, complaint = program.communicate(timeout=60)
    assert program.returncode == 2
    assert complaint.decode().strip().splitlines()[-1].startswith("feedback: store.url:")
