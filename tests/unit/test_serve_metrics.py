"""What is counted of an answered request: its tokens, and apart from them those that were sampled for learning alone."""

from dataclasses import replace

from attune.types import LEARNING
from serve import metrics
from tests.suites.events import interaction


def sampled() -> tuple[float, float]:
    return metrics.TOKENS._value.get(), metrics.LEARNING_TOKENS._value.get()


def test_the_share_of_generation_that_learning_takes_is_in_two_counters() -> None:
    asked = interaction("i1", candidates=4)
    tokens = sum(len(c.token_ids) for c in asked.candidates)
    assert tokens > 0
    before = sampled()
    metrics.observe(asked)
    assert sampled() == (before[0] + tokens, before[1])
    metrics.observe(replace(asked, conversation_id=LEARNING))
    assert sampled() == (before[0] + 2 * tokens, before[1] + tokens)
