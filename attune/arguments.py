"""What numbers on a command line may be, for `argparse`: each raises the error that it turns into one line."""

import argparse


def count(text: str) -> int:
    """Return a whole number of 1 or more."""
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def whole(text: str) -> int:
    """Return a whole number of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must lie between 0 and 1")
    return value


def temperature(text: str) -> float:
    """Return a number from 0 to 2, which is what the API takes."""
    value = float(text)
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError("must lie between 0 and 2")
    return value
