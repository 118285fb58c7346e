"""The critic: how much better or worse than its baseline an answer will turn out, read off hidden states that are there anyway.

Ridge regression on the policy's own last hidden states, in closed form, with forgetting: no forward of its own, no learning rate. It
predicts before it learns, and its values count only while they explain enough of what is to come; until then they are 0, and the
advantages are those of the leave-one-out baseline alone. Shapes: P predicted tokens, H hidden width, F = H + 1 features.
"""

import torch

RIDGE = 10.0
FORGET = 0.9
TRUST = 0.2
"""Explained variance from which on the values are used (and lambda < 1 with them)."""
SMOOTHING = 0.5


class Critic:
    """Values of unfinished answers, in units of reward, relative to the request's baseline."""

    def __init__(self, width: int) -> None:
        self.gram_FF = torch.zeros(width + 1, width + 1)
        self.moment_F = torch.zeros(width + 1)
        self.weight_F = torch.zeros(width + 1)
        self.explained = torch.zeros(())
        """Running explained variance of predictions made before the answers were learned."""

    @property
    def trusted(self) -> bool:
        """Whether the values are good enough to be used."""
        return float(self.explained) > TRUST

    def features(self, hidden_PH: torch.Tensor) -> torch.Tensor:
        """Return (P, F): hidden states of unit mean square, scaled to unit length, and a bias."""
        plain_PH = hidden_PH.detach().float()
        plain_PH = plain_PH / plain_PH.pow(2).mean(1, keepdim=True).sqrt().clamp_min(1e-6)
        return torch.cat([plain_PH, torch.ones(len(plain_PH), 1)], 1).div_(plain_PH.shape[1] ** 0.5)

    def values(self, feature_PF: torch.Tensor) -> torch.Tensor:
        """Return the value before each token (P); zeros until the critic is trusted."""
        return feature_PF @ self.weight_F if self.trusted else torch.zeros(len(feature_PF))

    def learn(self, feature_PF: torch.Tensor, return_P: torch.Tensor) -> dict[str, float]:
        """Predict, then learn, what came of each token on; return `explained_variance` and `value_loss` of the prediction."""
        error_P = return_P - feature_PF @ self.weight_F
        deviation = float(return_P.var(unbiased=False))
        explained = 1.0 - float(error_P.var(unbiased=False)) / deviation if deviation > 1e-8 else 0.0
        self.explained = SMOOTHING * self.explained + (1 - SMOOTHING) * max(-1.0, explained)
        self.gram_FF = FORGET * self.gram_FF + feature_PF.t() @ feature_PF
        self.moment_F = FORGET * self.moment_F + feature_PF.t() @ return_P
        self.weight_F = torch.linalg.solve(self.gram_FF + RIDGE * torch.eye(len(self.gram_FF)), self.moment_F)
        return {"explained_variance": explained, "value_loss": 0.5 * float(error_P.pow(2).mean())}

    def forget(self) -> None:
        """Know nothing again."""
        for tensor in self.state().values():
            tensor.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything that it knows, by name."""
        return {"gram_FF": self.gram_FF, "moment_F": self.moment_F, "weight_F": self.weight_F, "explained": self.explained}

    def take(self, state: dict[str, torch.Tensor]) -> None:
        """Know what `state` returned, here or elsewhere."""
        for name in self.state():
            setattr(self, name, state[name].clone())
