"""The decoupled, clipped policy objective: pure. Every tensor is over the P tokens of one optimizer batch, log-probs in nats."""

from dataclasses import dataclass

import torch

MAX_IMPORTANCE = 2.0
DUAL_CLIP = 3.0


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A loss to go down, with the figures that say how it went (no gradients)."""

    loss: torch.Tensor
    approx_kl: float
    clipfrac: float
    importance_weight: float
    ess: float


def importance(prox_P: torch.Tensor, behaviour_P: torch.Tensor) -> torch.Tensor:
    """Return truncated importance weights of the proximal over the sampling policy; a log-prob that is NaN counts as no change."""
    log_ratio = torch.nan_to_num(prox_P - behaviour_P, nan=0.0).clamp(-20.0, 20.0)
    return log_ratio.exp().clamp_max(MAX_IMPORTANCE)


def policy_loss(
    logprob_P: torch.Tensor,
    prox_P: torch.Tensor,
    behaviour_P: torch.Tensor,
    advantage_P: torch.Tensor,
    keep_P: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """Return PPO's clipped loss around the proximal policy, weighted by its staleness (AReaL's decoupled objective).

    Token-mean over the whole batch, kept or not, so that a filtered answer weakens the step and does not re-scale the rest; dual clip
    (Ye et al. 2020) bounds what a negative advantage can do.
    """
    weight_P = importance(prox_P, behaviour_P) * keep_P
    ratio_P = (logprob_P - prox_P).exp()
    clipped_P = ratio_P.clamp(1.0 - clip_low, 1.0 + clip_high)
    gain_P = torch.minimum(ratio_P * advantage_P, clipped_P * advantage_P)
    gain_P = torch.where(advantage_P < 0, torch.maximum(gain_P, DUAL_CLIP * advantage_P), gain_P)
    loss = -(weight_P * gain_P).sum() / max(1, len(gain_P))
    with torch.no_grad():
        log_ratio = logprob_P - prox_P
        total = float(weight_P.sum())
        return PolicyLoss(
            loss=loss,
            approx_kl=float((log_ratio.exp() - 1 - log_ratio).mean()) if len(log_ratio) else 0.0,
            clipfrac=float((clipped_P != ratio_P).float().mean()) if len(log_ratio) else 0.0,
            importance_weight=float(weight_P.mean()) if len(log_ratio) else 1.0,
            ess=total**2 / (len(weight_P) * float((weight_P**2).sum())) if total > 0 else 0.0,
        )


def sequence_kept(prox_T: torch.Tensor, behaviour_T: torch.Tensor, low: float = 0.8, high: float = 1.25) -> bool:
    """Whether an answer is still likely enough under today's policy to be learned from: geometric mean ratio within bounds."""
    ratio = float(torch.nan_to_num(prox_T - behaviour_T, nan=0.0).mean().exp()) if len(prox_T) else 1.0
    return low <= ratio <= high
