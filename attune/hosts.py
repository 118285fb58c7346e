"""Which addresses mean this machine."""

from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Return whether a host name or address, with or without brackets, is this machine's own and nobody else's.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.9", "[::1]", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    try:
        return host.lower() == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_here(url: str) -> bool:
    """Return whether a URL leads to this machine: no proxy of the environment's may come between, which would see the key and the text."""
    return is_loopback(urlsplit(url).hostname or "")
