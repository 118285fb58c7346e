"""The operator's way to the dead letters: `python -m feedback.dlq list | show | replay | discard`.

A replay takes the events in as if they arrived now and is harmless to repeat. What cannot be read still stays where it is. Events that
a broker will never take are listed beside those that the consumer could not read; a replay writes them to the store without the broker.
"""

import argparse
import sys
from pathlib import Path

from attune.config import load
from attune.errors import AttuneError
from feedback.bus import Partition
from feedback.dead_letters import DeadLetter
from feedback.spool import Spool
from feedback.store import Store

REFUSED = Partition("refused", 0)
"""Where events stand that the broker refused: their offsets are those of the spool."""


def main(arguments: list[str] | None = None) -> int:
    """Carry out one command and return the exit code: 0 done, 1 something could not be done, 2 wrongly asked."""
    parser = argparse.ArgumentParser(prog="python -m feedback.dlq", description="Events that could not be taken in.")
    parser.add_argument("--config", type=Path, help="TOML file; default: $ATTUNE_CONFIG, else ./attune.toml if there is one")
    parser.add_argument("command", choices=["list", "show", "replay", "discard"])
    parser.add_argument("names", nargs="*", metavar="TOPIC/PARTITION/OFFSET", help="which ones, as `list` names them; or `all`")
    asked = parser.parse_args(arguments)
    try:
        config = load(asked.config)
        store, spool = Store.open(config.store_url), Spool(config.spool_file)
    except AttuneError as error:
        print(f"dlq: {error}", file=sys.stderr)
        return 2
    try:
        return _run(store, spool, asked.command, set(asked.names))
    finally:
        spool.close()
        store.close()


def _run(store: Store, spool: Spool, command: str, names: set[str]) -> int:
    refused = (DeadLetter(REFUSED, offset, reason, r.key, r.headers, r.body) for (offset, r), reason in spool.refused())
    letters = [letter for letter in (*store.dead_letters(limit=10_000), *refused) if command == "list" or names & {"all", letter.name}]
    failed = bool(names - {"all"} - {letter.name for letter in letters})
    if command != "list" and not letters:
        print("dlq: no such dead letter; `list` names those there are, `all` means every one", file=sys.stderr)
        return 1
    for letter in letters:
        done = _one(store, command, letter)
        failed |= not done
        if done and letter.partition == REFUSED and command in ("replay", "discard"):
            spool.forget_refused(letter.offset)
    return int(failed)


def _one(store: Store, command: str, letter: DeadLetter) -> bool:
    match command:
        case "list":
            print(f"{letter.name}\t{letter.record.type or '?'}\t{letter.reason}")
        case "show":
            print(
                f"{letter.name}: {letter.reason}",
                *(f"{name}: {value}" for name, value in letter.headers.items()),
                repr(letter.body),
                sep="\n",
            )
        case "replay":
            fault = store.replay(letter)
            print(f"{letter.name}\t{'taken in' if fault is None else 'left: ' + fault}")
            return fault is None
        case "discard":
            store.discard(letter)
            print(f"{letter.name}\tdiscarded")
    return True


if __name__ == "__main__":
    sys.exit(main())
