"""Puts the learner together: configuration, store, registry, one base model shared by policy and features, then the cycle."""

import argparse
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from attune import config as configuration
from attune.config import Config
from attune.errors import ConfigError, Unavailable
from attune.frozen import FrozenBase, load_base, twin
from attune.registry import Registry
from attune.telemetry import expose, setup_logging
from feedback.store import Store
from learner.board import Board
from learner.cycle import Cycle
from learner.policy import Policy
from learner.top_up import TopUp


def main(argv: list[str] | None = None) -> int:
    """Learn until told to stop; return the exit status (2: the configuration needs a change, 3: the store is away, try again)."""
    parser = argparse.ArgumentParser(prog="attune learner", description="Turn votes into better versions.")
    parser.add_argument("--config", type=Path, help="configuration file (TOML)")
    arguments = parser.parse_args(argv)
    setup_logging("learner")
    os.umask(0o077)  # what people wrote is nobody else's business on this machine
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        config = configuration.load(arguments.config)
        step_back(config.learner.nice)
        torch.set_num_threads(config.learner.threads)
        expose(config.learner.metrics_port, "learner")
        make_cycle(config, stop).run()
    except ConfigError as error:
        print(f"attune learner: {error}", file=sys.stderr)
        return 2
    except Unavailable as error:
        print(f"attune learner: {error}", file=sys.stderr)
        return 3
    return 0


def step_back(nice: int) -> None:
    """Let everybody else on this machine compute first.

    Where the kernel groups processes by session (sched(7), autogroups), a nice value counts only within a session, so ours is told too,
    if it is ours alone.
    """
    os.nice(nice)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # another kernel
            Path("/proc/self/autogroup").write_text(str(nice), encoding="ascii")


def make_cycle(config: Config, stop: threading.Event) -> Cycle:
    """Return a cycle over the configured store and registry, resumed where the registry stands."""
    registry = Registry(config.registry_folder)
    registry.check_base(config.model_identity, config.model_revision)
    show = Board(config.home / "tensorboard").show
    return assemble(config, Store.open(config.store_url), registry, stop, TopUp(config).ask, show)


def assemble(config: Config, store: Store, registry: Registry, stop: threading.Event, *told: Any) -> Cycle:
    """Return a cycle with the configured model over any store and registry; `told` are its `top_up` and `show`, if anybody is there."""
    policy_base = load_base(config.model_folder, config.model.revision)
    base = FrozenBase(twin(policy_base))  # before the adapters go in
    learner = config.learner
    policy = Policy(policy_base, config.model, config.model_identity, learner.policy_lr, learner.seed)
    tokenizer = AutoTokenizer.from_pretrained(config.model_folder, revision=config.model.revision)
    return Cycle(config, store, registry, base, policy, tokenizer, stop, *told)
