"""The reward model recovers a taste from every kind of vote, knows what it does not know, and guards what it pays for."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from attune.errors import RegistryError
from attune.frozen import NUM_SCALARS
from attune.reward import Anchors, RewardModel
from attune.style import NUM_LOOKS, looks
from attune.types import Demonstration, Kind, Preference, Rating, Signal
from learner.likelihoods import NUM_NUISANCE, TIE_LOG_NU, Batch, Index, fisher_rows, make_batch, nll
from learner.reward_trainer import FEW_VOTES, PROBES, Judged, Typical, _posterior, fit, to_try

HIDDEN = 32
WIDTH = NUM_LOOKS + 3 * HIDDEN + NUM_SCALARS
GROUPS, SIZE = 120, 4


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray, Index]:
    """Features of answers, their true utility (shown in one deep feature), and where each lies."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(GROUPS * SIZE, WIDTH)).astype(np.float32)
    truth = 2.0 * features[:, NUM_LOOKS + HIDDEN + 3]
    return features, truth, {(f"i{n // SIZE}", n % SIZE): n for n in range(GROUPS * SIZE)}


def typical(features: np.ndarray) -> Typical:
    return Typical(features[:64], [f"answer {n}" for n in range(64)])


def votes(kind: str, truth: np.ndarray, count: int) -> list[Signal]:
    rng = np.random.default_rng(1)
    signals: list[Signal] = []
    for n in range(count):
        u, name, ident = truth[n * SIZE : (n + 1) * SIZE], f"i{n}", f"f{n}"
        order = tuple(int(k) for k in np.argsort(-u))
        flip = rng.random() < 0.1
        match kind:
            case "thumb":
                signals.append(Rating(ident, name, 0, int((u[0] > 0) != flip), 2, 1.0, Kind.THUMB, "anna"))
            case "stars":
                signals.append(Rating(ident, name, 1, int(np.digitize(u[1], [-2, -0.7, 0.7, 2])), 5, 1.0, Kind.RATING, "ben"))
            case "comparison":
                pair = (0, 1) if (u[0] > u[1]) != flip else (1, 0)
                signals.append(Preference(ident, name, pair, False, 1.0, Kind.COMPARISON, None))
            case "ranking":
                signals.append(Preference(ident, name, order, False, 1.0, Kind.RANKING, None))
    return signals


def accuracy(model: RewardModel, features: np.ndarray, truth: np.ndarray) -> float:
    utility = model.judge(features)[0]
    return float(((utility[::2] > utility[1::2]) == (truth[::2] > truth[1::2])).mean())


@pytest.mark.parametrize(("kind", "least"), [("thumb", 0.75), ("stars", 0.85), ("comparison", 0.75), ("ranking", 0.9)])
def test_a_taste_is_found_from_each_kind_alone(kind: str, least: float) -> None:
    features, truth, rows = world()
    model, _ = fit(Judged(features, rows, {}, votes(kind, truth, 100)), typical(features), 0.5, 0)
    assert accuracy(model, *world(9)[:2]) >= least


def test_a_taste_is_found_from_all_kinds_together() -> None:
    features, truth, rows = world()
    mixed = [s for start, kind in enumerate(("thumb", "stars", "comparison", "ranking")) for s in votes(kind, truth, 100)[start::4]]
    model, report = fit(Judged(features, rows, {}, mixed), typical(features), 0.5, 0)
    assert accuracy(model, *world(9)[:2]) >= 0.85
    assert report["signals"] == 100
    assert max(report, key=lambda name: report[name] if name.startswith("probe") else -1) == "probe_meaning"


def test_an_edit_is_preferred_to_what_it_mends() -> None:
    features, _, rows = world()
    edited = np.concatenate([features, features[:1] * 0 + 1])
    edit = Demonstration("f0", "i0", 2, "better", 1.0, None)
    model, _ = fit(Judged(edited, rows, {"f0": len(features)}, [edit]), typical(features), 0.5, 0)
    utility = model.judge(edited)[0]
    assert utility[-1] > utility[2]


def test_a_vote_that_says_nothing_leaves_the_favourite_probes_in_front() -> None:
    features, _, rows = world()
    features[1] = features[0]
    vote = Preference("f0", "i0", (0, 1), False, 1.0, Kind.COMPARISON, None)
    _, report = fit(Judged(features[:2], {at: n for at, n in rows.items() if n < 2}, {}, [vote]), typical(features), 0.5, 0)
    others = 4 + math.e + math.e**2
    assert [report[f"probe_{name}"] for name in ("ending", "all", "words")] == pytest.approx(
        [math.e**2 / others, math.e / others, 1 / others], abs=0.01
    )


def test_with_many_votes_other_probes_are_tried_one_after_the_other() -> None:
    before = {"probe_all": 0.9, "probe_words": 0.1, "probe_looks": 0.001}
    assert set(to_try(before, FEW_VOTES + 1, None)) == {"all", "words"}
    tried = [set(to_try(before, FEW_VOTES + 1, turn)) for turn in range(len(PROBES))]
    assert all(each >= {"all", "words"} and len(each) <= 3 for each in tried)
    assert set().union(*tried) == set(PROBES)
    assert set(to_try(before, FEW_VOTES, None)) == {"all", "words"}
    assert set(to_try(before, FEW_VOTES, 0)) == set(PROBES)
    assert set(to_try({}, FEW_VOTES + 1, None)) == set(PROBES)  # a version without votes


def test_the_fit_is_the_same_for_the_same_seed() -> None:
    features, truth, rows = world()
    judged = Judged(features, rows, {}, votes("thumb", truth, 30))
    (a, _), (b, _) = fit(judged, typical(features), 0.5, 3), fit(judged, typical(features), 0.5, 3)
    assert np.array_equal(a.particles_KD, b.particles_KD)


def test_spread_shrinks_where_votes_are() -> None:
    features, truth, rows = world()
    few, many = (fit(Judged(features, rows, {}, votes("ranking", truth, n)), typical(features), 0.5, 0)[0] for n in (5, 100))
    fresh = world(9)[0]
    relative = [float((m.judge(fresh)[1] / m.judge(fresh)[0].std()).mean()) for m in (few, many)]
    assert relative[1] < relative[0]


def test_ties_are_symmetric_and_pull_together() -> None:
    rows: Index = {("i", 0): 0, ("i", 1): 1}
    zero = torch.zeros(NUM_NUISANCE), torch.zeros(0)
    ties = [make_batch([Preference("f", "i", order, True, 1.0, Kind.COMPARISON, None)], rows, {}) for order in ((0, 1), (1, 0))]
    apart = torch.tensor([1.3, -0.4])
    first, second = (float(nll(batch, apart, *zero)) for batch in ties)
    assert first == pytest.approx(second)
    assert float(nll(ties[0], torch.zeros(2), *zero)) < first


def test_a_tie_of_good_answers_lifts_both_and_one_of_bad_answers_lowers_both() -> None:
    rows: Index = {("i", 0): 0, ("i", 1): 1}
    for good in (True, False):
        batch = make_batch([Preference("f", "i", (0, 1), True, 1.0, Kind.COMPARISON, "u", good=good)], rows, {})
        f = torch.tensor([0.4, 0.1], requires_grad=True)
        unsaid = make_batch([Preference("f", "i", (0, 1), True, 1.0, Kind.COMPARISON, "u")], rows, {})
        rest = torch.zeros(NUM_NUISANCE), torch.zeros(1)
        thumb = math.log(1 + math.exp(-0.25 if good else 0.25))
        assert float(nll(batch, f.detach(), *rest)) == pytest.approx(float(nll(unsaid, f.detach(), *rest)) + thumb, rel=1e-5)
        (nll(batch, f, *rest) - nll(unsaid, f, *rest)).backward()  # type: ignore[no-untyped-call]
        assert f.grad is not None
        assert ((f.grad < 0) == good).all()


def test_a_tie_says_little_where_people_often_call_it_one_and_much_where_they_seldom_do() -> None:
    """The readiness is learned from how often it is called a tie, not from how many were counted."""
    rows: Index = {("i", 0): 0, ("i", 1): 1}
    found = []
    for ties, decided in ((40, 0), (40, 40), (40, 400)):
        signals = [Preference(f"t{n}", "i", (0, 1), True, 1.0, Kind.COMPARISON, None) for n in range(ties)]
        signals += [Preference(f"d{n}", "i", (n % 2, 1 - n % 2), False, 1.0, Kind.COMPARISON, None) for n in range(decided)]
        batch, nuisance = make_batch(signals, rows, {}), torch.zeros(NUM_NUISANCE, requires_grad=True)
        optimizer = torch.optim.LBFGS([nuisance], max_iter=50, line_search_fn="strong_wolfe")

        def closure(batch: Batch = batch, nuisance: torch.Tensor = nuisance) -> torch.Tensor:
            nuisance.grad = None
            loss = nll(batch, torch.zeros(2), nuisance, torch.zeros(0))
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        found.append(math.exp(TIE_LOG_NU + float(nuisance.detach()[-1])))
    assert found[1] == pytest.approx(2.0, rel=0.1)  # nu of equal answers: ties by half of the decided
    assert found[2] == pytest.approx(0.2, rel=0.1)
    assert found[0] > 5 * found[1]


def test_an_edit_is_bradley_terry_a_comparison_davidson_and_a_ranking_plackett_luce() -> None:
    rows: Index = {("i", k): k for k in range(3)}
    f = torch.tensor([0.7, -0.2, 1.1])
    zero = torch.zeros(NUM_NUISANCE), torch.zeros(0)
    edit = make_batch([Demonstration("f", "i", 1, "better", 2.0, None)], rows, {"f": 0})
    assert float(nll(edit, f, *zero)) == pytest.approx(2 * math.log(1 + math.exp(-0.9)), rel=1e-5)
    pair = make_batch([Preference("f", "i", (0, 1), False, 2.0, Kind.COMPARISON, None)], rows, {})
    others = math.exp(-0.9) + math.exp(TIE_LOG_NU - 0.45)
    assert float(nll(pair, f, *zero)) == pytest.approx(2 * math.log(1 + others), rel=1e-5)
    order = make_batch([Preference("f", "i", (2, 0, 1), False, 1.0, Kind.RANKING, None)], rows, {})
    e = [math.exp(x) for x in f.tolist()]
    expected = -math.log(e[2] / sum(e)) - math.log(e[0] / (e[0] + e[1]))
    assert float(nll(order, f, *zero)) == pytest.approx(expected, rel=1e-5)


def model() -> RewardModel:
    weights, zeros = np.zeros(NUM_LOOKS + 4, np.float32), np.zeros(NUM_LOOKS + 4, np.float32)
    weights[NUM_LOOKS] = 1.0
    apart = np.array([0.0] * NUM_LOOKS + [0, 0.1, 0, 0])
    particles = np.stack([weights + apart, weights - apart]).astype(np.float32)
    return RewardModel(3, zeros, zeros + 1, weights, particles, Anchors(0.0, 1.0, -2.0, 2.0))


def packed(*rows: list[float]) -> list[bytes]:
    return [np.array(row, "<f2").tobytes() for row in rows]


def test_fisher_rows_are_the_information_of_every_stage_and_tie() -> None:
    orders = [((0, 1), 1.0), ((2, 3, 4), 0.5), ((5, 6, 7, 8), 2.0)]
    signals = [Preference(f"f{n}", "i", order, False, weight, Kind.RANKING, None) for n, (order, weight) in enumerate(orders)]
    signals.append(Preference("tie", "i", (1, 7), True, 0.7, Kind.COMPARISON, None))
    signals.append(Preference("good", "i", (2, 3), True, 0.4, Kind.COMPARISON, None, good=True))
    batch = make_batch(signals, {("i", k): k for k in range(9)}, {})
    phi, f, nuisance = torch.randn(9, 5), torch.randn(9), 0.3 * torch.randn(NUM_NUISANCE)
    expected = torch.zeros(5, 5)
    for order, weight in orders:
        for stage in range(len(order) - 1):
            left = torch.tensor(order[stage:])
            chance = f[left].softmax(0)
            expected += weight * torch.cov(phi[left].t(), correction=0, aweights=chance)
    for a, b, weight in ((1, 7, 0.7), (2, 3, 0.4)):
        outcomes = torch.stack([phi[a], phi[b], (phi[a] + phi[b]) / 2])
        chance = torch.stack([f[a], f[b], (f[a] + f[b]) / 2 + TIE_LOG_NU + nuisance[-1]]).softmax(0)
        expected += weight * torch.cov(outcomes.t(), correction=0, aweights=chance)
    up, mean = ((f[2] + f[3]) / 2 + nuisance[0]).sigmoid(), (phi[2] + phi[3]) / 2
    expected += 0.4 * up * (1 - up) * torch.outer(mean, mean)
    rows = fisher_rows(batch, phi, f, nuisance, torch.zeros(1))
    assert len(rows) == 1 + 2 + 3 + 1 + 2  # as few as it takes
    assert torch.allclose(rows.t() @ rows, expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 3), (3, 12)])
def test_posterior_samples_have_the_covariance_that_is_asked_for(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(shape, generator=generator)
    precision = torch.eye(shape[1]) + rows.t() @ rows
    drawn = [_posterior(rows, generator) for _ in range(2000)]
    assert drawn[0][1] == pytest.approx(0.5 * float(torch.logdet(precision)), rel=1e-4)
    assert torch.allclose(torch.cov(torch.cat([samples for samples, _ in drawn]).t()), torch.linalg.inv(precision), atol=0.03)


def test_an_empty_answer_is_below_every_other_and_extrapolation_is_not_paid() -> None:
    features = packed([9, 0, 0, 0], [3, 0, 0, 0], [-9, 0, 0, 0], [9, 0, 0, 0])
    texts = ["a", "b", "c", "  "]
    total = model().total(features, texts, 0.0)
    assert list(np.argsort(-total)) == [0, 1, 2, 3]
    reward = model().reward(features, texts, 0.0)
    assert reward.tolist() == pytest.approx([2.0, 2.0, -2.0, -3.0])


def test_pessimism_takes_off_the_spread() -> None:
    features = packed([1, 1, 0, 0])
    mean, spread = model().utility(features, ["x"])
    assert (float(mean[0]), float(spread[0])) == pytest.approx((1.0, 0.1), abs=1e-3)
    assert float(model().total(features, ["x"], 2.0)[0]) == pytest.approx(0.8, abs=1e-3)


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "000003"
    folder.mkdir()
    for name, data in model().to_files().items():
        (folder / name).write_bytes(data)
    again = RewardModel.load(folder)
    assert again.version == 3
    assert again.anchors == model().anchors
    assert np.array_equal(again.particles_KD, model().particles_KD)
    (folder / "reward.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RegistryError, match="no reward model"):
        RewardModel.load(folder)


def test_a_version_from_before_looks_ranks_as_it_did(tmp_path: Path) -> None:
    features = packed([1, 1, 0, 0], [3, 0, 0, 0])
    folder = tmp_path / "000003"
    folder.mkdir()
    for name, data in model().to_files().items():
        (folder / name).write_bytes(data)
    full = load(model().to_files()["reward.safetensors"])
    for number, known in ((b"1", 0), (b"2", 7)):
        tensors = {name: np.concatenate([tensor[..., :known], tensor[..., NUM_LOOKS:]], -1) for name, tensor in full.items()}
        (folder / "reward.safetensors").write_bytes(save(tensors))
        (folder / "reward.json").write_bytes(model().to_files()["reward.json"].replace(b'"format": 3', b'"format": ' + number))
        again = RewardModel.load(folder)
        assert again.mean_D.shape == model().mean_D.shape
        assert (
            again.utility(features, ["Oh!", "so so"])[0].tolist() == model().utility(features, ["Oh!", "so so"])[0].tolist() == [1.0, 3.0]
        )


def test_a_taste_for_how_answers_sound_is_found_in_a_few_votes() -> None:
    features, _, rows = world()
    texts = [("That is nice! " * (n % 3) + "It is so.").strip() if n % 5 else "Is it so?" for n in range(len(features))]
    liked = np.array([text.count("!") - text.count("?") for text in texts], np.float32)
    told = np.concatenate([looks(texts), features[:, NUM_LOOKS:]], 1)
    signals = votes("ranking", liked, 12)
    seen, _ = fit(Judged(told, rows, {}, signals), Typical(told[:64], texts[:64]), 0.5, 0)
    blind, _ = fit(Judged(features, rows, {}, signals), typical(features), 0.5, 0)
    new, new_texts = world(9)[0], texts[::-1]
    wanted = liked[::-1]
    assert accuracy(seen, np.concatenate([looks(new_texts), new[:, NUM_LOOKS:]], 1), wanted) > accuracy(blind, new, wanted) + 0.2


def test_answers_that_go_round_in_circles_are_told_from_others_that_sound_alike() -> None:
    features, _, rows = world()
    warm = "I'm glad to have you."
    texts = [f"{warm} {warm}" if n % 3 == 0 else f"{warm} Such a fine day {n}." for n in range(len(features))]
    liked = np.array([-1.0 if n % 3 == 0 else 1.0 for n in range(len(features))], np.float32)
    told = np.concatenate([looks(texts), features[:, NUM_LOOKS:]], 1)
    seen, _ = fit(Judged(told, rows, {}, votes("thumb", liked, 25)), Typical(told[1:64:3], texts[1:64:3]), 0.5, 0)
    mean, _ = seen.judge(told[-120:])
    assert mean[liked[-120:] > 0].min() > mean[liked[-120:] < 0].max()


def test_a_look_that_no_typical_answer_has_is_not_taken_for_ten_deviations() -> None:
    features, truth, rows = world()
    features[:, :NUM_LOOKS] = looks(["it is so"] * len(features))
    model, _ = fit(Judged(features, rows, {}, votes("thumb", truth, 30)), typical(features), 0.5, 0)
    loud = features[:1].copy()
    loud[:, :NUM_LOOKS] = looks(["it is so!"])
    assert 1.0 < np.abs(model.standardise(loud)[0, :NUM_LOOKS]).max() <= 4.0


def test_where_an_answer_stood_is_not_what_it_is_worth() -> None:
    features, truth, rows = world()
    rng = np.random.default_rng(2)
    signals: list[Signal] = []
    for n in range(GROUPS):  # people who often take the first they see, where mostly the worse stands
        worthier = int(truth[n * SIZE] < truth[n * SIZE + 1])
        first = 1 - worthier if rng.random() < 0.7 else worthier
        better = first if rng.random() < 0.4 else worthier
        order = (better, 1 - better)
        places = tuple(0 if candidate == first else 1 for candidate in order)
        signals.append(Preference(f"f{n}", f"i{n}", order, False, 1.0, Kind.COMPARISON, None, places))
    seen = fit(Judged(features, rows, {}, signals), typical(features), 0.5, 0)[0]
    blind = fit(Judged(features, rows, {}, [replace(s, places=()) for s in signals]), typical(features), 0.5, 0)[0]
    assert accuracy(seen, *world(9)[:2]) > accuracy(blind, *world(9)[:2])


def test_stars_that_are_given_readily_mean_less() -> None:
    features, truth, rows = world()
    plain = votes("stars", truth, 100)
    ready = [replace(s, level=min(4, s.level + 1)) for s in plain if isinstance(s, Rating)]
    honest, generous = (fit(Judged(features, rows, {}, s), typical(features), 0.5, 0)[0].scale.stars for s in (plain, ready))
    assert generous[0] < honest[0] - 0.3
    assert generous[1] < honest[1] - 0.3


def test_a_style_can_be_left_out_of_the_score() -> None:
    features, _, rows = world()
    truth = 2.0 * features[:, -2]  # the length, and nothing else, is what people like
    every = ["word " * max(1, int(20 + 6 * x)) for x in features[:, -2]]
    features[:, :NUM_LOOKS], texts = looks(every), every[:64]
    judged = Judged(features, rows, {}, votes("ranking", truth, 60))
    plain, report = fit(judged, Typical(features[:64], texts), 0.5, 0)
    fair, _ = fit(judged, Typical(features[:64], texts), 0.5, 0, debias=["length"])
    packed = [f[NUM_LOOKS:].astype("<f2").tobytes() for f in features[:64]]
    assert report["correlation_with_length"] > 0.9
    assert report["correlation_with_format"] == 0.0
    assert abs(np.corrcoef(fair.total(packed, texts, 0.0), truth[:64])[0, 1]) < 0.3
    assert np.corrcoef(plain.total(packed, texts, 0.0), truth[:64])[0, 1] > 0.9
    assert fair.anchors.std < 0.5 * plain.anchors.std


def test_calibration_is_kept_with_the_version(tmp_path: Path) -> None:
    features, truth, rows = world()
    thumbs = [replace(s, level=1) if n % 3 else s for n, s in enumerate(votes("thumb", truth, 80))]  # given more readily than they should
    judged = Judged(features, rows, {}, thumbs)
    model, _ = fit(judged, typical(features), 0.5, 0, temperature=2.0)
    (tmp_path / "000001").mkdir()
    for name, data in model.to_files().items():
        (tmp_path / "000001" / name).write_bytes(data)
    again = RewardModel.load(tmp_path / "000001")
    assert again.scale == model.scale
    assert again.scale.thumb_bias > 0.3
    assert again.scale.probability(1.0) == pytest.approx(1 / (1 + math.exp(-0.5)))
