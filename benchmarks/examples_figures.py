"""What the worked examples' answers amount to: verdicts, parts of a rubric, and what got worse. Pure, from what a run kept."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attune.simulate import prompts
from attune.simulate.judge import TIE_MARGIN, Verdict, judge
from attune.simulate.rubrics import PRODUCT, RUBRICS, STORY, Part, invents_number
from attune.simulate.tastes import SENSE, TASTES, Answer, Ask, Taste, complete, words

Run = Mapping[str, Any]
Stage = Mapping[str, Any]
Said = Mapping[str, Any]
"""One answer as a run keeps it: prompt, text, finished, version, seed."""


@dataclass(frozen=True, slots=True)
class Change:
    """One question, how it was answered before and after, and what its people think of both."""

    prompt: str
    before: Said
    after: Said
    score_before: float
    score_after: float


def taste_of(run: Run) -> Taste:
    """Return the hidden taste of an example."""
    return (TASTES | RUBRICS)[run["example"]["taste"]]


def asks(run: Run) -> dict[str, Ask]:
    """Return the judged questions by their text, with what their people know about them."""
    return {ask.text: ask for ask in prompts.held_out(run["example"]["taste"])}


def voted_on(run: Run) -> set[str]:
    """Return the questions that people were asked to vote on."""
    return {ask.text for ask in prompts.training(run["example"]["taste"])}


def verdict(run: Run, stage: Stage, against: Stage, part: str = "held_out") -> Verdict:
    """Return how often a stage's answers are preferred to another's on held-out questions, by the hidden taste."""
    return judge(taste_of(run), _by_ask(stage[part], asks(run)), _by_ask(against["held_out"], asks(run)))


def off_task(stage: Stage, base: Stage) -> Verdict:
    """Return how often a stage's answers to what nobody voted on are preferred to the base's, by plain sense."""
    known = {said["prompt"]: Ask(said["prompt"]) for said in base["off_task"]}
    return judge(SENSE, _by_ask(stage["off_task"], known), _by_ask(base["off_task"], known))


def parts(run: Run, stage: Stage) -> dict[str, float]:
    """Return what the taste is made of, each part's mean over the held-out answers; and what it does not see alone."""
    known, said = asks(run), stage["held_out"]
    found = {name: _mean([part(known[a["prompt"]], Answer(a["text"], a["finished"])) for a in said]) for name, part in _rubric(run).items()}
    return found | {"finished": _mean([float(complete(Answer(a["text"], a["finished"]))) for a in said])}


def kl(stage: Stage) -> float | None:
    """Return a stage's KL to the base on the held-out answers, in nats per answer; None where it was not seen."""
    seen = [said["kl"] for said in stage["held_out"] if said.get("kl") is not None]
    return _mean(seen) if seen else None


def newest(stage: Stage) -> int:
    """Return the newest policy version that answered in a stage."""
    return int(max(stage["policy_versions"]))


def votes_until(run: Run, stage: Stage) -> int:
    """Return how many votes had been cast when a stage was asked."""
    until = run["stages"].index(stage) + 1
    return sum(s["votes"]["votes"] for s in run["stages"][:until] if s["votes"])


def reward_figures(run: Run, votes: int) -> Mapping[str, Any]:
    """Return the report of the last reward version that had learned no more votes than these; empty if there is none."""
    found: Mapping[str, Any] = {}
    learned = 0
    for version in run["rewards"]:
        learned += version["votes"]
        if learned > votes:
            break
        found = version
    return found


def gates(run: Run) -> dict[str, int]:
    """Return how many policy versions were published in all, and how many of them were refused."""
    states = Counter(policy["state"] for policy in run["policies"])
    return {"published": sum(states.values()), "refused": states["rejected"]}


def falls(run: Run, before: Stage, after: Stage, part: str = "held_out") -> list[Change]:
    """Return the questions whose answer is liked less than it was, the largest fall first, one change each.

    The first answer of one stage meets the first of the other, the second the second; of those the larger fall is kept.
    """
    known, score = (asks(run), taste_of(run).score) if part == "held_out" else (None, SENSE.score)
    found: dict[str, Change] = {}
    for old, new in zip(before[part], after[part], strict=True):
        ask = known[old["prompt"]] if known else Ask(old["prompt"])
        was, now = (score(ask, Answer(said["text"], said["finished"])) for said in (old, new))
        change = Change(ask.text, old, new, was, now)
        if was - now >= TIE_MARGIN and (ask.text not in found or _fall(change) > _fall(found[ask.text])):
            found[ask.text] = change
    return sorted(found.values(), key=lambda change: -_fall(change))


def right(ask: Ask, answer: Answer) -> float:
    """Return 1 if the text says one of the right answers, wherever.

    >>> right(Ask("What is the capital of France?", ("Paris",)), Answer("I think it is Paris, or Rome."))
    1.0
    """
    said = f" {' '.join(words(answer.text))} "
    return float(any(f" {' '.join(words(fact))} " in said for fact in ask.facts))


def wrong(run: Run, stage: Stage) -> list[Said]:
    """Return the first answer to every held-out question that says none of the right ones."""
    known, found = asks(run), dict[str, Said]()
    for said in stage["held_out"]:
        found.setdefault(said["prompt"], said)
    return [said for said in found.values() if not right(known[said["prompt"]], Answer(said["text"]))]


def mean_words(answers: Sequence[Said]) -> float:
    """Return the mean number of words."""
    return _mean([float(len(words(said["text"]))) for said in answers])


def naming(answers: Sequence[Said], name: str) -> int:
    """Return how many answers contain a name that their question does not."""
    return sum(name in said["text"] and name not in said["prompt"] for said in answers)


def _rubric(run: Run) -> dict[str, Part]:
    match run["example"]["taste"]:
        case "named-story":
            return {name: part for name, (_, part) in STORY.items()}
        case "product":
            return {name: part for name, (_, part) in PRODUCT.items()} | {"invents a number": invents_number}
        case _:
            return {"right": right}


def _by_ask(answers: Sequence[Said], known: Mapping[str, Ask]) -> dict[Ask, list[Answer]]:
    found: dict[Ask, list[Answer]] = {}
    for said in answers:
        found.setdefault(known[said["prompt"]], []).append(Answer(said["text"], said["finished"]))
    return found


def _fall(change: Change) -> float:
    return change.score_before - change.score_after


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
