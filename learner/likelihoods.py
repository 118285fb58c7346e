"""One likelihood per kind of vote, over the utilities f of the answers that were judged; each also as Fisher rows.

Orders: Plackett-Luce. Comparisons, decided or tied: Davidson with a shrunk readiness to call it a tie. Both with a shrunk effect of the
place where an answer stood. Thumbs: logistic with a bias and a shrunk offset per user; a tie of good or bad answers is a thumb on
the mean of the two as well. Stars: ordinal logit with shrunk thresholds and the same offsets.
Shapes: M judged answers, S signals, L longest order, U users.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attune.types import Demonstration, Kind, Preference, Rating, Signal

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
NEGLIGIBLE = 1e-9
"""Information below this says nothing."""

Index = dict[tuple[str, int], int]
"""(interaction id, candidate; -1 - k for the k-th edit) -> row of the feature matrix."""


@dataclass(frozen=True, slots=True)
class Batch:
    """All signals as index tensors; built once per fit."""

    order_SL: torch.Tensor
    order_mask_SL: torch.Tensor
    order_place_SL: torch.Tensor
    order_weight_S: torch.Tensor
    pair_S2: torch.Tensor
    pair_place_S2: torch.Tensor
    pair_tied_S: torch.Tensor
    """Whether it was called a tie; else the first of the pair won."""
    pair_weight_S: torch.Tensor
    thumb_S2: torch.Tensor
    """Both answers of a tie; elsewhere the same answer twice."""
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
    pairs: list[tuple[list[int], list[int], bool, float]] = []
    thumbs: list[tuple[list[int], float, int, float]] = []
    stars: list[tuple[int, int, int, float]] = []
    users: dict[str | None, int] = {}
    for signal in signals:
        match signal:
            case Preference():
                places = [min(place, NUM_PLACES - 1) for place in signal.places] or [0] * len(signal.order)
                named = [rows[signal.interaction_id, c] for c in signal.order]
                if signal.source is Kind.COMPARISON:
                    pairs.append((named, places, signal.tie, signal.weight))
                else:
                    orders.append((named, places, signal.weight))
                if signal.good is not None:
                    thumbs.append((named, float(signal.good), users.setdefault(signal.user, len(users)), signal.weight))
            case Demonstration():
                if signal.feedback_id in edits:
                    pair = [edits[signal.feedback_id], rows[signal.interaction_id, signal.candidate]]
                    orders.append((pair, [0, 0], signal.weight))
            case Rating():
                user = users.setdefault(signal.user, len(users))
                row = rows[signal.interaction_id, signal.candidate]
                if signal.levels == 2:
                    thumbs.append(([row, row], float(signal.level), user, signal.weight))
                else:
                    stars.append((row, signal.level, user, signal.weight))
    longest = max((len(o) for o, _, _ in orders), default=2)
    return Batch(
        order_SL=torch.tensor([o + [0] * (longest - len(o)) for o, _, _ in orders], dtype=torch.long).reshape(-1, longest),
        order_mask_SL=torch.tensor([[i < len(o) for i in range(longest)] for o, _, _ in orders], dtype=torch.bool).reshape(-1, longest),
        order_place_SL=torch.tensor([p + [0] * (longest - len(p)) for _, p, _ in orders], dtype=torch.long).reshape(-1, longest),
        order_weight_S=torch.tensor([w for _, _, w in orders]),
        pair_S2=torch.tensor([p[0] for p in pairs], dtype=torch.long).reshape(-1, 2),
        pair_place_S2=torch.tensor([p[1] for p in pairs], dtype=torch.long).reshape(-1, 2),
        pair_tied_S=torch.tensor([p[2] for p in pairs], dtype=torch.bool),
        pair_weight_S=torch.tensor([p[3] for p in pairs]),
        thumb_S2=torch.tensor([t[0] for t in thumbs], dtype=torch.long).reshape(-1, 2),
        thumb_up_S=torch.tensor([t[1] for t in thumbs]),
        thumb_user_S=torch.tensor([t[2] for t in thumbs], dtype=torch.long),
        thumb_weight_S=torch.tensor([t[3] for t in thumbs]),
        star_S=torch.tensor([s[0] for s in stars], dtype=torch.long),
        star_level_S=torch.tensor([s[1] for s in stars], dtype=torch.long),
        star_user_S=torch.tensor([s[2] for s in stars], dtype=torch.long),
        star_weight_S=torch.tensor([s[3] for s in stars]),
        num_users=len(users),
    )


def nll(batch: Batch, f_M: torch.Tensor, nuisance: torch.Tensor, offset_U: torch.Tensor, prior: float = 1.0) -> torch.Tensor:
    """Return the weighted negative log-likelihood plus the priors of the nuisance terms, of these a share for a share of all votes.

    `nuisance` holds the thumb bias, then what each star threshold lies off its default, the effect of every place but the first, and the
    readiness to call it a tie.
    """
    place_L = _place_effects(nuisance)
    total = 0.5 * (nuisance[: _STARS.stop] ** 2).sum() + 0.5 * ((place_L / PLACE_STD) ** 2).sum()
    total = prior * (total + 0.5 * (nuisance[_TIES] / TIE_STD) ** 2 + 0.5 * ((offset_U / OFFSET_STD) ** 2).sum())
    if len(batch.order_weight_S):
        g_SL = (f_M[batch.order_SL] + place_L[batch.order_place_SL]).masked_fill(~batch.order_mask_SL, -torch.inf)
        rest_SL = g_SL.flip(1).logcumsumexp(1).flip(1)
        steps_SL = torch.where(batch.order_mask_SL, rest_SL - g_SL, 0.0)
        total = total + (batch.order_weight_S * steps_SL.sum(1)).sum()
    if len(batch.pair_weight_S):
        logits_S3 = _davidson(f_M[batch.pair_S2] + place_L[batch.pair_place_S2], nuisance[_TIES])
        said_S = torch.where(batch.pair_tied_S, logits_S3[:, 2], logits_S3[:, 0])
        total = total + (batch.pair_weight_S * (logits_S3.logsumexp(1) - said_S)).sum()
    if len(batch.thumb_weight_S):
        logit_S = f_M[batch.thumb_S2].mean(1) + nuisance[_BIAS] + offset_U[batch.thumb_user_S]
        total = total + (batch.thumb_weight_S * torch.nn.functional.softplus(logit_S * (1 - 2 * batch.thumb_up_S))).sum()
    if len(batch.star_weight_S):
        p_SL = _star_probabilities(f_M[batch.star_S] + offset_U[batch.star_user_S], nuisance[_STARS])
        chosen_S = p_SL.gather(1, batch.star_level_S[:, None])[:, 0]
        total = total - (batch.star_weight_S * chosen_S.clamp_min(1e-8).log()).sum()
    return total


def fisher_rows(batch: Batch, phi_MD: torch.Tensor, f_M: torch.Tensor, nuisance: torch.Tensor, offset_U: torch.Tensor) -> torch.Tensor:
    """Return A with A'A = the Fisher information of the weights w in f = phi w, at these utilities; as few rows as it takes."""
    rows: list[torch.Tensor] = []
    place_L = _place_effects(nuisance)
    if len(batch.order_weight_S):
        signal_A, part_AL = _order_parts(batch, f_M, place_L)
        rows.append(torch.einsum("al,ald->ad", part_AL, phi_MD[batch.order_SL[signal_A]]))
    if len(batch.pair_weight_S):
        p_S3 = _davidson(f_M[batch.pair_S2] + place_L[batch.pair_place_S2], nuisance[_TIES]).softmax(1)
        win_S, loss_S = p_S3[:, 0], p_S3[:, 1]  # the three outcomes lie at +1/2, -1/2 and 0 of the difference
        size_S = (batch.pair_weight_S * 0.25 * (win_S + loss_S - (win_S - loss_S) ** 2)).clamp_min(0.0).sqrt()
        rows.append(size_S[:, None] * (phi_MD[batch.pair_S2[:, 0]] - phi_MD[batch.pair_S2[:, 1]]))
    if len(batch.thumb_weight_S):
        p_S = (f_M[batch.thumb_S2].mean(1) + nuisance[_BIAS] + offset_U[batch.thumb_user_S]).sigmoid()
        rows.append((batch.thumb_weight_S * p_S * (1 - p_S)).sqrt()[:, None] * phi_MD[batch.thumb_S2].mean(1))
    if len(batch.star_weight_S):
        f_S = f_M[batch.star_S] + offset_U[batch.star_user_S]
        low, high = _star_probabilities(f_S - 0.05, nuisance[_STARS]), _star_probabilities(f_S + 0.05, nuisance[_STARS])
        information_S = (((high - low) / 0.1) ** 2 / (0.5 * (high + low)).clamp_min(1e-6)).sum(1)
        rows.append((batch.star_weight_S * information_S).sqrt()[:, None] * phi_MD[batch.star_S])
    return torch.cat(rows) if rows else phi_MD[:0]


def knowing(bias: float) -> torch.Tensor:
    """Return nuisance terms of which nothing is known but the logit of a thumb up on an answer of utility 0."""
    nuisance = torch.zeros(NUM_NUISANCE)
    nuisance[_BIAS] = bias
    return nuisance


def thumb_bias(nuisance: torch.Tensor) -> float:
    """Return the logit of a thumb up on an answer of utility 0."""
    return float(nuisance[_BIAS])


def star_middle(nuisance: torch.Tensor) -> tuple[float, float]:
    """Return the utilities from which on people give three stars or more, and four or more, as often as not."""
    _, third, fourth, _ = _star_thresholds(nuisance[_STARS]).tolist()
    return third, fourth


def _place_effects(nuisance: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros(1), nuisance[_PLACES]])


def _davidson(pair_S2: torch.Tensor, readiness: torch.Tensor) -> torch.Tensor:
    """Return logits of first wins, second wins, tie (Davidson 1970, nu = exp(TIE_LOG_NU + readiness))."""
    return torch.cat([pair_S2, pair_S2.mean(1, keepdim=True) + TIE_LOG_NU + readiness], 1)


def _star_thresholds(shift: torch.Tensor) -> torch.Tensor:
    return torch.cummax(torch.tensor(STAR_THRESHOLDS) + shift, 0).values


def _star_probabilities(f_S: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    below_S4 = (_star_thresholds(shift) - f_S[:, None]).sigmoid()
    zero, one = torch.zeros(len(f_S), 1), torch.ones(len(f_S), 1)
    return torch.cat([below_S4, one], 1) - torch.cat([zero, below_S4], 1)


def _order_parts(batch: Batch, f_M: torch.Tensor, place_L: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each Fisher row of the orders is made of: the signal that it belongs to, and the weights of that signal's answers.

    An order of n answers holds information of rank n - 1, of all its stages together.
    """
    g_SL, longest = (f_M[batch.order_SL] + place_L[batch.order_place_SL]).double(), batch.order_SL.shape[1]
    information_SLL = torch.zeros(len(g_SL), longest, longest, dtype=torch.double)
    for stage in range(longest - 1):
        going = batch.order_mask_SL[:, stage + 1]  # a last place that is alone says nothing
        left_SL = batch.order_mask_SL & (torch.arange(longest) >= stage)
        p_SL = g_SL.masked_fill(~left_SL, -torch.inf)[going].softmax(1)
        information_SLL[going] += torch.diag_embed(p_SL) - p_SL[:, :, None] * p_SL[:, None, :]
    size_SL, way_SLL = torch.linalg.eigh(information_SLL * batch.order_weight_S[:, None, None])
    signal_A, part_A = torch.nonzero(size_SL > NEGLIGIBLE, as_tuple=True)
    return signal_A, (way_SLL[signal_A, :, part_A] * size_SL[signal_A, part_A].sqrt()[:, None]).float()
