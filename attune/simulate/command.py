"""`attune simulate`: simulated people of one hidden taste teach a running server, and a judge measures what it learned."""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from attune.config import Config
from attune.errors import ConfigError, RequestError, Unavailable
from attune.simulate.client import Line
from attune.simulate.curve import draw
from attune.simulate.report import print_table, summary
from attune.simulate.session import Plan, Session
from attune.simulate.tastes import TASTES
from attune.simulate.users import KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `attune simulate`."""
    parser.add_argument("--taste", choices=sorted(TASTES), default="short", help="what the people like, hidden from the server")
    parser.add_argument("--votes", type=_count, default=200, help="votes to cast in all (default 200)")
    parser.add_argument("--clients", type=_count, default=4, help="people at the same time (default 4)")
    parser.add_argument("--noise", type=_share, default=0.1, help="share of votes that say the opposite of what was meant (default 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="repeats the people's choices exactly")
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS), help="kinds of votes to mix (default all)")
    parser.add_argument("--max-tokens", type=_count, default=48, help="longest answer asked for (default 48)")
    parser.add_argument("--url", default=None, help="the server (default: the configured host and port)")
    parser.add_argument("--api-key", default=None, help="default: $ATTUNE_API_KEY, else the file `api-key` in the home folder")
    parser.add_argument("--judge-prompts", type=_whole, default=60, help="held-out prompts to judge by; 0 skips the judge (default 60)")
    parser.add_argument(
        "--judge-every", type=_whole, default=0, metavar="VOTES", help="judge after every so many votes too (default 0: at the end)"
    )
    parser.add_argument("--judge-samples", type=_count, default=1, help="answers per prompt and side (default 1)")
    parser.add_argument("--judge-temperature", type=float, default=None, help="default: the server's own; 0 is greedy")
    parser.add_argument("--wait-s", type=float, default=120.0, help="longest wait for the learner without any progress (default 120)")
    parser.add_argument(
        "--out", type=Path, default=None, help="folder for curve.png, votes.jsonl and result.json (default: in the home folder)"
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the result here as well")


def run(args: argparse.Namespace, config: Config) -> int:
    """Run the simulation; 0, or 1 if an acknowledged vote was lost, a request was refused, or the server stayed away."""
    plan = Plan(
        taste=TASTES[args.taste],
        votes=args.votes,
        clients=args.clients,
        noise=args.noise,
        seed=args.seed,
        kinds=tuple(args.kinds),
        max_tokens=args.max_tokens,
        judge_prompts=args.judge_prompts,
        judge_every=args.judge_every,
        judge_samples=args.judge_samples,
        judge_temperature=args.judge_temperature,
        wait_s=args.wait_s,
    )
    out = args.out or config.home / "simulate" / f"{args.taste}-{time.strftime('%Y%m%d-%H%M%S')}"
    out.mkdir(parents=True, exist_ok=True)
    url = args.url or f"http://{config.serve.host}:{config.serve.port}"
    try:
        result = asyncio.run(_simulate(plan, url, _api_key(args.api_key, config), out))
    except (Unavailable, RequestError) as error:
        print(f"attune simulate: {error}", file=sys.stderr)
        return 1
    text = json.dumps(result)
    for file in (out / "result.json", args.json):
        if file is not None:
            file.write_text(text + "\n")
    print_table(Console(width=None if sys.stdout.isatty() else 110), result)
    print(text, flush=True)
    return 1 if result["lost"] else 0


async def _simulate(plan: Plan, url: str, api_key: str, out: Path) -> dict[str, Any]:
    line = Line(url, api_key)
    try:
        session = Session(plan, line, out / "votes.jsonl")
        shown = asyncio.create_task(_show(session))
        try:
            await session.run()
        finally:
            shown.cancel()
            await asyncio.gather(shown, return_exceptions=True)
        result = summary(session, await line.status())
        if session.points:
            draw(session.points, plan.taste.name, out / "curve.png")
            result["curve"] = str(out / "curve.png")
        return result
    finally:
        await line.close()


async def _show(session: Session) -> None:
    """Show the session's progress on stderr until cancelled: one live line on a terminal, else a line every few seconds."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            await _watch(session, live.update, 0.5)
    await _watch(session, lambda text: print(text, file=sys.stderr, flush=True), 5.0)


async def _watch(session: Session, show: Callable[[str], None], every_s: float) -> None:
    first: dict[str, int] | None = None
    while True:
        status = await session.line.status()
        if status is not None and first is None:
            first = dict(status["votes"])
        show(_line(session, status, first or {}))
        await asyncio.sleep(every_s)


def _line(session: Session, status: dict[str, Any] | None, first: dict[str, int]) -> str:
    """Return one line on where the session stands; the server's counts are shown from this session's start on."""
    progress, plan = session.progress, session.plan
    parts = [f"{progress.seconds:5.0f} s", progress.phase, f"votes {progress.acknowledged}/{plan.votes}"]
    if status is None:
        parts.append("server away")
    else:
        votes = {name: status["votes"][name] - first.get(name, 0) for name in ("stored", "learned")}
        parts += [f"{name} {count}" for name, count in votes.items()]
        parts += [f"policy {status['policy_version']}", f"reward {status['reward_version']}"]
    if session.line.failures:
        parts.append(f"failed requests {sum(session.line.failures.values())}")
    if progress.judged:
        parts.append(f"preferred {progress.judged}")
    return "  ".join(parts)


def _api_key(given: str | None, config: Config) -> str:
    key = given or os.environ.get("ATTUNE_API_KEY")
    if key:
        return key
    file = config.home / "api-key"
    try:
        return file.read_text().strip()
    except OSError as error:
        raise ConfigError(f"no API key: give --api-key or set ATTUNE_API_KEY ({file}: {error.strerror})") from error


def _count(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must lie between 0 and 1")
    return value
