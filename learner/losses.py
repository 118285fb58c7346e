"""The decoupled, clipped policy objective: pure. Every tensor is over the P tokens of one row, log-probs in nats.

Rows of one optimizer batch are added up (`Sums`), so that a batch never has to be held in memory at once.
"""

from dataclasses import dataclass

import torch

MAX_IMPORTANCE = 2.0
DUAL_CLIP = 3.0


@dataclass(frozen=True, slots=True)
class Sums:
    """Figures of some tokens, added up; `+` joins two rows and `means` says how it went."""

    tokens: int = 0
    loss: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    kept: float = 0.0
    weight: float = 0.0
    weight_squared: float = 0.0
    advantage: float = 0.0
    advantage_squared: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    @property
    def deviation(self) -> float:
        """Return the standard deviation of the advantages."""
        mean = self.advantage / max(1, self.tokens)
        return float(max(0.0, self.advantage_squared / max(1, self.tokens) - mean**2) ** 0.5)

    @property
    def ess(self) -> float:
        """Return the effective share that the importance weights leave of the tokens that were kept, 0 to 1; 0 if none was."""
        return self.weight**2 / (self.kept * self.weight_squared) if self.weight_squared > 0 else 0.0

    def means(self) -> dict[str, float]:
        """Return the figures under TRL's names, per token."""
        count = max(1, self.tokens)
        return {
            "policy_loss": self.loss / count,
            "approx_kl": self.kl / count,
            "clipfrac": self.clipped / count,
            "importance_weight": self.weight / count,
            "ess": self.ess,
        }


def importance(prox_P: torch.Tensor, behaviour_P: torch.Tensor) -> torch.Tensor:
    """Return truncated importance weights of the proximal over the sampling policy; a log-prob that is NaN counts as no change."""
    log_ratio = torch.nan_to_num(prox_P - behaviour_P, nan=0.0).clamp(-20.0, 20.0)
    return log_ratio.exp().clamp_max(MAX_IMPORTANCE)


def k3(logprob_P: torch.Tensor, earlier_P: torch.Tensor) -> torch.Tensor:
    """Return by token how far a policy went from the earlier one whose answers these are, in nats: Schulman's k3 estimate."""
    moved_P = (logprob_P - earlier_P).clamp(-20.0, 20.0)
    return moved_P.exp() - 1 - moved_P


def policy_loss(
    logprob_P: torch.Tensor,
    prox_P: torch.Tensor,
    behaviour_P: torch.Tensor,
    advantage_P: torch.Tensor,
    keep_P: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, Sums]:
    """Return PPO's clipped loss around the proximal policy, weighted by its staleness (AReaL's decoupled objective), and its figures.

    Summed over the tokens: divide by those of the whole batch, kept or not, so that a filtered answer weakens the step and does not
    re-scale the rest. The dual clip (Ye et al. 2020) bounds what a negative advantage can do.
    """
    weight_P = importance(prox_P, behaviour_P) * keep_P
    ratio_P = (logprob_P - prox_P).clamp(-20.0, 20.0).exp()
    clipped_P = ratio_P.clamp(1.0 - clip_low, 1.0 + clip_high)
    gain_P = torch.minimum(ratio_P * advantage_P, clipped_P * advantage_P)
    gain_P = torch.where(advantage_P < 0, torch.maximum(gain_P, DUAL_CLIP * advantage_P), gain_P)
    loss = -(weight_P * gain_P).sum()
    with torch.no_grad():
        return loss, Sums(
            tokens=len(gain_P),
            loss=float(loss.detach()),
            kl=float(k3(logprob_P, prox_P).sum()),
            clipped=float((clipped_P != ratio_P).sum()),
            kept=float(keep_P.sum()),
            weight=float(weight_P.sum()),
            weight_squared=float((weight_P**2).sum()),
            advantage=float(advantage_P.sum()),
            advantage_squared=float((advantage_P**2).sum()),
        )


def sequence_kept(prox_T: torch.Tensor, behaviour_T: torch.Tensor, low: float = 0.8, high: float = 1.25) -> bool:
    """Whether an answer is still likely enough under today's policy to be learned from: geometric mean ratio within bounds."""
    ratio = float(torch.nan_to_num(prox_T - behaviour_T, nan=0.0).mean().exp()) if len(prox_T) else 1.0
    return low <= ratio <= high
