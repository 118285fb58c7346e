"""The operator's way to the dead letters: `python -m feedback.dlq list | show | replay | discard`.

A replay takes the events in as if they arrived now and is harmless to repeat. What cannot be read still stays where it is.
"""

import argparse
import sys
from pathlib import Path

from attune.config import load
from attune.errors import AttuneError
from feedback.dead_letters import DeadLetter
from feedback.store import Store


def main(arguments: list[str] | None = None) -> int:
    """Carry out one command and return the exit code: 0 done, 1 something could not be done, 2 wrongly asked."""
    parser = argparse.ArgumentParser(prog="python -m feedback.dlq", description="Events that could not be taken in.")
    parser.add_argument("--config", type=Path, help="TOML file; default: $ATTUNE_CONFIG, else ./attune.toml if there is one")
    parser.add_argument("command", choices=["list", "show", "replay", "discard"])
    parser.add_argument("names", nargs="*", metavar="TOPIC/PARTITION/OFFSET", help="which ones, as `list` names them; or `all`")
    asked = parser.parse_args(arguments)
    try:
        store = Store.open(load(asked.config).store_url)
    except AttuneError as error:
        print(f"dlq: {error}", file=sys.stderr)
        return 2
    try:
        return _run(store, asked.command, set(asked.names))
    finally:
        store.close()


def _run(store: Store, command: str, names: set[str]) -> int:
    letters = [letter for letter in store.dead_letters(limit=10_000) if command == "list" or names & {"all", letter.name}]
    failed = bool(names - {"all"} - {letter.name for letter in letters})
    if command != "list" and not letters:
        print("dlq: no such dead letter; `list` names those there are, `all` means every one", file=sys.stderr)
        return 1
    for letter in letters:
        failed |= not _one(store, command, letter)
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
