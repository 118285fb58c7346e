"""Puts the server together, in the order in which things can fail early: configuration, port, store, engine, versions, then HTTP."""

import argparse
import asyncio
import random
import socket
import sys
import time
from pathlib import Path
from typing import Protocol

import structlog
import uvicorn

from attune import config as configuration
from attune.config import Config
from attune.errors import ConfigError
from attune.prompt import prompt_version
from attune.registry import Registry
from attune.telemetry import setup_logging
from feedback.bus import Outbox
from feedback.views import Views
from serve import adapter, keys
from serve.answer import Answerer
from serve.app import make_app
from serve.pending import Pending
from serve.recent import RecentInteractions
from serve.slot import Slots
from serve.swap import Swapper
from serve.tokens import Tokens

log = structlog.get_logger()


def main(argv: list[str] | None = None) -> int:
    """Run the server until it is told to stop; return the exit status (2: the configuration needs a change)."""
    parser = argparse.ArgumentParser(prog="attune serve", description="Answer chat requests and take votes.")
    parser.add_argument("--config", type=Path, help="configuration file (TOML)")
    arguments = parser.parse_args(argv)
    setup_logging("serve")
    try:
        config = configuration.load(arguments.config)
        with _bind(config) as listener:
            return asyncio.run(_serve(config, listener))
    except ConfigError as error:
        print(f"attune serve: {error}", file=sys.stderr)
        return 2


def _bind(config: Config) -> socket.socket:
    serve = config.serve
    listener = socket.socket(socket.AF_INET6 if ":" in serve.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((serve.host, serve.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {serve.host}:{serve.port} ({error.strerror}): stop what uses it, or set ATTUNE_SERVE__PORT to another port"
        ) from error
    return listener


async def _serve(config: Config, listener: socket.socket) -> int:
    from serve import engine as vllm_engine  # heavy: only once the cheap checks have passed
    from serve.engine_openai import Chat
    from serve.engine_proxy import EngineProxy
    from serve.scorer import Scorer

    secrets = keys.load(config.home)
    views = await asyncio.to_thread(Views, config.store_url)
    outbox = Outbox(config)
    seed = config.serve.seed if config.serve.seed is not None else random.SystemRandom().getrandbits(31)
    log.info("starting_engine", model=config.model_identity, seed=seed)
    engine = await vllm_engine.start(config, seed)
    scorer = await asyncio.to_thread(Scorer.open, config)
    await outbox.start()
    slots, registry, recent = Slots(), Registry(config.registry_folder), RecentInteractions()
    folder = await asyncio.to_thread(vllm_engine.weights_folder, config)
    shapes = await asyncio.to_thread(adapter.base_shapes, folder)
    swapper = Swapper(config, registry, engine, slots, scorer, shapes)
    await swapper.once()
    proxy = EngineProxy(engine, Answerer(slots, scorer, outbox, recent, prompt_version(folder), seed))
    state = {
        "config": config, "secrets": secrets, "views": views, "outbox": outbox, "engine": engine, "scorer": scorer,
        "slots": slots, "registry": registry, "recent": recent, "swapper": swapper, "proxy": proxy,
        "chat": await Chat.open(config, proxy), "pending": Pending(), "active": 0, "started_at": time.time(),
        "tokens": Tokens(secrets.token_secret, config.serve.token_lifetime_s),
    }  # fmt: skip
    server = uvicorn.Server(uvicorn.Config(make_app(state), log_config=None, access_log=False, timeout_graceful_shutdown=8))
    loops = [asyncio.create_task(swapper.follow()), asyncio.create_task(_watch(engine, server))]
    log.info("ready", host=config.serve.host, port=listener.getsockname()[1], policy_version=slots.live)
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in loops:
            task.cancel()
        await outbox.stop()
        await engine.close()
    return 1 if engine.dead else 0


class Mortal(Protocol):
    """What can be seen of an engine from here."""

    @property
    def dead(self) -> bool: ...


async def _watch(engine: Mortal, server: uvicorn.Server) -> None:
    """End the server when its engine has died: whoever watches it starts a new one with a clean engine."""
    while not engine.dead:
        await asyncio.sleep(0.5)
    log.error("engine_died")
    server.should_exit = True
