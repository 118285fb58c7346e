"""What several unit tests stand on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.world import World


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path) -> Iterator[World]:
    made = World(tmp_path, tiny_model)
    yield made
    made.store.close()
