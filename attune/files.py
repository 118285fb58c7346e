"""Files that are there after a power failure."""

import hashlib
import os
from functools import cache
from pathlib import Path

SAMPLE_BYTES = 1 << 20


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


@cache
def fingerprint(model: Path) -> str:
    """Return a digest of a model folder's configuration and of samples of its weights (the ends of each file); empty if there are none."""
    digest, weights = hashlib.sha256(), sorted(model.glob("*.safetensors"))
    for file in weights:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as data:
            digest.update(data.read(SAMPLE_BYTES))
            data.seek(max(0, size - SAMPLE_BYTES))
            digest.update(data.read(SAMPLE_BYTES))
    if (model / "config.json").is_file():
        digest.update((model / "config.json").read_bytes())
    return digest.hexdigest()[:16] if weights else ""
