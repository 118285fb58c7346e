"""The `attune` command: dispatches to the programs by name and imports none of them."""

import argparse
import os
import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from attune import config as configuration
from attune import demo_model, halt, report, report_page, up
from attune.errors import ConfigError, RegistryError
from attune.progress import Progress
from attune.registry import Registry
from attune.simulate import command as simulate
from attune.types import ArtifactKind, Version

PROGRAMS = {
    "serve": "answer chat requests and take votes",
    "feedback": "carry events into the store",
    "learner": "turn votes into versions",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit status: 2 if the configuration needs a change, 1 if it failed, 0 otherwise."""
    args = parse(argv)
    try:
        return int(args.run(args))
    except ConfigError as error:
        print(f"attune: {error}", file=sys.stderr)
        return 2
    except RegistryError as error:
        print(f"attune: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line; its `run` is the command to call."""
    parser = argparse.ArgumentParser(prog="attune", description="An LLM server that learns from the people who use it.")
    parser.add_argument("--config", type=Path, help="configuration file (TOML; default: attune.toml, if there is one)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, run: object) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        found.set_defaults(run=run)
        return found

    up.add_arguments(command("up", "start and watch all three programs on this machine", up.run))
    for name, text in PROGRAMS.items():
        command(name, text, _exec).set_defaults(program=name)
    taught = command("sft", "teach the policy from demonstrations: a version like any other", _sft)
    taught.add_argument("--data", required=True, help='JSON lines: {"prompt" or "messages", "completion"}')
    taught.add_argument("--epochs", default="2")
    taught.add_argument("--batch", default="4", help="demonstrations per optimizer step (default 4)")
    taught.add_argument("--learning-rate", default="2e-4")
    again = command("replay", "rebuild versions from store and seeds, and compare", _replay)
    again.add_argument("--until", required=True, metavar="VERSION", help="the last policy version to rebuild")
    model = commands.add_parser("model", help="the language model").add_subparsers(required=True, metavar="COMMAND")
    model.add_parser("prepare", help="make the demo model ready to load").set_defaults(run=_prepare)
    _kind(command("versions", "list published versions and where they stand", _versions))
    promote = command("promote", "make a version the champion", _promote)
    promote.add_argument("number", type=int)
    _kind(promote)
    command("resume", "let the learner go on after a tripwire stopped it", _resume)
    _kind(command("rollback", "take the champion out of service; the one before serves again", _rollback))
    simulate.add_arguments(command("simulate", "let simulated people with a hidden taste chat and vote", _simulate))
    command("report", "what was learned: a table here, and a page with plots", _report).add_argument(
        "--out", type=Path, help="where to write the page (default: report.html in the home folder)"
    )
    command("config", "print the effective configuration", _config)
    return parser.parse_args(argv)


def _kind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=["policy", "reward"], default="policy")


def _exec(args: argparse.Namespace) -> int:
    config = configuration.load(args.config)  # a wrong configuration is said here, before anything heavy is imported
    if args.program != "feedback":
        demo_model.ensure(config, Progress(sys.stderr).note)
    return _become(args, args.program)


def _sft(args: argparse.Namespace) -> int:
    demo_model.ensure(configuration.load(args.config), Progress(sys.stderr).note)
    return _learner_command(
        args, "sft_command", "--data", args.data, "--epochs", args.epochs, "--batch", args.batch, "--learning-rate", args.learning_rate
    )


def _replay(args: argparse.Namespace) -> int:
    return _learner_command(args, "replay", "--until", args.until)


def _learner_command(args: argparse.Namespace, module: str, *options: str) -> int:
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")  # as the learner itself has it
    return _become(args, f"learner.{module}", *options)


def _become(args: argparse.Namespace, module: str, *options: str) -> int:
    """Go on as another program, with the same configuration file."""
    extra = ["--config", str(args.config)] if args.config else []
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *options, *extra])


def _prepare(args: argparse.Namespace) -> int:
    demo_model.ensure(configuration.load(args.config), Progress(sys.stderr).note)
    return 0


def _versions(args: argparse.Namespace) -> int:
    registry = _registry(args)
    table = Table("version", "state", "parent", "trained through", "votes", "published", "report")
    for number in registry.numbers(args.kind):
        version = registry.version(args.kind, number)
        when = datetime.fromtimestamp(version.created_at).strftime("%Y-%m-%d %H:%M:%S")
        parent, through, votes = map(str, (version.parent, version.trained_through, len(version.events)))
        state = registry.state(args.kind, number)
        table.add_row(f"{args.kind} {number}", state, parent, through, votes, when, _remark(registry, version))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)
    return 0


SHOWN = {
    "held_out_after": "reward",
    "kl_after": "KL",
    "entropy_after": "entropy",
    "overall_accuracy": "votes foreseen",
    "overall_auroc": "AUROC",
    "overall_ece": "ECE",
}
PIPE_WIDTH = 160


def _remark(registry: Registry, version: Version) -> str:
    """Return why a version was taken out of service or refused, else its key figures."""
    refused = registry.refusal(version.kind, version.number)
    if refused is not None:
        return refused
    figures = ((label, version.report.get(name)) for name, label in SHOWN.items())
    return ", ".join(f"{label} {value:.2f}" for label, value in figures if isinstance(value, int | float))


def _report(args: argparse.Namespace) -> int:
    config = configuration.load(args.config)
    found = report.collect(Registry(config.registry_folder))
    report.print_report(found, Console(width=None if sys.stdout.isatty() else PIPE_WIDTH))
    file: Path = args.out or config.home / "report.html"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(report_page.page(found, report_page.results(config.home / "simulate")))
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}; name another place with --out") from error
    print(f"page: {file}")
    return 0


def _promote(args: argparse.Namespace) -> int:
    registry = _registry(args)
    if args.number > 0:
        registry.verify(args.kind, args.number)
    registry.promote(args.kind, args.number, by="operator", reason="attune promote")
    print(f"{args.kind} version {args.number} is champion")
    return 0


def _rollback(args: argparse.Namespace) -> int:
    kind: ArtifactKind = args.kind
    print(f"{kind} version {_registry(args).roll_back(kind, by='operator', reason='attune rollback')} serves again")
    return 0


def _resume(args: argparse.Namespace) -> int:
    halted = halt.resume(configuration.load(args.config).home)
    if halted is None:
        print("the learner is not stopped")
        return 1
    print(f"the learner goes on; it had stopped at policy {halted.policy_version}: {'; '.join(halted.reasons)}")
    return 0


def _simulate(args: argparse.Namespace) -> int:
    return int(simulate.run(args, configuration.load(args.config)))


def _config(args: argparse.Namespace) -> int:
    print(configuration.as_toml(configuration.load(args.config)), end="")
    return 0


def _registry(args: argparse.Namespace) -> Registry:
    return Registry(configuration.load(args.config).registry_folder)
