"""Reward terms: what each kind values, that silence pleases none, what a request may change, and wrong ones found at the start."""

from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from attune import config as configuration
from attune.config import Config, TermSection
from attune.errors import ConfigError
from attune.reward import RewardModel
from attune.terms import Term, Terms

EASY = "The cat sat. It was fat."
HARD = "Institutional heterogeneity notwithstanding, multidimensional considerations necessitate comprehensive deliberation."


def term(kind: str, **more: object) -> Terms:
    return Terms.load([TermSection.model_validate({"name": "wish", "kind": kind} | more)])


def long_words(question: str, answer: str) -> float:
    return float("nan") if "broken" in answer else max(map(len, answer.split())) / 10


def not_a_number(question: str, answer: str) -> float:
    return float("nan")


@pytest.mark.parametrize(
    ("terms", "better", "worse"),
    [
        (term("brevity", words=5), "Five words are short enough.", "word " * 12),
        (term("clarity"), EASY, HARD),
        (term("regex", pattern=r"^\d+$"), "42", "forty-two"),
        (term("mention", phrases=["steel", "Litre"]), "A STEEL bottle of one litre.", "A steel bottle."),
        (term("avoid", phrases=["as an AI"]), "Paris.", "As an ai I cannot say."),
        (term("python", entry_point="tests.unit.test_terms:long_words"), "extraordinary", "plain"),
    ],
)
def test_each_kind_values_what_it_says(terms: Terms, better: str, worse: str) -> None:
    values = terms.values("What is it?", [better, worse, "", "  \n"])["wish"]
    assert 1 >= values[0] > values[1] >= 0
    assert values[2:].tolist() == [0.0, 0.0]  # silence pleases none


def test_what_an_entry_point_cannot_say_counts_nothing() -> None:
    terms = term("python", entry_point="tests.unit.test_terms:long_words")
    assert terms.values("?", ["broken answer"])["wish"].tolist() == [0.0]


def test_an_answer_that_an_entry_point_cannot_read_counts_nothing_and_spares_the_others() -> None:
    terms = term("python", entry_point="tests.unit.test_terms:long_words")
    assert terms.values("?", ["...", "\u2003", "plain"])["wish"].tolist() == [pytest.approx(0.3), 0.0, 0.5]
    broken = Terms([Term("wish", 1.0, lambda _, answer: 1 / (len(answer) - 3))])
    with capture_logs() as said:
        assert broken.values("?", ["abc", "abcde"])["wish"].tolist() == [0.0, 0.5]
    assert [(line["event"], line["term"], line["error"]) for line in said] == [
        ("term_failed", "wish", "ZeroDivisionError: division by zero")
    ]


def test_weights_of_a_request_stand_for_the_configured_ones() -> None:
    terms = term("regex", pattern="yes", weight=2.0)
    values = terms.values("?", ["yes", "no"])
    assert terms.bonus(values, {}, 2).tolist() == [2.0, 0.0]
    assert terms.bonus(values, {"wish": -1.0}, 2).tolist() == [-1.0, 0.0]
    assert Terms().bonus({}, {}, 2).tolist() == [0.0, 0.0]
    assert terms.unknown(["wish", "other"]) == ["other"]


def test_an_empty_answer_stays_below_every_other() -> None:
    model = RewardModel.prior(4)
    bonus = np.array([0.0, -3.0], np.float32)
    features = [bytes(8), bytes(8)]
    total = model.total(features, ["", "something"], 0.5, bonus)
    assert total[0] < total[1]
    assert list(np.argsort(model.reward(features, ["", "something"], 0.5, bonus))) == [
        0,
        1,
    ]  # pays more than silence
    assert list(np.argsort(model.reward(features, ["something", " "], 0.5, np.array([-9.0, 0.0], np.float32)))) == [1, 0]
    rewards = model.reward(features, ["one", "two"], 0.5, np.array([1.5, 0.0], np.float32))
    assert rewards.tolist() == [1.5, 0.0]


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"kind": "regex"}, "needs pattern"),
        ({"kind": "mention"}, "needs phrases"),
        ({"kind": "regex", "pattern": "("}, "no regular expression"),
        ({"kind": "python", "entry_point": "nowhere"}, "module:function"),
        ({"kind": "python", "entry_point": "tests.nowhere:f"}, "cannot be used"),
        ({"kind": "python", "entry_point": "tests.unit.test_terms:not_a_number"}, "a number from 0 to 1"),
        ({"kind": "magic"}, "kind"),
    ],
)
def test_a_wrong_term_is_found_at_the_start(tmp_path: Path, section: dict[str, str], reason: str) -> None:
    file = tmp_path / "attune.toml"
    file.write_text('[[terms]]\nname = "wish"\n' + "".join(f'{k} = "{v}"\n' for k, v in section.items()))
    with pytest.raises(ConfigError, match=reason):
        Terms.load(configuration.load(file, {}).terms)


def test_names_are_distinct_and_the_printed_configuration_reads_back(tmp_path: Path) -> None:
    wishes = [{"name": "brief", "kind": "brevity", "words": 12}, {"name": "polite", "kind": "mention", "phrases": ["please", 'say "hi"']}]
    config = Config.model_validate({"home": str(tmp_path), "terms": wishes, "learner": {"debias": ["length"]}})
    file = tmp_path / "attune.toml"
    file.write_text(configuration.as_toml(config))
    assert configuration.load(file, {}) == config
    file.write_text('[[terms]]\nname = "a"\nkind = "clarity"\n[[terms]]\nname = "a"\nkind = "clarity"\n')
    with pytest.raises(ConfigError, match="same name"):
        configuration.load(file, {})
