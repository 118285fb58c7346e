"""The critic: it predicts before it learns, is not used before it can tell, and finds what is there to be found."""

import pytest
import torch

from learner.critic import Critic


def answers(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden_PH = torch.randn(count, 16, generator=generator)
    return hidden_PH, hidden_PH[:, 0] - 0.5 * hidden_PH[:, 3] + 0.3 * torch.randn(count, generator=generator)


def test_it_learns_what_hidden_states_say_and_is_trusted_only_then() -> None:
    critic = Critic(16)
    explained = []
    for seed in range(6):
        hidden_PH, return_P = answers(400, seed)
        feature_PF = critic.features(hidden_PH)
        if not critic.trusted:
            assert critic.values(feature_PF).abs().max() == 0
        explained.append(critic.learn(feature_PF, return_P)["explained_variance"])
    assert explained[0] == pytest.approx(0.0, abs=1e-6)
    assert explained[-1] > 0.7
    assert critic.trusted
    hidden_PH, return_P = answers(400, 99)
    assert float((return_P - critic.values(critic.features(hidden_PH))).var() / return_P.var()) < 0.3


def test_noise_is_never_trusted() -> None:
    critic, generator = Critic(16), torch.Generator().manual_seed(0)
    for seed in range(8):
        critic.learn(critic.features(answers(100, seed)[0]), torch.randn(100, generator=generator))
        assert not critic.trusted


def test_what_it_knows_comes_back() -> None:
    critic, other = Critic(16), Critic(16)
    for seed in range(4):
        hidden_PH, return_P = answers(200, seed)
        critic.learn(critic.features(hidden_PH), return_P)
    other.take(critic.state())
    critic.forget()
    feature_PF = other.features(answers(50, 9)[0])
    assert other.trusted
    assert other.values(feature_PF).abs().max() > 0
    assert not critic.trusted
    assert critic.weight_F.abs().max() == 0
