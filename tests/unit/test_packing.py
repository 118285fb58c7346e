"""Packing is exact: a packed row gives the log-probs, features and gradients of plain rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attune import frozen
from attune.frozen import Answer, FrozenBase, fastest_dtype, load_base
from attune.packing import Packed, pack, rows
from attune.reward import unpack

PROMPT = list(range(10, 31))
ANSWERS = [list(range(40, 52)), [7], list(range(60, 83)), []]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> FrozenBase:
    return FrozenBase(load_base(str(tiny_model), None, torch.float32))


def plain_logprobs(base: FrozenBase, answer: list[int], temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = base.network(torch.tensor([PROMPT + answer])).logits[0] / temperature
    rows = logits.log_softmax(-1)[len(PROMPT) - 1 : -1]
    return rows.gather(1, torch.tensor(answer)[:, None])[:, 0]


def test_packed_logprobs_equal_plain_ones(base: FrozenBase) -> None:
    looks = base.look(PROMPT, [Answer(a, True) for a in ANSWERS], 0.7)
    for answer, seen in zip(ANSWERS[:3], looks, strict=False):
        assert torch.tensor(seen.ref_logprobs) == pytest.approx(plain_logprobs(base, answer, 0.7), abs=1e-5)
        assert torch.tensor(seen.sharp_logprobs) == pytest.approx(plain_logprobs(base, answer, 0.7 * frozen.SHARPNESS), abs=1e-5)
    assert (looks[3].ref_logprobs, looks[3].sharp_logprobs) == ((), ())


def test_neighbours_change_nothing(base: FrozenBase) -> None:
    together = base.look(PROMPT, [Answer(a, False) for a in ANSWERS], 1.0)
    for answer, seen in zip(ANSWERS, together, strict=True):
        (alone,) = base.look(PROMPT, [Answer(answer, False)], 1.0)
        assert unpack([alone.features]) == pytest.approx(unpack([seen.features]), abs=2e-3, rel=1e-3)  # fp16


def test_a_row_that_would_be_too_long_is_looked_at_in_parts(base: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    together, passes = base.look(PROMPT, [Answer(a, True) for a in ANSWERS], 0.7), list[int]()

    def counted(prompt: list[int], answers: list[list[int]], dtype: torch.dtype) -> Packed:
        passes.append(len(answers))
        return pack(prompt, answers, dtype)

    monkeypatch.setattr(frozen, "MAX_ROW_TOKENS", len(PROMPT) + 14)
    monkeypatch.setattr(frozen, "pack", counted)
    apart = base.look(PROMPT, [Answer(a, True) for a in ANSWERS], 0.7)
    assert passes == [2, 1, 1]
    for one, other in zip(together, apart, strict=True):
        assert unpack([one.features]) == pytest.approx(unpack([other.features]), abs=2e-3, rel=1e-3)  # fp16
        assert one.ref_logprobs == pytest.approx(other.ref_logprobs, abs=1e-5)
        assert one.sharp_logprobs == pytest.approx(other.sharp_logprobs, abs=1e-5)


@given(st.integers(1, 50), st.lists(st.integers(0, 60), max_size=16), st.integers(1, 200))
def test_rows_hold_every_answer_once_in_order_and_within_the_limit(prompt: int, answers: list[int], limit: int) -> None:
    parts = rows(prompt, answers, limit)
    assert [a for part in parts for a in answers[part]] == answers
    for part in parts:
        alone = len(answers[part]) <= 1
        assert alone or prompt + sum(answers[part]) <= limit


def test_features_are_what_they_say(base: FrozenBase) -> None:
    answer = ANSWERS[0]
    features = unpack([base.look(PROMPT, [Answer(answer, True)], 0.7)[0].features])[0]
    assert len(features) == base.feature_width == 3 * base.width + 11
    logprobs = plain_logprobs(base, answer, 1.0)
    likely = [logprobs.mean(), logprobs.sum(), logprobs.min(), logprobs[:4].mean()]
    expected = [*likely, 0.0, 0.0, np.log1p(len(answer)), 1.0, 1 / 13, np.log1p(len(answer)), 1.0]
    assert features[-11:] == pytest.approx(np.array(expected, np.float32), rel=2e-3)
    embedded = base.network.get_input_embeddings()(torch.tensor(answer)).mean(0)
    assert features[: base.width] == pytest.approx(embedded.numpy(), abs=2e-3)


def test_features_tell_what_is_handed_back_or_said_again(base: FrozenBase) -> None:
    echo, again, nothing = (unpack([v.features])[0] for v in base.look(PROMPT, [Answer(a, True) for a in (PROMPT[:8], [99] * 8, [])], 1.0))
    assert echo[-7:-3].tolist() == [1.0, 1.0, 0.0, 1.0]
    assert again[-7:-3].tolist() == pytest.approx([0.0, 0.0, np.log1p(8), 1 / 8], abs=2e-3)
    assert nothing.tolist() == [0.0] * (3 * base.width + 4) + [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]


def test_shape_of_a_row() -> None:
    row = pack([1, 2], [[3, 4], [5]], torch.float32)
    assert row.input_ids_1T.tolist() == [[1, 2, 3, 4, 5]]
    assert row.position_ids_1T.tolist() == [[0, 1, 2, 3, 2]]
    assert row.predict_P.tolist() == [1, 2, 1]
    assert row.target_P.tolist() == [3, 4, 5]
    seen = (row.mask_11TT[0, 0] == 0).int().tolist()
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt"):
        pack([], [[1]], torch.float32)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "AMD EPYC 9R14"}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"avx512_bf16": False, "cpu_name": "AMD Ryzen 5 3600"}, torch.float32),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_bfloat16_only_where_the_processor_has_units_of_full_rate(capabilities: dict[str, object], expected: torch.dtype) -> None:
    assert fastest_dtype(capabilities) is expected


@pytest.mark.parametrize(("capabilities", "expected"), [({"amx_bf16": True}, torch.bfloat16), ({}, torch.float32)])
def test_a_base_is_loaded_in_the_fastest_dtype(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert {weight.dtype for weight in load_base(str(tiny_model), None).parameters()} == {expected}
