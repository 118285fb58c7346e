"""Runs a session against a server while showing on stderr how far the votes, the learner and the versions have come."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from attune.simulate.client import Line
from attune.simulate.curve import draw
from attune.simulate.report import summary
from attune.simulate.session import Plan, Session


async def simulate(plan: Plan, url: str, api_key: str, out: Path) -> dict[str, Any]:
    """Return the result of a session; writes the votes' journal and the curve into `out`."""
    line = Line(url, api_key)
    try:
        await line.greet()
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
