"""Votes in, a reward version out: MAP fits with Laplace posteriors, several probes mixed by their evidence.

A probe is a prior that says which feature groups matter: all alike, or one above the others. One prior for everything dilutes a rare
taste that shows in one group alone, so every probe is fitted and their evidence decides. Shapes: M judged answers, D features,
A Fisher rows, K particles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from attune.frozen import NUM_SCALARS
from attune.reward import Anchors, Array, RewardModel
from attune.types import Signal
from learner.likelihoods import NUM_NUISANCE, Batch, Index, fisher_rows, make_batch, nll

NUM_PARTICLES = 16
STEPS = 30
NEGLIGIBLE_NATS = 10.0

PROBES: Mapping[str, tuple[float, float, float, float]] = {
    "all": (0.6, 0.6, 0.6, 1.3),
    "words": (3.0, 0.05, 0.05, 0.3),
    "meaning": (0.05, 3.0, 0.05, 0.3),
    "ending": (0.05, 0.05, 3.0, 0.3),
    "scalars": (0.05, 0.05, 0.05, 3.0),
}
"""Prior variance of the utility that comes from: embeddings, mean of the deep layer, its last token, the scalars."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Everything one fit needs: features of judged answers, where each lies, and the signals."""

    features_MD: Array
    rows: Index
    edits: dict[str, int]
    signals: Sequence[Signal]


@dataclass(frozen=True, slots=True)
class _Mode:
    """The most likely weights of one probe, before its posterior is known."""

    phi_MD: torch.Tensor
    std_D: torch.Tensor
    w_D: torch.Tensor
    nuisance: torch.Tensor
    offset_U: torch.Tensor
    loss: float


@dataclass(frozen=True, slots=True)
class _Fit:
    weights_D: torch.Tensor
    samples_KD: torch.Tensor
    log_evidence: float


def fit(judged: Judged, anchors_ND: Array, pessimism: float, seed: int) -> tuple[RewardModel, dict[str, float]]:
    """Return a reward model (version 0 until it is published) and its figures. Deterministic for the same input and seed.

    `anchors_ND` are raw features of typical answers: they centre and scale the features, and give the range of what can be earned.
    """
    center_D = anchors_ND.mean(0)
    scale_D = np.maximum(anchors_ND.std(0), 1e-3)
    plain = RewardModel(0, center_D, scale_D, np.zeros_like(center_D), np.zeros((1, len(center_D)), np.float32))
    z_MD = torch.from_numpy(plain.standardise(judged.features_MD))
    batch = make_batch(judged.signals, judged.rows, judged.edits)
    generator = torch.Generator().manual_seed(seed)
    fits = _fits(batch, z_MD, generator)
    share = torch.softmax(torch.tensor([f.log_evidence for f in fits.values()]), 0)
    mean_D = sum(float(s) * f.weights_D for s, f in zip(share, fits.values(), strict=True))
    origin = torch.multinomial(share, NUM_PARTICLES, replacement=True, generator=generator)
    every = list(fits.values())
    particles_KD = torch.stack([every[int(o)].samples_KD[k] for k, o in enumerate(origin)])
    assert isinstance(mean_D, torch.Tensor)
    model = RewardModel(0, center_D, scale_D, mean_D.numpy(), particles_KD.numpy())
    model = replace(model, anchors=_anchors(model, anchors_ND, pessimism))
    report = {f"probe_{name}": round(float(s), 4) for name, s in zip(fits, share, strict=True)}
    return model, report | {"signals": float(len(judged.signals)), "answers": float(len(z_MD))}


def _prior_std(variances: Sequence[float], width: int) -> torch.Tensor:
    group = (width - NUM_SCALARS) // 3
    sizes = (group, group, group, NUM_SCALARS)
    return torch.cat([torch.full((size,), (v / size) ** 0.5) for v, size in zip(variances, sizes, strict=True)])


def _fits(batch: Batch, z_MD: torch.Tensor, generator: torch.Generator) -> dict[str, _Fit]:
    """Return the probes that can matter: evidence never exceeds -loss, so the hopeless are dropped before the costly part."""
    modes = {name: _mode(batch, z_MD, _prior_std(variances, z_MD.shape[1])) for name, variances in PROBES.items()}
    fits: dict[str, _Fit] = {}
    best = -float("inf")
    for name, mode in sorted(modes.items(), key=lambda item: item[1].loss):
        if -mode.loss > best - NEGLIGIBLE_NATS:
            fits[name] = _laplace(batch, mode, generator)
            best = max(best, fits[name].log_evidence)
    return fits


def _mode(batch: Batch, z_MD: torch.Tensor, std_D: torch.Tensor) -> _Mode:
    phi_MD = z_MD * std_D
    w_D = torch.zeros(phi_MD.shape[1], requires_grad=True)
    nuisance = torch.zeros(NUM_NUISANCE, requires_grad=True)
    offset_U = torch.zeros(batch.num_users, requires_grad=True)
    parameters = [w_D, nuisance, offset_U]
    optimizer = torch.optim.LBFGS(parameters, max_iter=STEPS, history_size=8, line_search_fn="strong_wolfe", tolerance_grad=1e-3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nll(batch, phi_MD @ w_D, nuisance, offset_U) + 0.5 * (w_D**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    loss = float(closure().detach())
    return _Mode(phi_MD, std_D, w_D.detach(), nuisance.detach(), offset_U.detach(), loss)


def _laplace(batch: Batch, mode: _Mode, generator: torch.Generator) -> _Fit:
    rows_AD = fisher_rows(batch, mode.phi_MD, mode.phi_MD @ mode.w_D, mode.nuisance, mode.offset_U)
    noise_KD, half_logdet = _posterior(rows_AD, generator)
    return _Fit(mode.w_D * mode.std_D, (mode.w_D + noise_KD) * mode.std_D, -mode.loss - half_logdet)


def _posterior(rows_AD: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, float]:
    """Return samples of N(0, (I + A'A)^-1) and half the log-determinant of I + A'A, on whichever side is smaller."""
    count, width = rows_AD.shape
    prior_KD = torch.randn(NUM_PARTICLES, width, generator=generator)
    noise_KA = torch.randn(NUM_PARTICLES, count, generator=generator)
    pull_KD = prior_KD + noise_KA @ rows_AD
    if count <= width:
        chol = torch.linalg.cholesky(torch.eye(count) + rows_AD @ rows_AD.t())
        inner_AK = torch.cholesky_solve(rows_AD @ pull_KD.t(), chol)
        samples_KD = pull_KD - inner_AK.t() @ rows_AD
    else:
        chol = torch.linalg.cholesky(torch.eye(width) + rows_AD.t() @ rows_AD)
        samples_KD = torch.cholesky_solve(pull_KD.t(), chol).t()
    return samples_KD, float(chol.diagonal().log().sum())


def _anchors(model: RewardModel, anchors_ND: Array, pessimism: float) -> Anchors:
    mean_N, spread_N = model.judge(anchors_ND)
    total_N = mean_N - pessimism * spread_N
    low, high = np.percentile(total_N, [2, 98])
    return Anchors(float(total_N.mean()), max(float(total_N.std()), 1e-3), float(low), float(high))
