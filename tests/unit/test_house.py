"""The rules of the house, as far as a command can see them: arrows between rooms, heavy libraries, sizes, and what is committed."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("attune", "serve", "feedback", "learner")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

ARROWS: dict[str, tuple[str, ...]] = {
    "attune": ("attune",),
    "feedback": ("feedback", "attune"),
    "serve": ("serve", "attune", "feedback.bus", "feedback.views"),
    "learner": ("learner", "attune", "feedback.store"),
}
HEAVY = {
    "vllm": r"serve/engine\w*\.py",
    "kafka": r"feedback/bus_kafka\.py",
    "peft": r"learner/policy\.py|attune/trunk\.py",
    "tensorboardX": r"learner/board\.py",
    "fastapi": r"serve/(app|access|routes/\w+)\.py",
    "sqlalchemy": r"feedback/.*\.py",
}
NETWORK = ("frozen.py", "packing.py", "trunk.py")
"""The passes over the base model, which are made of torch."""
LIGHT = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "attune").rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py", *NETWORK)
]
LIBRARIES = ("torch", "transformers", "vllm", "fastapi", "sqlalchemy")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_between_rooms(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    ours = [name for name in imports(path) if name.split(".")[0] in ROOMS]
    assert [name for name in ours if not any(within(name, module) for module in ARROWS[room])] == []


@pytest.mark.parametrize("library", HEAVY)
def test_heavy_libraries_stay_in_their_files(library: str) -> None:
    users = [str(p.relative_to(ROOT)) for p in SOURCES if any(within(name, library) for name in imports(p))]
    assert [user for user in users if not re.fullmatch(HEAVY[library], user)] == []
    assert users, f"nothing imports {library} any more: drop the rule"


def test_importing_attune_loads_nothing_heavy() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print([name for name in {LIBRARIES} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f"{f.name}: {f.end_lineno - f.lineno + 1} lines" for f in functions if f.end_lineno and f.end_lineno - f.lineno >= 60] == []


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "__init__.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_its_job(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def committed() -> list[Path]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_only_text_and_small_pictures_are_committed() -> None:
    for path in committed():
        if path.suffix == ".png":
            assert path.stat().st_size < 500_000, path
        else:
            path.read_text()


def test_locks_name_no_address() -> None:
    locks = list((ROOT / "locks").glob("*.txt"))
    assert locks
    assert [lock.name for lock in locks if "://" in lock.read_text()] == []


def test_no_path_of_a_machine() -> None:
    private = re.compile(r"(?<![\w.])/(work|root|home|Users|tmp/attune-bench)[-/][a-z]")
    found = [str(p) for p in committed() if p.suffix != ".png" and p != Path(__file__) and private.search(p.read_text())]
    assert found == []
