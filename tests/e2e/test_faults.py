"""Each program is killed the hard way while people vote: no acknowledged vote is lost, none counts twice, and the loop goes on."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from attune.simulate.client import Line
from attune.simulate.session import UNSAFE, Plan, Session
from attune.simulate.tastes import TASTES
from feedback.store import Store
from tests.fixtures.running import Running, started

pytestmark = pytest.mark.e2e
VOTES = 24
KILLS = {6: "learner", 11: "serve", 17: "feedback"}
"""After so many acknowledged votes, this program is killed."""


@pytest.fixture(scope="module")
def victim(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(tmp_path_factory.mktemp("victim"), demo_model, {"ATTUNE_LEARNER__MAX_VOTE_WAIT_S": "10"}) as deployment:
        yield deployment


async def _kill_on_the_way(session: Session, victim: Running) -> dict[str, int]:
    killed: dict[str, int] = {}
    for after, program in KILLS.items():
        while len(session.acknowledged) < after:
            await asyncio.sleep(0.02)
        killed[program] = victim.kill(program)
    return killed


@pytest.mark.timeout(420)
async def test_every_acknowledged_vote_survives_the_kill_of_each_program(victim: Running, tmp_path: Path) -> None:
    line = Line(victim.url, victim.key, patience_s=180.0)
    plan = Plan(
        TASTES["short"],
        votes=VOTES,
        clients=3,
        kinds=("thumb", "rating", "comparison", "ranking"),
        judge_prompts=0,
        wait_s=75.0,
        max_tokens=24,
    )
    session = Session(plan, line, tmp_path / "votes.jsonl")
    try:
        _, killed = await asyncio.gather(session.run(), _kill_on_the_way(session, victim))
    finally:
        await line.close()
    standing = Counter(session.standing(i) for i in session.acknowledged)
    assert len(session.acknowledged) == VOTES
    assert not UNSAFE & set(standing), f"{standing}\n{victim.logs()}"
    assert standing["live"] >= VOTES - 4, f"{standing}\n{victim.logs()}"
    assert all(victim.pid(program) != pid for program, pid in killed.items()), "a killed program was not started again"
    assert set(line.failures) <= {name for name in line.failures if name.startswith(("chat: ", "vote: ", "receipt: "))}
    assert sum(line.failures.values()) > 0, "the kill of serve went unnoticed: was it killed at all?"

    store = Store.open(f"sqlite:///{victim.home / 'store.sqlite'}")
    try:
        stored, counts = Counter(row.feedback.id for row in store.feedback_after(0, 10_000)), store.counts()
    finally:
        store.close()
    assert set(session.acknowledged) <= set(stored)
    assert set(stored.values()) == {1}
    assert len(stored) == VOTES, "a vote that nobody was told of is stored beside the acknowledged ones"
    assert counts.dead_letters == 0
    assert victim.status()["policy_version"] >= 1
