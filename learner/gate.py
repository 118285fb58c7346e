"""Whether a trained challenger may go live: pure, from figures alone.

A challenger that stands beyond a limit may still pass if the champion stands further beyond it: else a bad champion could never be mended.
"""

import math
from collections.abc import Mapping
from typing import Any

from attune.types import GateDecision

HELD_OUT_SLACK = 0.3
"""Anchor standard deviations by which the held-out reward, a noisy estimate, may fall."""
MIN_ENTROPY_NATS = 0.02
MAX_EMPTY = 0.25


def judge(report: Mapping[str, Any], kl_limit_nats: float) -> GateDecision:
    """Return the decision with every reason against it; no reason means promote.

    The report needs `kl`, `entropy`, `held_out` and `empty_share`, each as `..._before` (the champion) and `..._after` (the challenger),
    on the same answers.
    """
    reasons = []
    odd = [name for name, value in report.items() if isinstance(value, float) and not math.isfinite(value)]
    if odd:
        reasons.append(f"not finite: {', '.join(odd)}")
    if report["kl_after"] > max(kl_limit_nats, report["kl_before"]):
        reasons.append(f"KL to the base is {report['kl_after']:.1f} nats per answer, the limit is {kl_limit_nats:g}")
    if report["entropy_after"] < min(MIN_ENTROPY_NATS, report["entropy_before"]):
        reasons.append(f"entropy fell to {report['entropy_after']:.3f} nats per token")
    if report["held_out_after"] < report["held_out_before"] - HELD_OUT_SLACK:
        reasons.append(f"held-out reward fell from {report['held_out_before']:.2f} to {report['held_out_after']:.2f}")
    if report["empty_share_after"] > max(MAX_EMPTY, report["empty_share_before"]):
        reasons.append(f"{report['empty_share_after']:.0%} of the answers would be empty")
    return GateDecision(not reasons, tuple(reasons), report)
