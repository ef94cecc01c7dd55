"""The rungs of a search with adaptive ASHA, as Determined 0.38.1 derives them from its settings."""

from __future__ import annotations

import math
from typing import Any

from detsd.config.schema import shown

DIVERGED = 1e9  # reported in place of a loss that is not finite: searchers fail on NaN

MAX_RUNGS, DIVISOR = 5, 4  # Determined's defaults


def _rung_count(searcher: dict[str, Any], trials: int) -> int:
    """Return how many of `max_rungs` rungs Determined keeps for `trials` trials."""
    divisor, most = searcher.get("divisor") or DIVISOR, searcher.get("max_rungs") or MAX_RUNGS
    return min(most, int(math.log(trials) / math.log(divisor)) + 1)


def asha_problem(searcher: dict[str, Any]) -> str | None:
    """Return which number of an ASHA search Determined would refuse, or read as no search."""
    for key in ("max_trials", "max_rungs"):
        value = searcher.get(key)
        if value is None and key != "max_trials":  # a default
            continue
        if not isinstance(value, int) or value < 1:
            return f"searcher.{key}: {shown(value, cut=False)}; give a whole number of at least 1"
    divisor = searcher.get("divisor")
    if divisor is not None and not (isinstance(divisor, int | float) and divisor > 1):
        found = shown(divisor, cut=False)
        return f"searcher.divisor: {found}; give a number above 1, such as {DIVISOR}"
    if (first := rungs(searcher)[0]) < 1:
        return (
            f"searcher.max_time: {searcher['max_time']}, whose first rung is at {first}; raise it, "
            "or lower max_rungs"
        )
    return None


def late_rung_warning(searcher: dict[str, Any], validated_every: Any) -> str | None:
    """Return a sentence if trials validate too seldom for the first rung, or None.

    Args:
        validated_every: `training.checkpoint_freq`; a search range says nothing.
    """
    steps = rungs(searcher)
    if not steps or not isinstance(validated_every, int) or validated_every <= steps[0]:
        return None
    return (
        f"training.checkpoint_freq: {validated_every} is more than the first rung, {steps[0]}, and "
        f"trials are compared only when they validate; lower it to {steps[0]}"
    )


def rungs(searcher: dict[str, Any]) -> list[int]:
    """Return the times at which trials are compared, in `time_metric`; the last is `max_time`."""
    if searcher.get("name") != "adaptive_asha":
        return []
    divisor, longest = searcher.get("divisor") or DIVISOR, searcher["max_time"]
    count = _rung_count(searcher, searcher["max_trials"])
    return [int(longest / divisor**k) for k in reversed(range(count))]


def rung_warning(searcher: dict[str, Any]) -> str | None:
    """Return a sentence on rungs that are dropped for lack of trials, or None."""
    wanted, trials = searcher.get("max_rungs"), searcher.get("max_trials")
    numbers = (wanted, trials, searcher.get("max_time"))
    if searcher.get("name") != "adaptive_asha" or not all(isinstance(n, int) for n in numbers):
        return None
    if asha_problem(searcher) or _rung_count(searcher, trials) >= wanted:
        return None
    counts = range(trials, 10**5)
    enough = next((n for n in counts if _rung_count(searcher, n) >= wanted), None)
    kept = rungs(searcher)
    return (
        f"searcher.max_rungs: {wanted} becomes {len(kept)} with max_trials: {trials} "
        f"(Determined uses int(log(max_trials) / log(divisor)) + 1 at most), so no trial is "
        f"judged before {searcher.get('time_metric')} {kept[0]}; "
        + (f"set max_trials to {enough} or more" if enough else "lower max_rungs")
    )
