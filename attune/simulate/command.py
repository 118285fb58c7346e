"""`attune simulate`: simulated people of one hidden taste teach a running server, and a judge measures what it learned."""

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path

from attune.arguments import count, share, temperature, whole
from attune.config import Config
from attune.errors import ConfigError, RequestError, Unavailable
from attune.simulate.rubrics import RUBRICS
from attune.simulate.tastes import TASTES
from attune.simulate.users import KINDS

KNOWN = TASTES | RUBRICS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `attune simulate`."""
    parser.add_argument("--taste", choices=sorted(KNOWN), default="short", help="what the people like, hidden from the server")
    parser.add_argument("--votes", type=count, default=200, help="votes to cast in all (default 200)")
    parser.add_argument("--clients", type=count, default=4, help="people at the same time (default 4)")
    parser.add_argument("--noise", type=share, default=0.1, help="share of votes that say the opposite of what was meant (default 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="repeats the people's choices exactly")
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS), help="kinds of votes to mix (default all)")
    parser.add_argument("--max-tokens", type=count, default=48, help="longest answer asked for (default 48)")
    parser.add_argument("--url", default=None, help="the server (default: the configured host and port)")
    parser.add_argument("--api-key", default=None, help="default: $ATTUNE_API_KEY, else the file `api-key` in the home folder")
    parser.add_argument("--judge-prompts", type=whole, default=60, help="held-out prompts to judge by; 0 skips the judge (default 60)")
    parser.add_argument(
        "--judge-at", type=count, nargs="+", default=[], metavar="VOTES", help="judge after so many votes too (default: at the end alone)"
    )
    parser.add_argument(
        "--judge-samples", type=count, default=1, help="answers per prompt and side, half as many where they are ranked (default 1)"
    )
    parser.add_argument("--judge-temperature", type=temperature, default=None, help="default: the server's own; 0 is greedy")
    parser.add_argument("--judge-off-task", action="store_true", help="judge at the end on tasks that nobody votes on, too")
    parser.add_argument(
        "--votes-on",
        choices=["live", "base"],
        default="live",
        help="whose answers people vote on (default live)",
    )
    parser.add_argument("--every-s", type=float, default=0.0, help="seconds between requests of all people (default 0: no pause)")
    parser.add_argument("--wait-s", type=float, default=120.0, help="longest wait for the learner without any progress (default 120)")
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="folder for curve, votes, judged answers and result (default: in the home folder)",
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the result here as well")


def run(args: argparse.Namespace, config: Config) -> int:
    """Run the simulation; 0, or 1 if an acknowledged vote was lost, a request was refused, or the server stayed away."""
    # The HTTP clients take seconds to import, and every `attune` command reads this module's options.
    from attune.simulate.report import print_table
    from attune.simulate.session import Plan
    from attune.simulate.watch import simulate

    plan = Plan(
        taste=KNOWN[args.taste],
        votes=args.votes,
        clients=args.clients,
        noise=args.noise,
        seed=args.seed,
        kinds=tuple(args.kinds),
        max_tokens=args.max_tokens,
        judge_prompts=args.judge_prompts,
        judge_at=tuple(args.judge_at),
        judge_samples=args.judge_samples,
        judge_temperature=args.judge_temperature,
        judge_off_task=args.judge_off_task,
        votes_on=args.votes_on,
        every_s=args.every_s,
        wait_s=args.wait_s,
    )
    out = args.out or config.home / "simulate" / f"{args.taste}-{time.strftime('%Y%m%d-%H%M%S')}"
    for folder in (out, args.json.parent if args.json else out):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}: {error.strerror}; name another place with --out or --json") from error
    url = args.url or config.base_url
    try:
        result = asyncio.run(simulate(plan, url, _api_key(args.api_key, config), out))
    except (Unavailable, RequestError) as error:
        print(f"attune simulate: {error} (what was voted and judged until then lies in {out})", file=sys.stderr)
        return 1
    text = json.dumps(result)
    for file in (out / "result.json", args.json):
        if file is not None:
            file.write_text(text + "\n")
    print_table(result)
    print(text, flush=True)
    return 1 if result["lost"] else 0


def _api_key(given: str | None, config: Config) -> str:
    key = given or os.environ.get("ATTUNE_API_KEY")
    if key:
        return key
    file = config.home / "api-key"
    try:
        return file.read_text().strip()
    except OSError as error:
        raise ConfigError(f"no API key: give --api-key or set ATTUNE_API_KEY ({file}: {error.strerror})") from error
