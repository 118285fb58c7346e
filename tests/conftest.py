"""What every test shares: the plugins that start real parts, and a summary that names those that were met."""

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before anything loads torch: its threads wait by spinning, against the real parts beside them

import pytest

from tests.fixtures import MET

pytest_plugins = [
    "tests.fixtures.kafka",
    "tests.fixtures.postgres",
    "tests.fixtures.chromium",
    "tests.fixtures.running",
    "tests.fixtures.tiny_model",
    "tests.fixtures.engine",
]

ORDER = ("unit", "suites", "integration", "e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the quick tests first, so that a plain mistake shows in seconds."""
    items.sort(key=lambda item: next((i for i, part in enumerate(ORDER) if f"tests/{part}/" in item.nodeid), 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the real parts that this run was tested against."""
    if MET:
        terminalreporter.section("real parts met")
        for line in MET:
            terminalreporter.write_line(line)
