"""One line on where learning stands, from the server's own status: for the terminal of `attune up`."""

from collections.abc import Mapping
from typing import Any

import httpx


def live_line(status: Mapping[str, Any]) -> str:
    """Return the line.

    >>> live_line({"policy_version": 0, "reward_version": 0, "votes": {"received": 0, "stored": 0, "learned": 0}, "versions": []})
    'policy 0 (the bare model), reward 0, no votes yet'
    """
    policy, reward, votes = status["policy_version"], status["reward_version"], status["votes"]
    reports = {(v["kind"], v["number"]): v.get("report", {}) for v in status["versions"]}
    parts = [f"policy {policy}" + ("" if policy else " (the bare model)"), f"reward {reward}"]
    parts.append(f"votes {votes['received']}, learned {votes['learned']}" if votes["received"] else "no votes yet")
    for name, figure, form in (
        ("foretold", reports.get(("reward", reward), {}).get("overall_accuracy"), "{:.0%}"),
        ("KL", reports.get(("policy", policy), {}).get("kl_to_ref"), "{:.1f} nats"),
    ):
        if isinstance(figure, int | float):
            parts.append(f"{name} {form.format(figure)}")
    if discarded := status.get("update_discarded"):
        parts.append(f"the last update was thrown away: {discarded}")
    if stopped := status.get("learner_stopped"):
        parts.append(f"LEARNING IS STOPPED: {stopped[0]} (attune resume)")
    return ", ".join(parts)


def ask(url: str, key: str) -> str | None:
    """Return the line of a running server; None while it does not answer."""
    try:
        reply = httpx.get(f"{url}/v1/attune/status", headers={"authorization": f"Bearer {key}"}, timeout=1.0, trust_env=False)
        return live_line(reply.raise_for_status().json())
    except (httpx.HTTPError, ValueError, KeyError):
        return None
