"""How much things have grown once a platform was warm, and what must not grow at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.soak.census import Census

WARM_UP = 0.5
"""Share of the time after which everything that is filled once has been filled."""

SHORTEST_FIT_S = 600.0
"""A line through less says nothing."""

MOST_MIB_AN_HOUR = 32.0
"""Growth of a process that counts as none: an allocator keeps what the largest passes so far have taken, so a process
reaches its size in ever rarer steps of some MiB, and a line through half an hour with two of them rises by this."""


def warm(censuses: Sequence[Census]) -> Sequence[Census]:
    """Those after the warm-up."""
    begin, end = censuses[0].at_s, censuses[-1].at_s
    return [census for census in censuses if census.at_s >= begin + WARM_UP * (end - begin)]


def growth_an_hour(censuses: Sequence[Census], values: Sequence[float]) -> float:
    """Slope of a straight line through the values, per hour."""
    hours = np.array([census.at_s for census in censuses]) / 3600
    return float(np.polyfit(hours - hours.mean(), np.array(values), 1)[0]) if len(values) > 1 else 0.0


def table(censuses: Sequence[Census]) -> str:
    """Everything that was counted: when it was warm, at the end, and the slope in between."""
    counted = [dict(census.rows()) for census in warm(censuses)]
    lines = [f"{'':44} {'warm':>10} {'end':>10} {'an hour':>10}"]
    for name in dict.fromkeys(name for row in counted for name in row):
        values = [row.get(name, 0) for row in counted]
        slope = growth_an_hour(warm(censuses), values)
        lines.append(f"{name:44} {values[0]:10.1f} {values[-1]:10.1f} {slope:+10.1f}")
    return "\n".join(lines)


def memory_that_grows(censuses: Sequence[Census]) -> list[str]:
    """Processes whose memory is not flat. Valkey's has the records of a day in it: only what is no key must be flat."""
    counted = warm(censuses)
    if counted[-1].at_s - counted[0].at_s < SHORTEST_FIT_S:
        return []
    sizes = {name: [census.rss_mib[name] for census in counted] for name in counted[0].rss_mib if name != "valkey-0"}
    sizes["Redis, but for keys"] = [census.unexplained_mib for census in counted]
    slopes = {name: growth_an_hour(counted, values) for name, values in sizes.items()}
    return [f"{name} grows by {slope:.1f} MiB an hour" for name, slope in slopes.items() if slope > MOST_MIB_AN_HOUR]
