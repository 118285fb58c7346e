"""The feedback program: `python -m feedback [--config FILE]` moves events into the store until it is told to stop.

Exit codes: 0 stopped, 2 the configuration has to change, 3 too many bad events in a row.
"""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

import structlog

from attune.config import Config, load
from attune.errors import ConfigError, TooManyDeadLetters, Unavailable
from attune.telemetry import expose, setup_logging
from feedback.bus import Bus, open_bus
from feedback.consumer import Consumer
from feedback.store import Store

log = structlog.get_logger(__name__)

RETRY_S = 1.0


def main() -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m feedback", description="Move interactions and votes from the event log into the store."
    )
    parser.add_argument("--config", type=Path, help="TOML file; default: $ATTUNE_CONFIG, else ./attune.toml if there is one")
    file = parser.parse_args().config
    os.umask(0o077)  # what people wrote is nobody else's business on this machine
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        config = load(file)
        setup_logging("feedback")
        return run(config, stop)
    except ConfigError as error:
        print(f"feedback: {error}", file=sys.stderr)
        return 2
    except TooManyDeadLetters as error:
        print(f"feedback: {error}", file=sys.stderr)
        return 3


def run(config: Config, stop: threading.Event) -> int:
    """Connect, however long it takes, and consume until `stop` is set."""
    expose(config.feedback.metrics_port, "feedback")
    parts: tuple[Store, Bus] | None = None
    while parts is None and not stop.is_set():
        parts = _connect(config, stop)
    if parts is not None:
        store, bus = parts
        log.info("consuming", bus=bus.versions())
        try:
            Consumer(bus, store, config.feedback).run(stop)
        finally:
            bus.close()
            store.close()
    log.info("stopped")
    return 0


def _connect(config: Config, stop: threading.Event) -> tuple[Store, Bus] | None:
    try:
        store = Store.open(config.store_url)
        try:
            return store, open_bus(config, "reader")
        except BaseException:
            store.close()
            raise
    except Unavailable as error:
        log.warning("not_connected", error=str(error), retry_in_s=RETRY_S)
        stop.wait(RETRY_S)
        return None


if __name__ == "__main__":
    sys.exit(main())
