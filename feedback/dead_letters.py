"""What becomes of an event that cannot be taken in: kept as it was read, with the reason; too many in a row stop the consumer.

`judge` is pure. A long run of bad events is more likely a bad release of ours than bad events, and stopping loses nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attune.errors import InvalidRecord, TooManyDeadLetters
from attune.events import Record, decode, encode
from attune.types import Feedback, Interaction, Withdrawal
from feedback.bus import Delivery, Partition
from feedback.rows import check_storable


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event that could not be taken in, and where in the log it stood."""

    partition: Partition
    offset: int
    reason: str
    key: str
    headers: Mapping[str, str]
    body: bytes
    attempts: int = 1

    @property
    def name(self) -> str:
        """How an operator names it."""
        return f"{self.partition.topic}/{self.partition.number}/{self.offset}"

    @property
    def record(self) -> Record:
        """The event as it was read."""
        return Record(self.key, self.headers, self.body)


@dataclass(frozen=True, slots=True)
class Judged:
    """A batch, sorted into what can be taken in and what cannot."""

    events: tuple[Interaction | Feedback | Withdrawal, ...]
    dead: tuple[DeadLetter, ...]
    run: int
    """How many of the last events in a row, this batch's and those before it, were bad."""


def judge(deliveries: Sequence[Delivery], run: int, max_run: int) -> Judged:
    """Decode a batch; `run` bad events came just before it. Raises `TooManyDeadLetters` at more than `max_run` in a row."""
    events: list[Interaction | Feedback | Withdrawal] = []
    dead: list[DeadLetter] = []
    for delivery in deliveries:
        try:
            event = decode(delivery.record)
            check_storable(event)
        except InvalidRecord as error:
            dead.append(letter(delivery, str(error)))
            run += 1
            if run > max_run:
                raise TooManyDeadLetters(
                    f"{run} events in a row cannot be read (the last: {error}); none of this batch was set aside. If they are"
                    " really bad, raise feedback.max_dead_letters_in_a_row and start again"
                ) from error
        else:
            events.append(event)
            run = 0
    return Judged(tuple(events), tuple(dead), run)


def letter(delivery: Delivery, reason: str) -> DeadLetter:
    """Return the dead letter of a delivery."""
    record = delivery.record
    return DeadLetter(delivery.partition, delivery.offset, reason, record.key, record.headers, record.body)


def expired(vote: Feedback, partition: Partition, offset: int) -> DeadLetter:
    """Return the dead letter of a vote whose interaction never came."""
    record = encode(vote)
    return DeadLetter(partition, offset, "its interaction never came", record.key, record.headers, record.body)
