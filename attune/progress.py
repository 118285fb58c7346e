"""One line that says what is being done: rewritten in place on a terminal, a plain line per change elsewhere."""

import sys
from typing import TextIO


class Progress:
    """A progress line on a text stream."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()  # whether somebody watches it change
        self._shown = ""

    @property
    def watched(self) -> bool:
        """Whether the line is rewritten in place, on a terminal."""
        return self._live

    def doing(self, text: str) -> None:
        """Show what is being done now; the same words with another number count as no change where lines are kept."""
        if self._live:
            self._stream.write(f"\r\x1b[K{text}")
        elif _wordy(text) != _wordy(self._shown):
            self._stream.write(text + "\n")
        self._shown = text
        self._stream.flush()

    def note(self, text: str) -> None:
        """Leave a line that stays."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._live else text + "\n")
        self._stream.flush()

    def done(self) -> None:
        """Clear the line."""
        if self._live and self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
        self._shown = ""


def _wordy(text: str) -> str:
    return "".join(c for c in text if not c.isdigit())
