"""Puts the server together: store, engine, versions, then HTTP; and takes it apart again."""

import asyncio
import random
import signal
import socket
import time

import structlog
import uvicorn

from attune.config import Config
from attune.prompt import prompt_version
from attune.registry import Registry
from feedback.bus import Outbox
from feedback.views import Views
from serve import adapter
from serve import engine as vllm_engine
from serve.announcer import Announcer
from serve.answer import Answerer
from serve.app import make_app
from serve.engine_openai import Chat
from serve.engine_proxy import EngineProxy
from serve.keys import Secrets
from serve.pending import Pending
from serve.recent import RecentInteractions
from serve.scorer import Scorer
from serve.slot import Slots
from serve.swap import Swapper
from serve.tokens import Tokens

log = structlog.get_logger()


async def run(config: Config, secrets: Secrets, registry: Registry, listener: socket.socket) -> int:
    """Serve until told to stop; return the exit status (1: the engine died and could not be replaced)."""
    views = await asyncio.to_thread(Views, config.store_url, config.objectives)
    outbox = Outbox(config)
    seed = config.serve.seed if config.serve.seed is not None else random.SystemRandom().getrandbits(31)
    log.info("starting_engine", model=config.model_identity, seed=seed)
    engine = await vllm_engine.start(config, seed)
    scorer = await asyncio.to_thread(Scorer.open, config)
    await outbox.start()
    slots, recent = Slots(), RecentInteractions()
    folder = await asyncio.to_thread(vllm_engine.weights_folder, config)
    shapes = await asyncio.to_thread(adapter.base_shapes, folder)
    swapper = Swapper(config, registry, engine, slots, scorer, shapes, Announcer(registry, views))
    await swapper.begin()
    proxy = EngineProxy(engine, Answerer(slots, scorer, outbox, recent, prompt_version(folder), seed))
    state = {
        "config": config, "secrets": secrets, "views": views, "outbox": outbox, "engine": engine, "scorer": scorer,
        "slots": slots, "registry": registry, "recent": recent, "swapper": swapper, "proxy": proxy,
        "chat": await Chat.open(config, proxy), "pending": Pending(), "active": 0, "started_at": time.time(),
        "tokens": Tokens(secrets.token_secret, config.serve.token_lifetime_s),
    }  # fmt: skip
    server = uvicorn.Server(uvicorn.Config(make_app(state), log_config=None, access_log=False, timeout_graceful_shutdown=8))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)  # uvicorn sends itself the signal once more when it ends: that must not end us here
    loops = [asyncio.create_task(swapper.follow()), asyncio.create_task(_watch(swapper, server))]
    log.info("ready", host=config.serve.host, port=listener.getsockname()[1], policy_version=slots.live)
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in loops:
            task.cancel()
        await outbox.stop()
        await engine.close()
    return 1 if swapper.hopeless else 0


async def _watch(swapper: Swapper, server: uvicorn.Server) -> None:
    """End the server when its engine cannot be brought back: whoever watches it starts a new process."""
    while not swapper.hopeless:
        await asyncio.sleep(0.5)
    log.error("engine_given_up")
    server.should_exit = True
