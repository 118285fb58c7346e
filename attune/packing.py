"""Prefix-tree packing: one row holds a prompt once and all its answers behind it.

Every answer sees the prompt and itself, never its neighbours (4-D mask), and its positions go on from the prompt's end (restarted
position ids). Exact, and 2-3 times fewer tokens than one row per answer. Shapes: T tokens of the row, P predicted tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MAX_ROW_TOKENS = 4096
"""What a row may hold: its mask grows with the square of that, and what a gradient needs with the row."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One row ready for a causal language model.

    `predict_P[i]` is the place in the row whose output predicts `target_P[i]`; `place_P[i]` is where that token itself stands;
    answer `k` owns the slice `spans[k]` of the P axis.
    """

    input_ids_1T: torch.Tensor
    position_ids_1T: torch.Tensor
    mask_11TT: torch.Tensor
    predict_P: torch.Tensor
    target_P: torch.Tensor
    place_P: torch.Tensor
    spans: tuple[slice, ...]


def pack(prompt: Sequence[int], answers: Sequence[Sequence[int]], dtype: torch.dtype) -> Packed:
    """Return prompt and answers as one row; the mask is additive, in `dtype`. The prompt must not be empty."""
    if not prompt:
        raise ValueError("a prompt needs at least one token")
    start = len(prompt)
    total = start + sum(map(len, answers))
    ids, positions = list(prompt), list(range(start))
    allowed_TT = torch.zeros(total, total, dtype=torch.bool)
    allowed_TT[:start, :start] = torch.ones(start, start, dtype=torch.bool).tril()
    predict: list[int] = []
    spans: list[slice] = []
    for answer in answers:
        begin, end = len(ids), len(ids) + len(answer)
        ids += answer
        positions += range(start, start + len(answer))
        allowed_TT[begin:end, :start] = True
        allowed_TT[begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
        spans.append(slice(len(predict), len(predict) + len(answer)))
        predict += [start - 1, *range(begin, end - 1)] if answer else []
    mask_TT = torch.zeros(total, total, dtype=dtype).masked_fill_(~allowed_TT, torch.finfo(dtype).min)
    row = torch.tensor(ids)
    return Packed(
        input_ids_1T=row[None],
        position_ids_1T=torch.tensor(positions)[None],
        mask_11TT=mask_TT[None, None],
        predict_P=torch.tensor(predict, dtype=torch.long),
        target_P=row[start:],
        place_P=torch.arange(start, total),
        spans=tuple(spans),
    )


def rows(prompt_tokens: int, answer_tokens: Sequence[int], limit: int) -> list[slice]:
    """Return which answers share a packed row with the prompt, so that no row of several answers exceeds the limit.

    >>> rows(100, [50, 50, 50], 220)
    [slice(0, 2, None), slice(2, 3, None)]
    """
    parts, start, used = [], 0, prompt_tokens
    for i, tokens in enumerate(answer_tokens):
        if i > start and used + tokens > limit:
            parts.append(slice(start, i))
            start, used = i, prompt_tokens
        used += tokens
    return [*parts, slice(start, len(answer_tokens))]
