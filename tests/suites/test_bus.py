"""One suite for every bus: what was acknowledged is read, in order, as often as asked, by whoever asks."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from attune.config import BusSection, Config, as_toml
from attune.errors import InvalidRecord, Unavailable
from attune.events import Record, encode
from attune.types import Kind
from feedback import bus_kafka, outbox_metrics
from feedback.bus import MAX_OFFERED, MAX_RECORD_BYTES, Bus, Delivery, Outbox, Partition, open_bus
from feedback.bus_embedded import EmbeddedBus
from feedback.spool import Spool
from tests.fixtures.kafka import Broker
from tests.suites.events import interaction, vote

Open = Callable[[str], Bus]


@pytest.fixture
def opened(bus_config: Config) -> Iterator[Open]:
    """Opens buses and closes them after the test."""
    buses: list[Bus] = []

    def open_one(role: str) -> Bus:
        buses.append(open_bus(bus_config, "writer" if role == "writer" else "reader"))
        return buses[-1]

    yield open_one
    for bus in buses:
        bus.close()


def read_all(bus: Bus, number: int, positions: dict[Partition, int] | None = None, timeout_s: float = 30.0) -> list[Delivery]:
    """Read until `number` events are there, moving `positions` along."""
    places = dict.fromkeys(bus.assignments(), 0) if positions is None else positions
    found: list[Delivery] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < number and time.monotonic() < deadline:
        for delivery in bus.read(places, 100, 0.2):
            found.append(delivery)
            places[delivery.partition] = delivery.offset + 1
    return found


def votes(number: int, prefix: str = "e", keys: int = 5) -> list[Record]:
    return [encode(vote(f"{prefix}{i}", of=f"i{i % keys}")) for i in range(number)]


def test_what_is_published_is_read_exactly_and_in_order_of_its_key(opened: Open) -> None:
    records = [
        encode(interaction("i0")),
        *votes(30),
        Record("i0", {"ce_id": "x", "ce_type": "unknown", "note": "\N{SNOWMAN}"}, b"\x00\xff"),
    ]
    opened("writer").publish(records)
    found = [delivery.record for delivery in read_all(opened("reader"), len(records))]
    assert sorted(found, key=lambda r: r.id) == sorted(records, key=lambda r: r.id)
    for key in {record.key for record in records}:
        of_key = [r.id for r in found if r.key == key and "feedback" in r.type]
        assert of_key == [r.id for r in records if r.key == key and "feedback" in r.type]


def test_the_log_is_read_again_from_any_position(opened: Open) -> None:
    opened("writer").publish(votes(25))
    reader = opened("reader")
    first, second = read_all(reader, 25), read_all(reader, 25)
    other = read_all(opened("reader"), 25)
    key = lambda d: (d.partition, d.offset)  # noqa: E731
    assert sorted(first, key=key) == sorted(second, key=key) == sorted(other, key=key)
    last = max(first, key=key)
    assert last in reader.read({**{p: 10**6 for p in reader.assignments() if p != last.partition}, last.partition: last.offset}, 100, 5.0)


def test_end_offsets_are_the_positions_of_one_who_has_read_all(opened: Open) -> None:
    writer, reader = opened("writer"), opened("reader")
    assert set(reader.end_offsets().values()) == {0}
    writer.publish(votes(12))
    positions = dict.fromkeys(reader.assignments(), 0)
    read_all(reader, 12, positions)
    assert dict(reader.end_offsets()) == positions


def test_a_read_returns_no_more_than_asked_for_and_nothing_when_there_is_nothing(opened: Open) -> None:
    writer, reader = opened("writer"), opened("reader")
    positions = dict.fromkeys(reader.assignments(), 0)
    begun = time.monotonic()
    assert reader.read(positions, 10, 0.2) == []
    assert time.monotonic() - begun < 5.0
    writer.publish(votes(10))
    assert 0 < len(reader.read(positions, 3, 10.0)) <= 3


def test_many_writers_at_once_lose_and_repeat_nothing(opened: Open) -> None:
    writer = opened("writer")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: writer.publish(votes(20, prefix=f"w{n}-")), range(16)))
    found = [delivery.record.id for delivery in read_all(opened("reader"), 320)]
    assert len(found) == 320
    assert len(set(found)) == 320


def test_a_record_that_is_too_large_is_refused_and_the_next_one_is_not(opened: Open) -> None:
    writer = opened("writer")
    with pytest.raises(InvalidRecord):
        writer.publish([Record("i0", {"ce_id": "huge"}, b"x" * (MAX_RECORD_BYTES + 1))])
    large = Record("i0", {"ce_id": "large"}, b"x" * MAX_RECORD_BYTES)
    writer.publish([large])
    assert read_all(opened("reader"), 1)[0].record == large


def test_a_log_that_is_older_than_the_store_is_read_from_its_start(tmp_path: Path) -> None:
    """An older backup of the log was put back beside the store: what is acknowledged from now on must not be passed over."""
    bus = EmbeddedBus(tmp_path / "spool.sqlite")
    bus.publish(votes(2))
    (partition,) = bus.assignments()
    assert [d.offset for d in bus.read({partition: 2}, 9, 0.0)] == []
    assert [d.offset for d in bus.read({partition: 10_000}, 9, 0.0)] == [0, 1]


def test_the_version_is_named(opened: Open) -> None:
    assert any(char.isdigit() for char in opened("reader").versions())


async def test_what_the_outbox_acknowledges_reaches_the_reader(bus_config: Config, opened: Open) -> None:
    outbox = Outbox(bus_config)
    await outbox.start()
    try:
        assert outbox.offer(encode(interaction("i0")))
        await asyncio.gather(*(outbox.put(record) for record in votes(400)))
        found = await asyncio.to_thread(read_all, opened("reader"), 401)
        assert len({delivery.record.id for delivery in found}) == 401
        for _ in range(500):
            if outbox.waiting == 0:
                break
            await asyncio.sleep(0.01)
        assert outbox.waiting == 0
    finally:
        await outbox.stop()


async def test_a_caller_that_goes_away_does_not_harm_those_beside_it(bus_config: Config, opened: Open) -> None:
    outbox = Outbox(bus_config)
    await outbox.start()
    try:
        tasks = [asyncio.create_task(outbox.put(record)) for record in votes(40)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks[1::2])
        # Whether an abandoned one was written is open; those that were awaited are there.
        found = {d.record.id for d in await asyncio.to_thread(read_all, opened("reader"), 40, None, 2.0)}
        assert {f"e{i}" for i in range(1, 40, 2)} <= found
    finally:
        await outbox.stop()


async def test_offers_are_shed_when_the_disk_stalls_and_puts_still_wait(tmp_path: Path) -> None:
    config = Config(home=tmp_path)
    outbox = Outbox(config)
    assert not outbox.offer(encode(interaction()))
    with pytest.raises(Unavailable):
        await outbox.put(encode(vote("early")))
    await outbox.start()
    blocker = sqlite3.connect(config.spool_file, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    record = encode(vote("offered"))
    taken = sum(outbox.offer(record) for _ in range(MAX_OFFERED + 50))
    assert taken == MAX_OFFERED
    waiting = asyncio.create_task(outbox.put(encode(vote("put"))))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    blocker.execute("ROLLBACK")
    blocker.close()
    await waiting
    await outbox.stop()
    assert outbox.waiting == 0
    assert Spool(config.spool_file).count() == MAX_OFFERED + 1


WRITER = """
import asyncio, sys
from pathlib import Path
from attune.config import load
from attune.events import encode
from feedback.bus import Outbox
from tests.suites.events import vote

async def main():
    outbox = Outbox(load(Path(sys.argv[1])))
    await outbox.start()
    async def one(worker):
        for i in range(100_000):
            await outbox.put(encode(vote(f"{worker}-{i}")))
            print(f"{worker}-{i}", flush=True)
    await asyncio.gather(*(one(w) for w in range(20)))

asyncio.run(main())
"""


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(tmp_path: Path) -> None:
    config = Config(home=tmp_path)
    (tmp_path / "attune.toml").write_text(as_toml(config))
    acknowledged: list[str] = []
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "attune.toml")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as writer:
            assert writer.stdout is not None
            acknowledged += [writer.stdout.readline().strip() for _ in range(300)]
            writer.kill()
            acknowledged += [line.strip() for line in writer.stdout.read().split("\n")[:-1]]
    spool = Spool(config.spool_file)
    stored = [record.id for _, record in spool.read(0, 10**6)]
    assert len(acknowledged) >= 900
    assert all(stored.count(event_id) >= acknowledged.count(event_id) for event_id in set(acknowledged))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kafka-python leaves refused connections to the collector
async def test_votes_are_taken_while_the_broker_is_away_and_reach_it_later(
    kafka_broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if not kafka_broker.own:
        pytest.skip("the broker is not ours to kill")
    caplog.set_level(logging.CRITICAL, logger="kafka")  # records kept for the report would hold tracebacks, and these the sockets
    assert await _arrived_around_an_outage(kafka_broker, tmp_path) == 150
    gc.collect()


def test_tries_to_reach_a_broker_that_is_away_leave_nothing_open() -> None:
    section = BusSection(kind="kafka", bootstrap="127.0.0.1:1")
    config, before = Config(bus=section), (len(os.listdir("/proc/self/fd")), threading.active_count())
    for _ in range(20):
        with pytest.raises(Unavailable, match="Kafka is away"):
            open_bus(config, "writer")
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) <= before


def test_a_producer_that_is_given_up_with_events_in_flight_ends_its_thread(kafka_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    if kafka_broker.process is None:
        pytest.skip("the broker is not ours to stop")
    section = BusSection(kind="kafka", bootstrap=kafka_broker.bootstrap, topic_prefix=f"late-{uuid.uuid4().hex[:8]}", partitions=1)
    before, writer = threading.active_count(), open_bus(Config(bus=section), "writer")
    writer.publish(votes(1, "in time"))
    monkeypatch.setattr(bus_kafka, "PUBLISH_TIMEOUT_S", 0.5)
    kafka_broker.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="Kafka is away"):
            writer.publish(votes(50, "too late"))
        until = time.monotonic() + 15
        while threading.active_count() > before and time.monotonic() < until:
            time.sleep(0.02)
        assert threading.active_count() <= before
    finally:
        kafka_broker.process.send_signal(signal.SIGCONT)
    writer.close()


def test_partitions_that_an_operator_adds_are_read_from_their_beginning(kafka_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_kafka, "LOOK_EVERY_MS", 200)
    prefix = f"grown-{uuid.uuid4().hex[:8]}"
    config = Config(bus=BusSection(kind="kafka", bootstrap=kafka_broker.bootstrap, topic_prefix=prefix, partitions=1))
    reader = open_bus(config, "reader")
    assert [(p.topic, p.number) for p in reader.assignments()] == [(f"{prefix}.feedback", 0), (f"{prefix}.interactions", 0)]
    admin = KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap)
    admin.create_partitions({f"{prefix}.feedback": 3, f"{prefix}.interactions": 3}, timeout_ms=10_000)
    admin.close()
    writer = open_bus(config, "writer")
    records = votes(60, "grown")
    writer.publish(records)
    positions: dict[Partition, int] = {}
    found: list[str] = []
    until = time.monotonic() + 30
    while len(found) < len(records) and time.monotonic() < until:
        try:
            for delivery in reader.read(positions, 100, 0.2):
                positions[delivery.partition] = delivery.offset + 1
                found.append(delivery.record.id)
        except Unavailable:
            assert len(reader.assignments()) == 6
    reader.close()
    writer.close()
    assert sorted(found) == sorted(record.id for record in records)
    assert any(partition.number for partition in positions)  # of the new ones


async def test_an_event_that_the_broker_will_never_take_is_kept_and_stops_nobody(kafka_broker: Broker, tmp_path: Path) -> None:
    prefix = f"small-{uuid.uuid4().hex[:8]}"
    section = BusSection(kind="kafka", bootstrap=kafka_broker.bootstrap, topic_prefix=prefix, partitions=1)
    config = Config(home=tmp_path, bus=section)
    reader = await asyncio.to_thread(open_bus, config, "reader")
    admin = KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap)
    lower = ConfigResource(ConfigResourceType.TOPIC, f"{prefix}.feedback", configs={"max.message.bytes": "2000"})
    await asyncio.to_thread(admin.alter_configs, [lower])
    admin.close()
    refused, outbox = outbox_metrics.RELAY_REFUSED._value.get(), Outbox(config)
    await outbox.start()
    large = encode(vote("large", value="x" * 5000, kind=Kind.EDIT))
    await asyncio.gather(*(outbox.put(record) for record in (*votes(3, "before"), large, *votes(3, "after"))))
    good = {record.id for record in (*votes(3, "before"), *votes(3, "after"))}
    positions, found = dict.fromkeys(reader.assignments(), 0), set[str]()
    until = time.monotonic() + 20
    while found < good and time.monotonic() < until:  # some arrive twice
        found |= {delivery.record.id for delivery in await asyncio.to_thread(read_all, reader, 1, positions, 2.0)}
    while outbox.waiting and time.monotonic() < until:
        await asyncio.sleep(0.02)
    assert outbox.waiting == 0
    await outbox.stop()
    await asyncio.to_thread(reader.close)
    assert found == good
    assert outbox_metrics.RELAY_REFUSED._value.get() == refused + 1
    with sqlite3.connect(config.spool_file) as db:
        ((key, body, reason),) = db.execute("SELECT key, body, reason FROM refused").fetchall()
    assert (key, body) == (large.key, large.body)
    assert "lower than this event" in reason


async def _arrived_around_an_outage(broker: Broker, home: Path) -> int:
    """Put 50 votes before, while and after the broker is dead; return how many different ones a reader saw."""
    section = {"kind": "kafka", "bootstrap": broker.bootstrap, "topic_prefix": f"away-{home.name}", "partitions": 2}
    config = Config.model_validate({"home": home, "bus": section})
    reader = await asyncio.to_thread(open_bus, config, "reader")
    outbox = Outbox(config)
    await outbox.start()
    await asyncio.gather(*(outbox.put(record) for record in votes(50, "before")))
    broker.kill()
    try:
        await asyncio.gather(*(outbox.put(record) for record in votes(50, "while")))
        assert outbox.waiting > 0
    finally:
        await asyncio.to_thread(broker.start)
    await asyncio.gather(*(outbox.put(record) for record in votes(50, "after")))
    positions = dict.fromkeys(reader.assignments(), 0)
    found: set[str] = set()
    deadline = time.monotonic() + 90
    while len(found) < 150 and time.monotonic() < deadline:
        found |= {delivery.record.id for delivery in await asyncio.to_thread(read_all, reader, 1, positions, 5.0)}
    await outbox.stop()
    await asyncio.to_thread(reader.close)
    return len(found)


@pytest.mark.slow
def test_a_broker_that_takes_connections_but_never_answers_is_away_and_leaves_no_thread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        section = BusSection(kind="kafka", bootstrap=f"127.0.0.1:{mute.getsockname()[1]}")
        with pytest.raises(Unavailable, match="Kafka is away"):
            open_bus(Config(bus=section), "reader")
    assert not [thread.name for thread in threading.enumerate() if "kafka" in thread.name]
