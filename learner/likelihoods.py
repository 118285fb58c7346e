"""One likelihood per kind of vote, over the utilities f of the answers that were judged; each also as Fisher rows.

Orders: Plackett-Luce (two of them: Bradley-Terry), ties: Davidson with a shrunk readiness to call it one, both with a shrunk effect of
the place where an answer stood. Thumbs: logistic with a bias and a shrunk offset per user. Stars: ordinal logit with shrunk thresholds
and the same offsets.
Shapes: M judged answers, S signals, L longest order, U users.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attune.types import Demonstration, Preference, Rating, Signal

TIE_LOG_NU, TIE_STD = -0.5, 1.0
"""How readily people call it a tie, before they have been seen to: where they often do, a tie says little about the two answers."""
OFFSET_STD = 0.5
STAR_THRESHOLDS = (-2.0, -0.7, 0.7, 2.0)
NUM_PLACES = 4
PLACE_STD = 0.3
_BIAS, _STARS = 0, slice(1, 1 + len(STAR_THRESHOLDS))
_PLACES = slice(_STARS.stop, _STARS.stop + NUM_PLACES - 1)
_TIES = _PLACES.stop
NUM_NUISANCE = _TIES + 1

Index = dict[tuple[str, int], int]
"""(interaction id, candidate; -1 - k for the k-th edit) -> row of the feature matrix."""


@dataclass(frozen=True, slots=True)
class Batch:
    """All signals as index tensors; built once per fit."""

    order_SL: torch.Tensor
    order_mask_SL: torch.Tensor
    order_place_SL: torch.Tensor
    order_weight_S: torch.Tensor
    tie_S2: torch.Tensor
    tie_place_S2: torch.Tensor
    tie_weight_S: torch.Tensor
    thumb_S: torch.Tensor
    thumb_up_S: torch.Tensor
    thumb_user_S: torch.Tensor
    thumb_weight_S: torch.Tensor
    star_S: torch.Tensor
    star_level_S: torch.Tensor
    star_user_S: torch.Tensor
    star_weight_S: torch.Tensor
    num_users: int


def make_batch(signals: Sequence[Signal], rows: Index, edits: dict[str, int]) -> Batch:
    """Return the signals as tensors; `rows` finds a candidate's features and `edits` those of an edited text by feedback id."""
    orders: list[tuple[list[int], list[int], float]] = []
    ties: list[tuple[list[int], list[int], float]] = []
    thumbs: list[tuple[int, float, int, float]] = []
    stars: list[tuple[int, int, int, float]] = []
    users: dict[str | None, int] = {}
    for signal in signals:
        match signal:
            case Preference():
                places = [min(place, NUM_PLACES - 1) for place in signal.places] or [0] * len(signal.order)
                named = [rows[signal.interaction_id, c] for c in signal.order]
                (ties if signal.tie else orders).append((named, places, signal.weight))
            case Demonstration():
                if signal.feedback_id in edits:
                    pair = [edits[signal.feedback_id], rows[signal.interaction_id, signal.candidate]]
                    orders.append((pair, [0, 0], signal.weight))
            case Rating():
                user = users.setdefault(signal.user, len(users))
                row = rows[signal.interaction_id, signal.candidate]
                if signal.levels == 2:
                    thumbs.append((row, float(signal.level), user, signal.weight))
                else:
                    stars.append((row, signal.level, user, signal.weight))
    longest = max((len(o) for o, _, _ in orders), default=2)
    return Batch(
        order_SL=torch.tensor([o + [0] * (longest - len(o)) for o, _, _ in orders], dtype=torch.long).reshape(-1, longest),
        order_mask_SL=torch.tensor([[i < len(o) for i in range(longest)] for o, _, _ in orders], dtype=torch.bool).reshape(-1, longest),
        order_place_SL=torch.tensor([p + [0] * (longest - len(p)) for _, p, _ in orders], dtype=torch.long).reshape(-1, longest),
        order_weight_S=torch.tensor([w for _, _, w in orders]),
        tie_S2=torch.tensor([t for t, _, _ in ties], dtype=torch.long).reshape(-1, 2),
        tie_place_S2=torch.tensor([p for _, p, _ in ties], dtype=torch.long).reshape(-1, 2),
        tie_weight_S=torch.tensor([w for _, _, w in ties]),
        thumb_S=torch.tensor([t[0] for t in thumbs], dtype=torch.long),
        thumb_up_S=torch.tensor([t[1] for t in thumbs]),
        thumb_user_S=torch.tensor([t[2] for t in thumbs], dtype=torch.long),
        thumb_weight_S=torch.tensor([t[3] for t in thumbs]),
        star_S=torch.tensor([s[0] for s in stars], dtype=torch.long),
        star_level_S=torch.tensor([s[1] for s in stars], dtype=torch.long),
        star_user_S=torch.tensor([s[2] for s in stars], dtype=torch.long),
        star_weight_S=torch.tensor([s[3] for s in stars]),
        num_users=len(users),
    )


def nll(batch: Batch, f_M: torch.Tensor, nuisance: torch.Tensor, offset_U: torch.Tensor) -> torch.Tensor:
    """Return the weighted negative log-likelihood plus the priors of the nuisance terms.

    `nuisance` holds the thumb bias, then what each star threshold lies off its default, the effect of every place but the first, and the
    readiness to call it a tie.
    """
    place_L = _place_effects(nuisance)
    total = 0.5 * (nuisance[: _STARS.stop] ** 2).sum() + 0.5 * ((place_L / PLACE_STD) ** 2).sum()
    total = total + 0.5 * (nuisance[_TIES] / TIE_STD) ** 2 + 0.5 * ((offset_U / OFFSET_STD) ** 2).sum()
    if len(batch.order_weight_S):
        g_SL = (f_M[batch.order_SL] + place_L[batch.order_place_SL]).masked_fill(~batch.order_mask_SL, -torch.inf)
        rest_SL = g_SL.flip(1).logcumsumexp(1).flip(1)
        steps_SL = torch.where(batch.order_mask_SL, rest_SL - g_SL, 0.0)
        total = total + (batch.order_weight_S * steps_SL.sum(1)).sum()
    if len(batch.tie_weight_S):
        logits_S3 = _davidson(f_M[batch.tie_S2] + place_L[batch.tie_place_S2], nuisance[_TIES])
        total = total + (batch.tie_weight_S * (logits_S3.logsumexp(1) - logits_S3[:, 2])).sum()
    if len(batch.thumb_weight_S):
        logit_S = f_M[batch.thumb_S] + nuisance[_BIAS] + offset_U[batch.thumb_user_S]
        total = total + (batch.thumb_weight_S * torch.nn.functional.softplus(logit_S * (1 - 2 * batch.thumb_up_S))).sum()
    if len(batch.star_weight_S):
        p_SL = _star_probabilities(f_M[batch.star_S] + offset_U[batch.star_user_S], nuisance[_STARS])
        chosen_S = p_SL.gather(1, batch.star_level_S[:, None])[:, 0]
        total = total - (batch.star_weight_S * chosen_S.clamp_min(1e-8).log()).sum()
    return total


def fisher_rows(batch: Batch, phi_MD: torch.Tensor, f_M: torch.Tensor, nuisance: torch.Tensor, offset_U: torch.Tensor) -> torch.Tensor:
    """Return A with A'A = the Fisher information of the weights w in f = phi w, at these utilities."""
    rows: list[torch.Tensor] = []
    place_L = _place_effects(nuisance)
    for stage in range(batch.order_SL.shape[1] - 1 if len(batch.order_weight_S) else 0):
        active = batch.order_mask_SL[:, stage + 1]  # a last place that is alone says nothing
        index_SL, mask_SL = batch.order_SL[active, stage:], batch.order_mask_SL[active, stage:]
        p_SL = (f_M[index_SL] + place_L[batch.order_place_SL[active, stage:]]).masked_fill(~mask_SL, -torch.inf).softmax(1)
        rows.append(_centred(p_SL, phi_MD[index_SL], batch.order_weight_S[active]))
    if len(batch.tie_weight_S):
        pair_S2D = phi_MD[batch.tie_S2]
        outcome_S3D = torch.cat([pair_S2D, pair_S2D.mean(1, keepdim=True)], 1)
        p_S3 = _davidson(f_M[batch.tie_S2] + place_L[batch.tie_place_S2], nuisance[_TIES]).softmax(1)
        rows.append(_centred(p_S3, outcome_S3D, batch.tie_weight_S))
    if len(batch.thumb_weight_S):
        p_S = (f_M[batch.thumb_S] + nuisance[_BIAS] + offset_U[batch.thumb_user_S]).sigmoid()
        rows.append((batch.thumb_weight_S * p_S * (1 - p_S)).sqrt()[:, None] * phi_MD[batch.thumb_S])
    if len(batch.star_weight_S):
        f_S = f_M[batch.star_S] + offset_U[batch.star_user_S]
        low, high = _star_probabilities(f_S - 0.05, nuisance[_STARS]), _star_probabilities(f_S + 0.05, nuisance[_STARS])
        information_S = (((high - low) / 0.1) ** 2 / (0.5 * (high + low)).clamp_min(1e-6)).sum(1)
        rows.append((batch.star_weight_S * information_S).sqrt()[:, None] * phi_MD[batch.star_S])
    return torch.cat(rows) if rows else phi_MD[:0]


def thumb_bias(nuisance: torch.Tensor) -> float:
    """Return the logit of a thumb up on an answer of utility 0."""
    return float(nuisance[_BIAS])


def _place_effects(nuisance: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros(1), nuisance[_PLACES]])


def _davidson(pair_S2: torch.Tensor, readiness: torch.Tensor) -> torch.Tensor:
    """Return logits of first wins, second wins, tie (Davidson 1970, nu = exp(TIE_LOG_NU + readiness))."""
    return torch.cat([pair_S2, pair_S2.mean(1, keepdim=True) + TIE_LOG_NU + readiness], 1)


def _star_probabilities(f_S: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    threshold = torch.tensor(STAR_THRESHOLDS) + shift
    below_S4 = (torch.cummax(threshold, 0).values - f_S[:, None]).sigmoid()
    zero, one = torch.zeros(len(f_S), 1), torch.ones(len(f_S), 1)
    return torch.cat([below_S4, one], 1) - torch.cat([zero, below_S4], 1)


def _centred(p_SL: torch.Tensor, value_SLD: torch.Tensor, weight_S: torch.Tensor) -> torch.Tensor:
    mean_S1D = torch.einsum("sl,sld->sd", p_SL, value_SLD)[:, None]
    scaled = (weight_S[:, None] * p_SL).sqrt()[..., None] * (value_SLD - mean_S1D)
    return scaled.flatten(0, 1)
