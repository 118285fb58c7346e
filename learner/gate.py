"""Whether a trained challenger may go live: pure, from figures alone."""

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

    The report needs `kl_to_ref`, `entropy`, `held_out_before`, `held_out_after`, `empty_share` and `policy_loss`.
    """
    reasons = []
    odd = [name for name, value in report.items() if isinstance(value, float) and not math.isfinite(value)]
    if odd:
        reasons.append(f"not finite: {', '.join(odd)}")
    if report["kl_to_ref"] > kl_limit_nats:
        reasons.append(f"KL to the base is {report['kl_to_ref']:.1f} nats per answer, the limit is {kl_limit_nats:g}")
    if report["entropy"] < MIN_ENTROPY_NATS:
        reasons.append(f"entropy fell to {report['entropy']:.3f} nats per token")
    if report["held_out_after"] < report["held_out_before"] - HELD_OUT_SLACK:
        reasons.append(f"held-out reward fell from {report['held_out_before']:.2f} to {report['held_out_after']:.2f}")
    if report["empty_share"] > MAX_EMPTY:
        reasons.append(f"{report['empty_share']:.0%} of the served answers are empty")
    return GateDecision(not reasons, tuple(reasons), report)
