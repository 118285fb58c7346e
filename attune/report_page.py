"""The report as one HTML page that needs nothing else: plots as pictures inside it, and the versions with what the gate said."""

import base64
import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attune.errors import ConfigError
from attune.report import KINDS, Entry, Report, styles, thrown_away
from attune.types import QUALITY

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;background:#f5f4ef;color:#222}
h1,h2{font-family:Georgia,serif;color:#2a6a5a}table{border-collapse:collapse;margin:1rem 0;background:#fffefa}
td,th{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:1rem}img{width:100%;background:#fffefa}.scroll{overflow-x:auto}
"""
GREEN, AMBER, GREY = "#2a6a5a", "#c4862f", "#888888"
PRICES = ("score_mean", "kl_to_ref", "entropy", "length_mean", "held_out_before", "held_out_after", "seconds")


def page(report: Report, simulations: Sequence[dict[str, Any]]) -> str:
    """Return the page; `simulations` are results of `attune simulate`, for what only a known taste can tell."""
    plots: list[tuple[str, Callable[[Any], None]]] = [
        ("Votes foretold, against votes learned", lambda ax: _accuracy(ax, report.rewards)),
        ("Calibration of the newest reward version", lambda ax: _calibration(ax, report.newest_reward.get("reliability", []))),
        ("Reward against KL to the base, by version", lambda ax: _frontier(ax, report.policies)),
        ("Length of the answers, by version", lambda ax: _length(ax, report.policies)),
    ]
    if any(s.get("judgements") for s in simulations):
        plots.append(("Preferred to the base by the true taste", lambda ax: _preference(ax, simulations)))
    pictures = "".join(f'<figure><img alt="{html.escape(name)}" src="{_picture(name, draw)}"></figure>' for name, draw in plots)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Attune: what was learned</title><style>{STYLE}</style>'
        f"<h1>What was learned</h1><p>{_summary(report)}</p><div class=plots>{pictures}</div>"
        f"<h2>Votes, predicted before they were learned</h2>{_quality(report)}<p>{html.escape(styles(report.newest_reward))}</p>"
        f"<h2>Policies and their gates</h2><div class=scroll>{_policies(report.policies)}</div>"
        f"<p>{html.escape(thrown_away(report.discarded))}</p></html>\n"
    )


def results(folder: Path) -> list[dict[str, Any]]:
    """Return the results that simulations left in a folder, oldest first; raises `ConfigError` that names a file that is none."""
    found = []
    for file in sorted(folder.glob("*/result.json")):
        try:
            found.append(json.loads(file.read_text()))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} is not what a simulation writes ({error}): remove it, or simulate again") from error
    return found


def _summary(report: Report) -> str:
    live = [e for e in report.policies if e.state == "champion"]
    votes = report.rewards[-1].votes if report.rewards else 0
    refused = sum(e.state in ("rejected", "rolled_back") for e in report.policies)
    serving = f"policy {live[-1].version.number} is live" if live else "the bare model is live"
    return f"{votes} votes learned, {len(report.policies)} policies published, {refused} of them refused or taken back; {serving}."


def _quality(report: Report) -> str:
    figures = report.newest_reward
    rows = [
        [kind, *(_cell(figures.get(f"{kind}_{name}")) for name in QUALITY[:-1]), f"{figures[f'{kind}_predicted']:.0f}"]
        for kind in KINDS
        if f"{kind}_predicted" in figures
    ]
    return _table(["kind", *QUALITY[:-1], "of"], rows)


def _policies(policies: Sequence[Entry]) -> str:
    head = ["policy", "state", "votes", *PRICES, "gate"]
    return _table(
        head,
        [[str(e.version.number), str(e.state), str(e.votes), *(_cell(e.figure(name)) for name in PRICES), e.remark] for e in policies],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + row(head, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"


def _picture(name: str, draw: Callable[[Any], None]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set_title(name, fontsize=10)
    axes.grid(alpha=0.25)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _accuracy(axes: Any, rewards: Sequence[Entry]) -> None:
    for name, colour in (("accuracy", GREEN), ("auroc", AMBER), ("ece", GREY)):
        points = [(e.votes, value) for e in rewards if (value := e.figure(f"overall_{name}")) is not None]
        axes.plot(*zip(*points, strict=True), color=colour, label=name) if points else None
    axes.set(xlabel="votes", ylim=(0, 1))
    axes.legend() if axes.lines else None


def _calibration(axes: Any, reliability: Sequence[Sequence[float]]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    if reliability:
        said, came, count = zip(*reliability, strict=True)
        axes.scatter(said, came, s=[10 + 4 * n**0.5 for n in count], color=GREEN)
    axes.set(xlabel="predicted", ylabel="came true", xlim=(0, 1), ylim=(0, 1))


def _frontier(axes: Any, policies: Sequence[Entry]) -> None:
    points = [
        (k, r, e.version.number) for e in policies if (k := e.figure("kl_to_ref")) is not None and (r := e.figure("score_mean")) is not None
    ]
    if points:
        axes.plot([p[0] for p in points], [p[1] for p in points], color=GREEN, marker="o", markersize=3)
    for kl, reward, number in points[:: max(1, len(points) // 8)]:
        axes.annotate(str(number), (kl, reward), fontsize=8)
    axes.set(xlabel="KL to the base, nats per answer", ylabel="reward")


def _length(axes: Any, policies: Sequence[Entry]) -> None:
    points = [(e.version.number, value) for e in policies if (value := e.figure("length_mean")) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=GREEN)
    axes.set(xlabel="policy version", ylabel="tokens per answer")
    axes.set_ylim(bottom=0)


def _preference(axes: Any, simulations: Sequence[dict[str, Any]]) -> None:
    for result in simulations:
        alone = [j for j in result.get("judgements", []) if j["arm"] == "alone"]
        if alone:
            axes.errorbar(
                [j["votes"] for j in alone], [j["preference"] for j in alone],
                yerr=[[j["preference"] - j["low"] for j in alone], [j["high"] - j["preference"] for j in alone]],
                marker="o", markersize=3, capsize=2, label=result["taste"],
            )  # fmt: skip
    axes.axhline(0.5, color=GREY, linestyle=":")
    axes.set(xlabel="votes", ylim=(0, 1))
    axes.legend()
