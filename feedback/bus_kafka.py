"""The bus over Kafka: two topics with equal partition counts, keyed by interaction id. The only file that imports `kafka`.

kafka-python's defaults lose data; each setting that differs says why. Positions come from the store: no consumer group is joined,
so nothing rebalances, and two readers at once are told apart by the store's compare-and-set on the offset rows.
"""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAlreadyExistsError,
)
from kafka.net.compat import KafkaNetClient

from attune.config import BusSection
from attune.errors import InvalidRecord, Unavailable
from attune.events import TOPICS, Record
from feedback.bus import MAX_RECORD_BYTES, Delivery, Partition, check_size

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S = 10.0
PUBLISH_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 2.0
LOOK_EVERY_MS = 60_000
"""How often the broker is asked whether an operator added partitions."""
MAX_REQUEST_BYTES = MAX_RECORD_BYTES + 100_000


class KafkaBus:
    """Writer or reader of the two topics; what it has not yet connected to raises `Unavailable`."""

    def __init__(self, section: BusSection, role: Literal["writer", "reader"]) -> None:
        self._section = section
        self._servers = [server.strip() for server in section.bootstrap.split(",")]
        self._topics = {name: f"{section.topic_prefix}.{name}" for name in sorted(set(TOPICS.values()))}
        self._producer: KafkaProducer | None = None
        self._consumer: KafkaConsumer | None = None
        self._partitions: list[Partition] = []
        self._reached: dict[Partition, int] = {}
        _knock(self._servers)
        self._create_topics()
        if role == "reader":
            self._open_consumer()

    def publish(self, records: Sequence[Record]) -> None:
        try:
            with _translated("publish"):
                producer = self._producer = self._producer or self._new_producer()
                futures = [self._send(producer, record) for record in records]
                for future in futures:
                    future.get(timeout=PUBLISH_TIMEOUT_S)
        except (Unavailable, InvalidRecord):
            # What is still in its buffers would pile up with every further try, and after one refusal kafka-python's producer fails
            # all that comes: begin anew (the consumer drops what arrives twice).
            self._close_producer(0.0)
            raise

    def assignments(self) -> list[Partition]:
        return list(self._partitions)

    def read(self, positions: Mapping[Partition, int], max_events: int, timeout_s: float) -> list[Delivery]:
        consumer = self._reader()
        with _translated("read"):
            if set(self._listed(consumer)) > set(self._partitions):
                self._assign(consumer)
                raise Unavailable("the topics have more partitions than before: all of them are read from now on")
            for partition in self._partitions:
                offset = positions.get(partition, 0)
                if self._reached.get(partition) != offset:
                    # Seeking throws away what was fetched ahead: only where the store disagrees with what was handed out.
                    consumer.seek(TopicPartition(partition.topic, partition.number), offset)
                    self._reached[partition] = offset
            fetched = consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_events)
        return [delivery for messages in fetched.values() for delivery in map(self._delivery, messages)]

    def end_offsets(self) -> Mapping[Partition, int]:
        names = [TopicPartition(p.topic, p.number) for p in self._partitions]
        with _translated("end_offsets"):
            ends = self._reader().end_offsets(names, timeout_ms=int(CONNECT_TIMEOUT_S * 1000))
        return {Partition(name.topic, name.partition): end for name, end in ends.items()}

    def forget(self, positions: Mapping[Partition, int]) -> None:
        """Does nothing: the topics' own retention deletes."""

    def versions(self) -> str:
        client = self._consumer or self._producer
        # The protocol tells no more than which release's requests the broker knows.
        return "Apache Kafka" + (f" {'.'.join(map(str, client.config['api_version']))}" if client else "")

    def close(self) -> None:
        self._close_producer(CLOSE_TIMEOUT_S)
        if self._consumer is not None:
            with suppress(KafkaError):
                self._consumer.close(autocommit=False, timeout_ms=int(CLOSE_TIMEOUT_S * 1000))
            self._consumer = None

    def _send(self, producer: KafkaProducer, record: Record):  # type: ignore[no-untyped-def]  # kafka-python has no types
        check_size(record)
        headers = [(name, value.encode()) for name, value in record.headers.items()]
        # An unknown type is for the consumer to judge: it goes to the dead letters there, with a reason.
        topic = self._topics[TOPICS.get(record.type, "feedback")]
        return producer.send(topic, value=record.body, key=record.key.encode() or None, headers=headers)

    def _delivery(self, message) -> Delivery:  # type: ignore[no-untyped-def]
        partition = Partition(message.topic, message.partition)
        if message.offset > self._reached.get(partition, 0) > 0:
            log.warning("log_gap", topic=partition.topic, partition=partition.number, start=self._reached[partition], end=message.offset)
        self._reached[partition] = message.offset + 1
        headers = {name: _text(value) for name, value in message.headers}
        return Delivery(partition, message.offset, Record(_text(message.key), headers, message.value or b""))

    def _new_producer(self) -> KafkaProducer:
        _knock(self._servers)
        return _connected(
            KafkaProducer,
            bootstrap_servers=self._servers,
            bootstrap_timeout_ms=int(CONNECT_TIMEOUT_S * 1000),
            acks="all",
            enable_idempotence=True,
            linger_ms=2,
            batch_size=262_144,
            max_block_ms=int(CONNECT_TIMEOUT_S * 1000),
            delivery_timeout_ms=int(PUBLISH_TIMEOUT_S * 1000),
            request_timeout_ms=10_000,
            max_request_size=MAX_REQUEST_BYTES,
            reconnect_backoff_max_ms=1000,
            allow_auto_create_topics=False,
        )

    def _open_consumer(self) -> None:
        with _translated("connect"):
            consumer = self._consumer = _connected(
                KafkaConsumer,
                bootstrap_servers=self._servers,
                bootstrap_timeout_ms=int(CONNECT_TIMEOUT_S * 1000),
                group_id=None,
                enable_auto_commit=False,  # the default commits what was read, not what was stored
                auto_offset_reset="earliest",  # the default skips what came before the first start
                isolation_level="read_committed",
                reconnect_backoff_max_ms=1000,
                fetch_max_wait_ms=250,
                allow_auto_create_topics=False,
                metadata_max_age_ms=LOOK_EVERY_MS,
            )
            self._assign(consumer)
        if {partition.topic for partition in self._partitions} != set(self._topics.values()):
            self.close()
            raise Unavailable(f"the broker does not name the partitions of {', '.join(self._topics.values())} yet")

    def _assign(self, consumer: KafkaConsumer) -> None:
        self._partitions, self._reached = self._listed(consumer), {}
        consumer.assign([TopicPartition(p.topic, p.number) for p in self._partitions])

    def _listed(self, consumer: KafkaConsumer) -> list[Partition]:
        """Return the partitions that the broker last told of; it is asked again every minute."""
        numbers = {topic: consumer.partitions_for_topic(topic) or set() for topic in self._topics.values()}
        return sorted(Partition(topic, number) for topic, some in numbers.items() for number in some)

    def _create_topics(self) -> None:
        with _translated("connect"):
            admin = _connected(
                KafkaAdminClient,
                bootstrap_servers=self._servers,
                bootstrap_timeout_ms=int(CONNECT_TIMEOUT_S * 1000),
                reconnect_backoff_max_ms=1000,
            )
            try:
                missing = sorted(set(self._topics.values()) - set(admin.list_topics()))
                settings = {"num_partitions": self._section.partitions, "configs": {"max.message.bytes": str(MAX_REQUEST_BYTES)}}
                with suppress(TopicAlreadyExistsError):  # another program was quicker
                    if missing:
                        admin.create_topics(dict.fromkeys(missing, settings), timeout_ms=int(CONNECT_TIMEOUT_S * 1000))
                admin.wait_for_topics(list(self._topics.values()), timeout_ms=int(CONNECT_TIMEOUT_S * 1000))
            finally:
                admin.close()

    def _reader(self) -> KafkaConsumer:
        if self._consumer is None:
            raise Unavailable("this bus was opened for writing")
        return self._consumer

    def _close_producer(self, timeout_s: float) -> None:
        if self._producer is not None:
            try:
                self._producer.close(timeout=timeout_s)  # without a timeout it may wait for ever
            except KafkaError:  # what it could not send in time: it raises before it tells its thread to end
                self._producer._sender.force_close()
            self._producer = None


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode(errors="replace")


def _connected(kind: Any, **settings: Any) -> Any:
    """Return a client of that kind; unlike its constructor alone, one that fails leaves no thread and no sockets behind."""
    made: list[KafkaNetClient] = []

    def network(**options: Any) -> Any:
        made.append(KafkaNetClient(**options))
        return made[-1]

    try:
        return kind(kafka_client=network, **settings)
    except BaseException:
        for each in made:
            each.close()
        raise


def _knock(servers: Sequence[str]) -> None:
    """Raise `Unavailable`, saying why, unless one of the servers takes connections; kafka-python would try on and not say."""
    faults = []
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
            return
        except (OSError, ValueError) as error:
            faults.append(f"{server}: {error}")
    raise Unavailable("Kafka is away: " + "; ".join(faults))


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
        raise InvalidRecord(f"the broker's limit for one event is lower than this event: {error}") from error
    except (KafkaError, OSError) as error:
        raise Unavailable(f"Kafka is away ({what}): {type(error).__name__}: {error}") from error
