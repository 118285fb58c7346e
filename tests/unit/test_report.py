"""What was learned, told from a registry: the table, the page that needs nothing else, and versions that were refused."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from attune import cli, halt, report, report_page
from attune.registry import Registry
from attune.types import State

LINEAGE = {"base_model": "tiny", "base_revision": "", "trained_through": 1}
FORETOLD = {"overall_predicted": 20.0, "overall_accuracy": 0.75, "overall_ece": 0.08, "thumb_predicted": 20.0, "thumb_accuracy": 0.75}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    registry = Registry(tmp_path / "registry")
    for n, votes in enumerate((("a", "b"), ("c",)), start=1):
        quality = FORETOLD | {"reliability": [[0.2, 0.25, 8], [0.8, 0.7, 12]], "correlation_with_length": -0.42}
        registry.publish("reward", {"x": b"x"}, parent=n - 1, **LINEAGE, report=quality, events=votes)
        registry.promote("reward", n, by="test", reason="test")
    figures = {"score_mean": 0.5, "kl_to_ref": 1.5, "entropy": 1.0, "length_mean": 20.0}
    registry.publish("policy", {"x": b"x"}, parent=0, **LINEAGE, report=figures, events=("a", "b"), reward_version=1)
    registry.promote("policy", 1, by="test", reason="test")
    registry.publish("policy", {"x": b"x"}, parent=1, **LINEAGE, report=figures, events=("c",), reward_version=2)
    registry.move("policy", 2, State.REJECTED, by="learner", reason="entropy fell to <nothing>")
    return tmp_path


def test_a_version_that_its_learner_did_not_live_to_judge_passed_nothing(home: Path) -> None:
    registry = Registry(home / "registry")
    registry.publish("policy", {"x": b"x"}, parent=1, **LINEAGE, report={}, reward_version=2)
    assert report.collect(registry).policies[-1].remark == "not judged yet"


def test_votes_add_up_along_the_lineage_and_a_refusal_gives_its_reason(home: Path) -> None:
    found = report.collect(Registry(home / "registry"))
    assert [e.votes for e in found.rewards] == [2, 3]
    assert [(e.state, e.votes, e.remark) for e in found.policies] == [
        (State.CHAMPION, 2, "passed"),
        (State.REJECTED, 3, "entropy fell to <nothing>"),
    ]
    out = io.StringIO()
    report.print_report(found, Console(file=out, width=160))
    assert re.search(r"overall\W+0\.75", out.getvalue())
    assert "entropy fell" in out.getvalue()
    assert "goes with length (r = -0.42)." in out.getvalue()


def test_a_vote_that_was_changed_is_one_vote(home: Path) -> None:
    registry = Registry(home / "registry")
    for number, (parent, votes) in enumerate(((2, ("a", "d")), (1, ("a", "c", "d"))), start=3):
        registry.publish("reward", {"x": b"x"}, parent=parent, **LINEAGE, report={}, events=votes)
        assert report.collect(registry).rewards[number - 1].votes == 4


def test_updates_that_were_thrown_away_are_told(home: Path) -> None:
    halt.discarded(home, "too old", policy_version=0)
    halt.discarded(home, "KL is <40> nats", policy_version=1)
    with (home / "learner" / "discarded.jsonl").open("a") as file:
        file.write('{"policy_ver')  # a full disk
    found = report.collect(Registry(home / "registry"))
    out = io.StringIO()
    report.print_report(found, Console(file=out, width=160))
    assert "2 updates were thrown away; the newest, from policy 1: KL is <40> nats." in out.getvalue()
    assert "KL is &lt;40&gt; nats." in report_page.page(found, [])
    assert (halt.last_discarded(home, 1), halt.last_discarded(home, 0)) == ("KL is <40> nats", None)


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(home: Path) -> None:
    verdict = {"votes": 8, "arm": "alone", "preference": 0.6, "low": 0.5, "high": 0.7}
    page = report_page.page(report.collect(Registry(home / "registry")), [{"taste": "short", "judgements": [verdict]}])
    assert page.count("data:image/png;base64,") == 5
    assert not re.findall(r'(?:src|href)="?(?!"?data:)', page)
    assert "entropy fell to &lt;nothing&gt;" in page
    assert "Utility of typical answers goes with length (r = -0.42)." in page
    assert "3 votes learned, 2 policies published, 1 of them refused or taken back; policy 1 is live." in page


def test_the_command_writes_the_page(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ATTUNE_HOME", str(home))
    (home / "simulate" / "one").mkdir(parents=True)
    (home / "simulate" / "one" / "result.json").write_text(json.dumps({"taste": "short", "judgements": []}))
    assert cli.main(["report"]) == 0
    assert (home / "report.html").read_text().startswith("<!doctype html>")
    assert "overall" in capsys.readouterr().out
    assert cli.main(["report", "--out", "/proc/report.html"]) == 2
    (home / "simulate" / "one" / "result.json").write_text('{"taste": "sh')
    assert cli.main(["report"]) == 2
    assert "result.json is not what a simulation writes" in capsys.readouterr().err


def test_nothing_learned_yet(tmp_path: Path) -> None:
    page = report_page.page(report.collect(Registry(tmp_path)), [])
    assert "0 votes learned, 0 policies published" in page
