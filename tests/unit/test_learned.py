"""What the benchmark of learning says of its runs: quantiles as PromQL has them, curves, and the votes that a preference takes."""

from pathlib import Path

import pytest

from benchmarks import learned, pace

INF = float("inf")


def run(*preferences: float, arm: str = "alone", halted: bool = False, kl: float = 3.0) -> learned.Run:
    votes = [100 * (n + 1) for n in range(len(preferences))]
    judged = [
        {"votes": v, "arm": arm, "preference": p, "prompts": 60, "distinct_share": 1.0, "refusing_share": 0.1}
        for v, p in zip(votes, preferences, strict=True)
    ]
    return {"judgements": judged, "policies": [{"kl_to_ref": kl}], "halted": ["why"] if halted else []}


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 20.0), (0.25, 15.0), (0.75, 25.0), (1.0, 30.0), (0.0, 10.0)]
)  # fmt: skip
def test_a_quantile_is_linear_within_its_bucket(share: float, expected: float) -> None:
    assert pace.quantile([(10.0, 0.0), (20.0, 4.0), (30.0, 8.0), (INF, 8.0)], share) == pytest.approx(expected)


def test_beyond_the_last_bound_a_quantile_is_that_bound() -> None:
    assert pace.quantile([(10.0, 1.0), (INF, 4.0)], 0.9) == 10.0


def test_a_curve_is_the_mean_of_its_runs_and_starts_at_one_half() -> None:
    assert learned.curve([run(0.6, 0.8), run(0.8, 0.9)]) == [(0.0, 0.5), (100.0, pytest.approx(0.7)), (200.0, pytest.approx(0.85))]
    assert learned.curve([run(0.9, arm="reranked")]) == [(0.0, 0.5)]


def test_votes_that_a_preference_takes() -> None:
    points = [(0.0, 0.5), (100.0, 0.7), (200.0, 0.65), (300.0, 0.9)]
    assert learned.votes_for(points, 0.6) == pytest.approx(50.0)
    assert learned.votes_for(points, 0.8) == pytest.approx(260.0)
    assert learned.votes_for(points, 0.95) == 300.0
    assert learned.votes_for(points, 0.4) == 0.0


@pytest.mark.parametrize(
    ("online", "offline", "expected"),
    [
        ((0.7, 0.9), (0.6, 0.7), {"votes_online_vs_offline": 2.0, "online_votes": 100.0, "offline_votes": 200.0}),
        ((0.6, 0.7), (0.7, 0.9), {"votes_online_vs_offline": 0.5, "online_votes": 200.0, "offline_votes": 100.0}),
    ],
)
def test_online_and_offline_are_held_against_each_other_where_both_end(
    online: tuple[float, ...], offline: tuple[float, ...], expected: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(learned, "PLOT", tmp_path / "plot.png")
    figures = learned.against_offline("any", [run(*online)], [run(*offline)])
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert (figures["online_preference"], figures["offline_preference"]) == (online[-1], offline[-1])
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_long_run_tells_its_fall_and_whether_a_wire_spoke() -> None:
    figures = learned.long(run(0.8, 0.9, 0.88), run(0.9, 0.4, halted=True, kl=25.0))
    assert figures["long_refusing"] == 0.1
    assert figures["long_fall_from_best"] == pytest.approx(0.02)
    assert figures["long_unguarded_fall_from_best"] == pytest.approx(0.5)
    assert (figures["long_tripped"], figures["long_unguarded_tripped"]) == (0.0, 1.0)
    assert figures["long_unguarded_highest_kl"] == 25.0


def test_replies_are_told_apart_by_whose_turn_it_was() -> None:
    turns, replies = [0.0, 10.0, 20.0, 30.0], [(1.0, 3.0, 2.0), (9.0, 11.0, 2.0), (12.0, 15.0, 3.0), (21.0, 22.0, 1.0), (29.0, 31.0, 2.0)]
    assert pace.by_turn(turns, replies) == ([2.0, 1.0], [3.0])
