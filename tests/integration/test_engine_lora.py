"""The grouped matmuls in place of vLLM's CPU LoRA wrapper, against one product per token; whole adapters are tried in `test_swap.py`."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from serve import engine_lora_cpu

pytestmark = pytest.mark.engine
SLOTS, RANK, WIDTH, SLICES, SCALE = 3, 4, 12, (6, 10), 2.0
MANY = engine_lora_cpu.THIN_ROWS + 9


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    engine_lora_cpu._copies.clear()
    yield
    engine_lora_cpu._copies.clear()


@pytest.mark.parametrize("slots", [[1] * 5, [1] * MANY, [-1, 0, 2, -1, 0], [0, -1, 2] * MANY, [-1] * 5], ids=str)
def test_every_row_gets_what_its_own_adapter_adds(slots: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    x_TI, before_TO = normal(len(slots), WIDTH), normal(len(slots), sum(SLICES))
    a_parts = tuple(normal(SLOTS, 1, RANK, WIDTH) for _ in SLICES)
    b_parts = tuple(normal(SLOTS, 1, size, RANK) for size in SLICES)
    b_parts[0][2] = 0.0  # an adapter that leaves one slice alone
    y_TO = before_TO.clone()
    wrapper = SimpleNamespace(groups=engine_lora_cpu._groups(torch.tensor(slots)))
    engine_lora_cpu._add_lora_linear(wrapper, y_TO, x_TI, a_parts, b_parts, SCALE, SLICES)
    for row, slot in enumerate(slots):
        expected = before_TO[row].float()
        if slot >= 0:
            pairs = zip(a_parts, b_parts, strict=True)
            expected = expected + SCALE * torch.cat([b[slot, 0].float() @ (a[slot, 0].float() @ x_TI[row].float()) for a, b in pairs])
        torch.testing.assert_close(y_TO[row].float(), expected, rtol=2e-2, atol=0.1)


def test_copies_outlive_steps_but_not_the_slot_s_adapter() -> None:
    from vllm.lora.model_manager import LoRAModelManager

    activate, lives = engine_lora_cpu._forgetting(LoRAModelManager.activate_adapter), SimpleNamespace(_active_adapters={7: None})
    engine_lora_cpu._copies[1, 0] = []
    assert not activate(lives, 7)
    assert engine_lora_cpu._copies
    with pytest.raises(ValueError, match="No free lora slots"):
        activate(SimpleNamespace(_active_adapters={}, lora_index_to_id=[7]), 8)
    assert not engine_lora_cpu._copies
    engine_lora_cpu._copies[1, 0] = []
    assert engine_lora_cpu._forgetting(lambda: True)()
    assert not engine_lora_cpu._copies
