"""`python -m serve`: what can fail at once fails at once, with exit status 2, before the heavy libraries are loaded."""

import argparse
import asyncio
import os
import socket
import sys
from pathlib import Path

from attune import config as configuration
from attune.config import Config
from attune.errors import ConfigError, RegistryError
from attune.registry import Registry
from attune.telemetry import setup_logging
from attune.terms import Terms
from serve import keys

BACKLOG = 2048


def main(argv: list[str] | None = None) -> int:
    """Run the server until it is told to stop; return the exit status (2: the configuration needs a change)."""
    parser = argparse.ArgumentParser(prog="attune serve", description="Answer chat requests and take votes.")
    parser.add_argument("--config", type=Path, help="configuration file (TOML)")
    arguments = parser.parse_args(argv)
    setup_logging("serve")
    os.umask(0o077)  # what people write is nobody else's business on this machine
    try:
        config = configuration.load(arguments.config)
        Terms.load(config.terms)
        with _bind(config) as listener:
            secrets, registry = keys.load(config.home), _registry(config)
            from serve.server import run  # loads torch and vLLM: half a minute on a busy machine

            return asyncio.run(run(config, secrets, registry, listener))
    except ConfigError as error:
        print(f"attune serve: {error}", file=sys.stderr)
        return 2


def _bind(config: Config) -> socket.socket:
    serve = config.serve
    listener = socket.socket(socket.AF_INET6 if ":" in serve.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((serve.host, serve.port))
        # Already now: two sockets that are merely bound do not mind each other, and the second server would fail after half a minute.
        # Who asks before the engine is ready waits for it.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {serve.host}:{serve.port} ({error.strerror}): stop what uses it, or set ATTUNE_SERVE__PORT to another port"
        ) from error
    return listener


def _registry(config: Config) -> Registry:
    registry = Registry(config.registry_folder)
    try:
        registry.log()
        registry.check_base(config.model_identity, config.model_revision)
    except RegistryError as error:
        raise ConfigError(f"{config.registry_folder}: {error}") from error
    return registry
