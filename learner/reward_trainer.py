"""Votes in, a reward version out: MAP fits with Laplace posteriors, several probes mixed by their evidence.

A probe is a prior that says which feature groups matter: all alike, or one above the others. One prior for everything dilutes a rare
taste that shows in one group alone, so every probe is fitted and their evidence decides. Shapes: M judged answers, D numbers
of an answer (`attune.reward.matrix`), A Fisher rows, K particles.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from attune.frozen import NUM_SCALARS
from attune.reward import Anchors, Array, Debias, RewardModel, Scale
from attune.style import NUM_LOOKS, STYLES, style
from attune.types import Signal, Version
from learner.likelihoods import NUM_NUISANCE, Batch, Index, fisher_rows, make_batch, nll, star_middle, thumb_bias

NUM_PARTICLES = 16
STEPS = 30
TOLERANCE_NATS = 1e-2
JITTER = 1e-3
NEGLIGIBLE_NATS = 10.0
NEWEST_JUDGED, ENOUGH_JUDGED = 128, 32
LEAST_SHARE = 0.01
FEW_VOTES = 300
"""Up to so many votes, all probes together are fitted in less than a second."""
OTHER_PROBES_EVERY, MANY = 8, 8
"""Store positions after which a fit tries probes again that had no say in the last one; so many times that where votes are many."""
RARE_LOOK = 0.25
"""Least deviation of a look: what no typical answer has, such as a list, must not count ten deviations once one has it."""

PROBES: Mapping[str, tuple[float, float, float, float, float]] = {
    "all": (0.3, 0.6, 0.6, 0.6, 1.3),
    "looks": (3.0, 0.05, 0.05, 0.05, 0.3),
    "words": (0.05, 3.0, 0.05, 0.05, 0.3),
    "meaning": (0.05, 0.05, 3.0, 0.05, 0.3),
    "ending": (0.05, 0.05, 0.05, 3.0, 0.3),
    "scalars": (0.05, 0.05, 0.05, 0.05, 3.0),
}
"""Prior variance of the utility that comes from: looks, embeddings, mean of the deep layer, its last token, the scalars."""
FAVOUR_NATS: Mapping[str, float] = {"ending": 2.0, "all": 1.0}
"""Evidence that a probe has before the first vote: on few votes the deep layer's last token ranks best, whatever the taste."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Everything one fit needs: features of judged answers, where each lies, and the signals."""

    features_MD: Array
    rows: Index
    edits: dict[str, int]
    signals: Sequence[Signal]
    texts: Sequence[str] = ()
    """What the judged answers say (M), where the effect of styles is to be left out."""


@dataclass(frozen=True, slots=True)
class Typical:
    """Answers that nobody chose: they centre and scale what is known, and give the range of what can be earned. Shapes: N answers."""

    features_ND: Array
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Space:
    """Where a probe is fitted: utilities f = X u with u ~ N(0, I), in as few dimensions R as there are answers or features."""

    X_MR: torch.Tensor
    phi_MD: torch.Tensor
    """Scaled features: their weights have the prior N(0, I)."""
    by_answer: bool
    """Whether R counts answers; else u are the weights themselves."""


@dataclass(frozen=True, slots=True)
class _Mode:
    """The most likely coordinates of one probe, before its posterior is known."""

    space: _Space
    std_D: torch.Tensor
    u_R: torch.Tensor
    nuisance: torch.Tensor
    offset_U: torch.Tensor
    loss: float


@dataclass(frozen=True, slots=True)
class _Fit:
    weights_D: torch.Tensor
    samples_KD: torch.Tensor
    log_evidence: float
    scale: Scale
    """What the votes say of thumbs and stars beside the answers."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How far the particles of a fit lie from its mean, and how much each probe was believed: both hold for a while."""

    deviations_KD: Array
    share: Mapping[str, float]
    mean_D: Array
    """Where the next fit begins to look for its own."""


@dataclass(frozen=True, slots=True)
class _Belief:
    mean_D: torch.Tensor
    particles_KD: torch.Tensor
    share: Mapping[str, float]
    scale: Scale


def fit(
    judged: Judged,
    typical: Typical,
    pessimism: float,
    seed: int,
    *,
    temperature: float = 1.0,
    debias: Sequence[str] = (),
    trunk: bool = False,
    probes: Collection[str] = PROBES,
    spread: Spread | None = None,
) -> tuple[RewardModel, dict[str, float]]:
    """Return a reward model (version 0 until it is published) and its figures. Deterministic for the same input and seed.

    `temperature` calibrates its probabilities and changes nothing else; `debias` names the styles whose effect is left out of the score.
    Only the `probes` named are tried. With a `trunk`, its number stands behind each answer's features: utility starts from it, and the
    other features say what it missed. With the `spread` of an earlier fit only the mean is fitted, for a fraction of the time.
    """
    center_D = typical.features_ND.mean(0)
    scale_D = np.maximum(typical.features_ND.std(0), 1e-3)
    scale_D[:NUM_LOOKS] = np.maximum(scale_D[:NUM_LOOKS], RARE_LOOK)
    if trunk:
        center_D[-1], scale_D[-1] = 0.0, 1.0
    plain = RewardModel(0, center_D, scale_D, np.zeros_like(center_D), np.zeros((NUM_PARTICLES, len(center_D)), np.float32))
    if not judged.signals:  # all votes were withdrawn
        return replace(plain, anchors=_anchors(plain, typical, pessimism)), {"signals": 0.0, "answers": 0.0}
    z_MD = torch.from_numpy(plain.standardise(judged.features_MD))
    start_M = z_MD[:, -1].clone() if trunk else torch.zeros(len(z_MD))
    z_MD = z_MD[:, : z_MD.shape[1] - trunk]
    batch = make_batch(judged.signals, judged.rows, judged.edits)
    generator = torch.Generator().manual_seed(seed)
    if spread is not None and spread.deviations_KD.shape[1] == len(center_D):
        found = _followed(batch, z_MD, start_M, spread)
    else:
        found = _believed(batch, z_MD, start_M, generator, probes)
    mean_D, particles_KD = found.mean_D, found.particles_KD
    if trunk:
        mean_D, particles_KD = (torch.nn.functional.pad(weights, (0, 1), value=1.0) for weights in (mean_D, particles_KD))
    scale = replace(found.scale, temperature=temperature)
    model = RewardModel(0, center_D, scale_D, mean_D.numpy(), particles_KD.numpy(), scale=scale)
    model, looks = _debiased(model, typical, debias)
    newest = judged.features_MD[-NEWEST_JUDGED:], judged.texts[-NEWEST_JUDGED:]
    model = replace(model, anchors=_anchors(model, typical, pessimism, *newest))
    report = {f"probe_{name}": round(share, 4) for name, share in found.share.items()} | looks
    return model, report | {"temperature": round(temperature, 3)} | {"signals": float(len(judged.signals)), "answers": float(len(z_MD))}


def _believed(batch: Batch, z_MD: torch.Tensor, start_M: torch.Tensor, generator: torch.Generator, probes: Collection[str]) -> _Belief:
    """Return what the probes together make of the votes, each as far as its evidence goes."""
    fits = _fits(batch, z_MD, start_M, generator, probes)
    share = torch.softmax(torch.tensor([f.log_evidence + FAVOUR_NATS.get(name, 0.0) for name, f in fits.items()]), 0)
    origin = torch.multinomial(share, NUM_PARTICLES, replacement=True, generator=generator)
    every = list(fits.values())
    particles_KD = torch.stack([every[int(o)].samples_KD[k] for k, o in enumerate(origin)])
    mean_D = _mixed(share.tolist(), [f.weights_D for f in every])
    return _Belief(mean_D, particles_KD, dict(zip(fits, share.tolist(), strict=True)), _scale(share.tolist(), [f.scale for f in every]))


def _followed(batch: Batch, z_MD: torch.Tensor, start_M: torch.Tensor, spread: Spread) -> _Belief:
    """Return where the mean of an earlier fit goes with these votes, its particles about it as they were."""
    grams, means, scales = _grams(z_MD), list[torch.Tensor](), list[Scale]()
    near_D = torch.tensor(spread.mean_D[: z_MD.shape[1]])
    for name in spread.share:
        std_D = _prior_std(PROBES[name], z_MD.shape[1])
        space = _space(z_MD, std_D, grams, PROBES[name])
        mode = _mode(batch, space, std_D, start_M, _place(space, near_D / std_D))
        means.append(_mean_weights(mode) * std_D)
        scales.append(_said(mode))
    share = list(spread.share.values())
    mean_D = _mixed(share, means)
    deviations_KD = torch.from_numpy(spread.deviations_KD)[:, : len(mean_D)]
    return _Belief(mean_D, mean_D + deviations_KD, spread.share, _scale(share, scales))


def _mixed(share: Sequence[float], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    mixed_D = torch.zeros_like(weights[0])
    for part, weights_D in zip(share, weights, strict=True):
        mixed_D += part * weights_D
    return mixed_D


def _scale(share: Sequence[float], scales: Sequence[Scale]) -> Scale:
    """Return what the fits say of thumbs and stars, each as far as it is believed."""
    bias, low, high = map(float, np.array(share) @ np.array([(scale.thumb_bias, *scale.stars) for scale in scales]))
    return Scale(1.0, bias, (low, high))


def to_try(before: Mapping[str, Any], votes: int, turn: int | None) -> Collection[str]:
    """Return the probes to try after a fit with these figures: those that had a say in it, and in each `turn` others, too.

    These are all others while votes are few; with many, where a probe takes its time, one after the other.
    """
    chosen = mattered(before)
    if not chosen or (turn is not None and votes <= FEW_VOTES):
        return PROBES
    return chosen if turn is None else {*chosen, list(PROBES)[turn % len(PROBES)]}


def plan(before: Version | None, model: RewardModel, votes: int, position: int) -> tuple[Collection[str], Spread | None]:
    """Return the probes to try after the version `before` that is this model; and its spread, where that may stay.

    `position`: where the store holds the newest vote that teaches; what teaches nothing and moves about does not decide.
    With many votes in, one more moves the spread little: a vote is followed by the mean alone, until the next turn of other probes.
    """
    if before is None:
        return PROBES, None
    every = OTHER_PROBES_EVERY * (1 if votes <= FEW_VOTES else MANY)
    turn = position // every if position // every > int(before.report.get("taught_through", before.trained_through)) // every else None
    known = {name: before.report[f"probe_{name}"] for name in mattered(before.report)}
    follows = turn is None and votes > FEW_VOTES and known and model.version == before.number
    share = {name: value / sum(known.values()) for name, value in known.items()}
    return to_try(before.report, votes, turn), Spread(model.particles_KD - model.mean_D, share, model.mean_D) if follows else None


def mattered(report: Mapping[str, Any]) -> list[str]:
    """Return the probes that had a say in the fit whose figures these are."""
    return [name for name in PROBES if report.get(f"probe_{name}", 0.0) >= LEAST_SHARE]


def _group_sizes(width: int) -> list[int]:
    group = (width - NUM_LOOKS - NUM_SCALARS) // 3
    return [NUM_LOOKS, group, group, group, NUM_SCALARS]


def _prior_std(variances: Sequence[float], width: int) -> torch.Tensor:
    return torch.cat([torch.full((size,), (v / size) ** 0.5) for v, size in zip(variances, _group_sizes(width), strict=True)])


def _fits(batch: Batch, z_MD: torch.Tensor, start_M: torch.Tensor, generator: torch.Generator, probes: Collection[str]) -> dict[str, _Fit]:
    """Return those of the probes that can matter: evidence never exceeds -loss, so the hopeless are dropped before the costly part."""
    grams, width = _grams(z_MD), z_MD.shape[1]
    modes = {}
    for name, variances in PROBES.items():
        if name not in probes:
            continue
        std_D = _prior_std(variances, width)
        modes[name] = _mode(batch, _space(z_MD, std_D, grams, variances), std_D, start_M)
    fits: dict[str, _Fit] = {}
    best = -float("inf")
    for name, mode in sorted(modes.items(), key=lambda item: item[1].loss):
        if -mode.loss > best - NEGLIGIBLE_NATS:
            fits[name] = _laplace(batch, mode, start_M, generator)
            best = max(best, fits[name].log_evidence)
    return fits


def _space(z_MD: torch.Tensor, std_D: torch.Tensor, grams: Sequence[torch.Tensor], variances: Sequence[float]) -> _Space:
    phi_MD = z_MD * std_D
    if not grams:
        return _Space(phi_MD, phi_MD, False)
    kernel_MM = torch.zeros_like(grams[0])
    for gram_MM, variance in zip(grams, variances, strict=True):
        kernel_MM.add_(gram_MM, alpha=variance)
    kernel_MM.diagonal().add_(JITTER)
    return _Space(torch.linalg.cholesky(kernel_MM.double()).float(), phi_MD, True)


def _grams(z_MD: torch.Tensor) -> list[torch.Tensor]:
    """Return each feature group's share of the answers' covariance, for all probes; none where weights are fewer than answers."""
    if len(z_MD) >= z_MD.shape[1]:
        return []
    parts = torch.split(z_MD, _group_sizes(z_MD.shape[1]), dim=1)
    return [part @ part.t() / part.shape[1] for part in parts]


def _to_weights(space: _Space, u_KR: torch.Tensor, prior_KD: torch.Tensor, noise_KM: torch.Tensor) -> torch.Tensor:
    """Return weights (K x D, prior N(0, I)) whose utilities are X u; what the answers leave open comes from `prior_KD` (zeros: the mean).

    Where R counts answers this is Matheron's rule: a draw from the prior, moved to agree with the utilities.
    """
    if not space.by_answer:
        return u_KR
    drawn_KM = prior_KD @ space.phi_MD.t() + JITTER**0.5 * noise_KM
    drawn_KR = torch.linalg.solve_triangular(space.X_MR, drawn_KM.t(), upper=False).t()
    pull_MK = torch.linalg.solve_triangular(space.X_MR.t(), (u_KR - drawn_KR).t(), upper=True)
    weights_KD: torch.Tensor = prior_KD + pull_MK.t() @ space.phi_MD
    return weights_KD


def _place(space: _Space, weights_D: torch.Tensor) -> torch.Tensor:
    """Return the coordinates of the utilities that these weights (prior N(0, I)) give."""
    if not space.by_answer:
        return weights_D
    place_R: torch.Tensor = torch.linalg.solve_triangular(space.X_MR, (space.phi_MD @ weights_D)[:, None], upper=False)[:, 0]
    return place_R


def _mode(batch: Batch, space: _Space, std_D: torch.Tensor, start_M: torch.Tensor, near_R: torch.Tensor | None = None) -> _Mode:
    u_R = (torch.zeros(space.X_MR.shape[1]) if near_R is None else near_R.clone()).requires_grad_(True)
    nuisance = torch.zeros(NUM_NUISANCE, requires_grad=True)
    offset_U = torch.zeros(batch.num_users, requires_grad=True)
    parameters = [u_R, nuisance, offset_U]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=STEPS, history_size=8, line_search_fn="strong_wolfe", tolerance_grad=1e-3, tolerance_change=TOLERANCE_NATS
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nll(batch, start_M + space.X_MR @ u_R, nuisance, offset_U) + 0.5 * (u_R**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    loss = float(closure().detach())
    return _Mode(space, std_D, u_R.detach(), nuisance.detach(), offset_U.detach(), loss)


def _laplace(batch: Batch, mode: _Mode, start_M: torch.Tensor, generator: torch.Generator) -> _Fit:
    space, width = mode.space, len(mode.std_D)
    rows_AR = fisher_rows(batch, space.X_MR, start_M + space.X_MR @ mode.u_R, mode.nuisance, mode.offset_U)
    noise_KR, half_logdet = _posterior(rows_AR, generator)
    prior_KD = torch.randn(NUM_PARTICLES, width, generator=generator)
    jitter_KM = torch.randn(NUM_PARTICLES, len(space.X_MR), generator=generator)
    samples_KD = _to_weights(space, mode.u_R + noise_KR, prior_KD, jitter_KM)
    return _Fit(_mean_weights(mode) * mode.std_D, samples_KD * mode.std_D, -mode.loss - half_logdet, _said(mode))


def _mean_weights(mode: _Mode) -> torch.Tensor:
    space, width = mode.space, len(mode.std_D)
    return _to_weights(space, mode.u_R[None], torch.zeros(1, width), torch.zeros(1, len(space.X_MR)))[0]


def _said(mode: _Mode) -> Scale:
    return Scale(1.0, thumb_bias(mode.nuisance), star_middle(mode.nuisance))


def _posterior(rows_AR: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, float]:
    """Return samples (K x R) of N(0, (I + A'A)^-1) and half the log-determinant of I + A'A, from the smaller of A'A and AA'."""
    count, width = rows_AR.shape
    if count >= width:
        chol_RR = torch.linalg.cholesky(torch.eye(width) + rows_AR.t() @ rows_AR)
        noise_RK = torch.randn(width, NUM_PARTICLES, generator=generator)
        samples_RK = torch.linalg.solve_triangular(chol_RR.t(), noise_RK, upper=True)
        return samples_RK.t(), float(chol_RR.diagonal().log().sum())
    chol_AA = torch.linalg.cholesky(torch.eye(count) + rows_AR @ rows_AR.t())
    prior_RK, noise_AK = torch.randn(width, NUM_PARTICLES, generator=generator), torch.randn(count, NUM_PARTICLES, generator=generator)
    samples_RK = prior_RK - rows_AR.t() @ torch.cholesky_solve(rows_AR @ prior_RK + noise_AK, chol_AA)  # Matheron's rule
    return samples_RK.t(), float(chol_AA.diagonal().log().sum())


def _debiased(model: RewardModel, typical: Typical, left_out: Sequence[str]) -> tuple[RewardModel, dict[str, float]]:
    """Return the model with the effect of the named styles left out, and how far utility goes with each style before that.

    The effect is that of a least-squares fit of the utility on all styles together, over typical answers.
    """
    styles_NS, utility_N = style(typical.texts), model.judge(typical.features_ND)[0]
    mean_S, centred_NS = styles_NS.mean(0), styles_NS - styles_NS.mean(0)
    deviation_S, deviation = centred_NS.std(0), max(float(utility_N.std()), 1e-9)
    together_S = (centred_NS * (utility_N - utility_N.mean())[:, None]).mean(0)
    varies_S = deviation_S > 1e-6
    correlation_S = np.where(varies_S, together_S / (np.maximum(deviation_S, 1e-6) * deviation), 0.0)
    report = {f"correlation_with_{name}": round(float(c), 3) for name, c in zip(STYLES, correlation_S, strict=True)}
    if not left_out:
        return model, report
    weight_S, *_ = np.linalg.lstsq(centred_NS, utility_N - utility_N.mean(), rcond=1e-5)
    chosen = tuple(float(w) if name in left_out else 0.0 for name, w in zip(STYLES, weight_S, strict=True))
    return replace(model, debias=Debias(tuple(map(float, mean_S)), chosen)), report


def _anchors(
    model: RewardModel, typical: Typical, pessimism: float, judged_JD: Array | None = None, judged_texts: Sequence[str] = ()
) -> Anchors:
    """Return the range of rewards: that of typical answers, and upwards what people have judged lately (J answers) and found good.

    Without the latter a policy would earn nothing for being better than the best of the base's answers.
    """
    mean_N, spread_N = model.judge(typical.features_ND)
    total_N = mean_N - pessimism * spread_N - model.debias.effect(typical.texts)
    low, high = np.percentile(total_N, [2, 98])
    if judged_JD is not None and len(judged_JD) >= ENOUGH_JUDGED:
        mean_J, spread_J = model.judge(judged_JD)
        looks_J = model.debias.effect(judged_texts) if judged_texts else np.zeros(len(mean_J), np.float32)
        high = max(high, np.percentile(mean_J - pessimism * spread_J - looks_J, 90))
    return Anchors(float(total_N.mean()), max(float(total_N.std()), 1e-3), float(low), float(high))
