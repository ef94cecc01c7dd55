"""The rungs of a search with adaptive ASHA, as Determined 0.38.1 derives them from its settings."""

from __future__ import annotations

import math
from typing import Any

DIVERGED = 1e9  # reported in place of a loss that is not finite: searchers fail on NaN

MAX_RUNGS, DIVISOR = 5, 4  # Determined's defaults


def _rung_count(searcher: dict[str, Any], trials: int) -> int:
    """Return how many of `max_rungs` rungs Determined keeps for so many trials."""
    divisor = searcher.get("divisor", DIVISOR)
    return min(searcher.get("max_rungs", MAX_RUNGS), int(math.log(trials) / math.log(divisor)) + 1)


def rungs(searcher: dict[str, Any]) -> list[int]:
    """Return the times at which trials are compared, in `time_metric`; the last is `max_time`."""
    if searcher.get("name") != "adaptive_asha":
        return []
    divisor, longest = searcher.get("divisor", DIVISOR), searcher["max_time"]
    count = _rung_count(searcher, searcher["max_trials"])
    return [int(longest / divisor**k) for k in reversed(range(count))]


def rung_warning(searcher: dict[str, Any]) -> str | None:
    """Return a sentence on rungs that are dropped for lack of trials, or None."""
    wanted, trials = searcher.get("max_rungs"), searcher.get("max_trials")
    divisor = searcher.get("divisor", DIVISOR)
    numbers = (wanted, trials, divisor, searcher.get("max_time"))
    if searcher.get("name") != "adaptive_asha" or not all(isinstance(n, int) for n in numbers):
        return None
    if trials < 1 or divisor < 2 or _rung_count(searcher, trials) >= wanted:
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
