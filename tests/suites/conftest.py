"""Each suite runs on every implementation: the buses on a SQLite file and on Kafka, the store on SQLite and on PostgreSQL."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from attune.config import BusSection, Config, StoreSection
from feedback.store import Store


@pytest.fixture(params=["embedded", "kafka"])
def bus_config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """A configuration whose log is empty."""
    if request.param == "embedded":
        return Config(home=tmp_path)
    broker = request.getfixturevalue("kafka_broker")
    section = BusSection(kind="kafka", bootstrap=broker.bootstrap, topic_prefix=f"t{uuid.uuid4().hex[:8]}", partitions=2)
    return Config(home=tmp_path, bus=section)


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}?timeout=1"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store.open(store_url)
    yield opened
    opened.close()


@pytest.fixture
def store_config(store_url: str, tmp_path: Path) -> Config:
    """A configuration with this store and the embedded log."""
    return Config(home=tmp_path, store=StoreSection(url=store_url))
