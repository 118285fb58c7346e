"""One simulation: people chat and vote until all votes are cast, the learner catches up, and the judge compares with the base.

The loop is `Session.run`. It prints nothing: `progress` is there to be shown by whoever started it.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice, pairwise
from pathlib import Path
from random import Random
from typing import Any, Literal, TextIO

from attune.simulate import prompts
from attune.simulate.client import Line, Question, Reply
from attune.simulate.curve import Point
from attune.simulate.judge import Verdict, judge
from attune.simulate.tastes import SENSE, Answer, Ask, Taste
from attune.simulate.users import ANSWERS_WANTED, choose_kind, vote
from attune.types import Kind

JUDGE_CLIENTS = 16
SETTLED = frozenset({"live", "rolled_back", "unusable", "withdrawn"})
"""Receipts that will not move any more while nothing else is voted on."""
OFF_TASK_TOKENS = 160
"""Other tasks take longer answers: held to the people's few words, the judge would mostly see who came to an end."""
UNSAFE = frozenset({"received", "missing"})
"""Receipts of acknowledged votes that are not in the store."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to be answered that the judge looks at."""

    label: str
    model: str
    candidates: int
    rerank: str | None


ARMS = {
    "base": Arm("base", "attune@0", 1, "off"),
    "base reranked": Arm("base, best of 4", "attune@0", 4, None),
    "alone": Arm("policy alone", "attune", 1, "off"),
    "reranked": Arm("best of 4", "attune", 4, None),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate."""

    taste: Taste
    votes: int
    clients: int = 4
    noise: float = 0.1
    seed: int = 0
    kinds: tuple[str, ...] = ("thumb", "rating", "comparison", "ranking", "edit")
    max_tokens: int = 48
    judge_prompts: int = 60
    judge_at: tuple[int, ...] = ()
    """After how many votes to judge besides at the end; at the first of them, also what ranking alone makes of the base."""
    judge_samples: int = 1
    judge_temperature: float | None = None
    judge_off_task: bool = False
    """Judge the live policy at the end on tasks that nobody votes on too, by plain sense."""
    votes_on: Literal["live", "base"] = "live"
    """Whose answers people vote on. `base`: votes as offline training collects them; the live policy is asked too, but nobody judges it."""
    every_s: float = 0.0
    """Seconds between the requests of all people together; 0: each asks again as soon as it has voted."""
    wait_s: float = 120.0
    """How long to wait for the learner without seeing any receipt move."""


@dataclass(slots=True)
class Progress:
    """Where the session stands, for showing it while it runs."""

    phase: str = "starting"
    started: float = field(default_factory=time.monotonic)
    chats: int = 0
    acknowledged: int = 0
    flipped: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    policy_versions: set[int] = field(default_factory=set)
    judged: str = ""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class Session:
    """A simulation on one server; `acknowledged` names every vote that the server took, in order."""

    def __init__(self, plan: Plan, line: Line, journal: Path) -> None:
        self.plan, self.line = plan, line
        self.progress = Progress()
        self.acknowledged: list[str] = []
        self.receipts: dict[str, dict[str, Any]] = {}
        self.points: list[Point] = []
        self._journal = journal
        self.off_task: Verdict | None = None
        self.reply_s: list[float] = []
        """How long each chat of the people took, in seconds."""
        self._base: dict[Ask, list[Answer]] = {}
        self._next_turn = 0.0

    async def run(self) -> None:
        """Vote in rounds, judge between them where the plan says so, wait for the learner, and judge at the end."""
        plan = self.plan
        asks = prompts.training(plan.taste.name)
        Random(plan.seed).shuffle(asks)
        numbered = enumerate(islice(cycle(asks), plan.votes))
        with self._journal.open("a") as journal:
            rounds = _rounds(plan.votes, plan.judge_at)
            for round_number, size in enumerate(rounds):
                self.progress.phase = "voting"
                turn = iter(list(islice(numbered, size)))
                await asyncio.gather(*(self._person(number, turn, journal) for number in range(plan.clients)))
                if round_number < len(rounds) - 1:
                    await self._judge(("alone", "base reranked") if round_number == 0 else ("alone",))
        self.progress.phase = "waiting for the learner"
        await self._settle()
        if plan.judge_prompts:
            await self._judge(("alone", "reranked"))
        if plan.judge_off_task:
            await self._judge_off_task()
        self.progress.phase = "done"

    async def _person(self, number: int, turn: Iterator[tuple[int, Ask]], journal: TextIO) -> None:
        """One person: take the next question, read, vote, until none is left."""
        user = f"simulated-{self.plan.taste.name}-{number}"
        for index, ask in turn:
            random = Random(f"{self.plan.seed}/{index}")
            kind = choose_kind(self.plan.kinds, random)
            wanted = ANSWERS_WANTED[kind]
            candidates = wanted if wanted > 2 else None
            model = "attune" if self.plan.votes_on == "live" else ARMS["base"].model
            question = Question(ask.text, model=model, n=wanted, candidates=candidates, max_tokens=self.plan.max_tokens, user=user)
            await self._pace()
            asked = time.monotonic()
            reply = await self.line.ask(question)
            took_s = time.monotonic() - asked
            self.reply_s.append(took_s)
            self.progress.chats += 1
            self.progress.policy_versions.add(reply.policy_version)
            given = vote(kind, self.plan.taste, ask, reply.answers, reply.candidates, self.plan.noise, random)
            if kind is Kind.EDIT and given.kind is Kind.THUMB and Kind.THUMB not in self.plan.kinds:
                continue  # nothing to mend, and no other way to say so
            feedback_id = await self.line.vote(reply, given, user)
            if self.plan.votes_on == "base":
                await self.line.ask(replace(question, model=ARMS["alone"].model))
            self._keep(feedback_id, reply, took_s, str(given.kind), given.value, journal)
            self.progress.flipped += given.flipped

    async def _pace(self) -> None:
        """Wait for this request's turn."""
        now = time.monotonic()
        self._next_turn = max(now, self._next_turn + self.plan.every_s)
        await asyncio.sleep(self._next_turn - now)

    def _keep(self, feedback_id: str, reply: Reply, took_s: float, kind: str, value: Any, journal: TextIO) -> None:
        self.acknowledged.append(feedback_id)
        self.progress.acknowledged += 1
        self.progress.kinds[kind] += 1
        entry = {
            "id": feedback_id,
            "interaction_id": reply.interaction_id,
            "kind": kind,
            "policy_version": reply.policy_version,
            "reply_s": round(took_s, 3),
            "at": time.time(),
        }
        if kind != "edit":
            entry["value"] = value
        journal.write(json.dumps(entry) + "\n")
        journal.flush()

    async def _settle(self) -> None:
        """Read receipts until every vote is in a live policy or can be in none; stop when nothing moves for `wait_s`."""
        moved, before = time.monotonic(), Counter[str]()
        while True:
            pending = [i for i in dict.fromkeys(self.acknowledged) if self.standing(i) not in SETTLED]
            for receipt_id, receipt in zip(pending, await in_parallel(JUDGE_CLIENTS, self.line.receipt, pending), strict=True):
                if receipt is not None:
                    self.receipts[receipt_id] = receipt
            now = Counter(self.standing(i) for i in self.acknowledged)
            if now != before:
                moved, before = time.monotonic(), now
            if all(state in SETTLED for state in now) or time.monotonic() - moved > self.plan.wait_s:
                return
            await asyncio.sleep(1.0)

    def standing(self, feedback_id: str) -> str:
        """Return where an acknowledged vote stands by its latest receipt; `missing` where the server knew none."""
        return str(self.receipts[feedback_id]["status"]) if feedback_id in self.receipts else "missing"

    async def _judge(self, arms: Sequence[str]) -> None:
        asks = prompts.held_out(self.plan.taste.name)[: self.plan.judge_prompts]
        if not self._base:
            self._base = (await self._sample("base", asks))[0]
        for arm in arms:
            answers, version = await self._sample(arm, asks)
            verdict = judge(self.plan.taste, answers, self._base)
            self.points.append(Point(len(self.acknowledged), version, arm, verdict))
            self._write_down(arm, self.plan.taste, answers, self._base)
            self.progress.judged = f"{verdict.preference:.2f} over the base after {len(self.acknowledged)} votes ({arm})"

    async def _judge_off_task(self) -> None:
        asks = prompts.off_task()
        base, _ = await self._sample("base", asks, OFF_TASK_TOKENS)
        answers, _ = await self._sample("alone", asks, OFF_TASK_TOKENS)
        self.off_task = judge(SENSE, answers, base)
        self._write_down("off-task", SENSE, answers, base)

    def _write_down(self, arm: str, taste: Taste, answers: dict[Ask, list[Answer]], bases: dict[Ask, list[Answer]]) -> None:
        """Keep what was judged, for people to read."""
        with self._journal.with_name("answers.jsonl").open("a") as file:
            for ask, given in answers.items():
                for answer, base in zip(given, bases[ask], strict=False):
                    said = {"votes": len(self.acknowledged), "arm": arm, "prompt": ask.text, "answer": answer.text, "base": base.text}
                    file.write(json.dumps(said | {"score": taste.score(ask, answer), "base_score": taste.score(ask, base)}) + "\n")

    async def _sample(self, arm: str, asks: Sequence[Ask], max_tokens: int | None = None) -> tuple[dict[Ask, list[Answer]], int]:
        """Return answers per prompt and the newest version that gave one."""
        self.progress.phase = f"judging: {arm}"
        way = ARMS[arm]

        async def sample(ask: Ask) -> Reply:
            plan = self.plan
            limits = {"max_tokens": max_tokens or plan.max_tokens, "temperature": plan.judge_temperature, "purpose": "evaluation"}
            question = Question(ask.text, model=way.model, candidates=way.candidates, rerank=way.rerank, **limits)  # type: ignore[arg-type]
            return await self.line.ask(question)

        draws = self.plan.judge_samples if way.candidates == 1 else max(1, self.plan.judge_samples // 2)  # they cost four answers each
        wanted = [ask for ask in asks for _ in range(draws)]
        replies = await in_parallel(JUDGE_CLIENTS, sample, wanted)
        answers: dict[Ask, list[Answer]] = {ask: [] for ask in asks}
        for ask, reply in zip(wanted, replies, strict=True):
            answers[ask].append(reply.answers[0])
        return answers, max((reply.policy_version for reply in replies), default=0)


def _rounds(votes: int, stops: Sequence[int]) -> list[int]:
    """Return the sizes of the voting rounds between the stops.

    >>> _rounds(10, ()), _rounds(10, (8, 4, 12))
    ([10], [4, 4, 2])
    """
    ends = sorted({stop for stop in stops if 0 < stop < votes} | {votes})
    return [end - start for start, end in pairwise([0, *ends])]


async def in_parallel(width: int, call: Any, items: Sequence[Any]) -> list[Any]:
    """Return the results of `call(item)` in the order of the items, at most `width` at a time."""
    gate = asyncio.Semaphore(width)

    async def one(item: Any) -> Any:
        async with gate:
            return await call(item)

    return list(await asyncio.gather(*(one(item) for item in items)))
