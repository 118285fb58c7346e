"""Files that are there after a power failure."""

import os
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and return once its content is on the disk; whether its name is, is its folder's business (`sync_folder`)."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return once what a folder holds by name is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
