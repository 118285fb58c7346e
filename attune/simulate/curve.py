"""The learning curve as a picture: preference over the base model against votes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attune.simulate.judge import Verdict


@dataclass(frozen=True, slots=True)
class Point:
    """One judgement after `votes` votes of one `arm` of `attune.simulate.session.ARMS`."""

    votes: int
    policy_version: int
    arm: str
    verdict: Verdict


def draw(points: Sequence[Point], taste: str, file: Path) -> None:
    """Write the curve as PNG, intervals shaded, from one half at no votes: the base against itself.

    Matplotlib is loaded here alone, for it is slow to import.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=150)
    for arm, label, colour in (("alone", "policy alone", "#2f6f62"), ("reranked", "with reranking", "#c26a2e")):
        line = sorted((p for p in points if p.arm == arm), key=lambda p: p.votes)
        if not line:
            continue
        votes = [p.votes for p in line]
        axes.plot([0, *votes], [0.5, *(p.verdict.preference for p in line)], marker="o", markersize=4, color=colour, label=label)
        low, high = [p.verdict.low for p in line], [p.verdict.high for p in line]
        if len(line) > 1:
            axes.fill_between(votes, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axes.vlines(votes, low, high, color=colour, alpha=0.5)
    axes.axhline(0.5, color="#888888", linewidth=1, linestyle="--", label="the base model")
    axes.set(
        xlabel="votes", ylabel="preferred to the base (ties half)", ylim=(0, 1), title=f"taste: {taste}, held-out prompts, 95% intervals"
    )
    axes.grid(alpha=0.2)
    axes.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)
