"""Regular expressions in a process of their own, whose CPU time and memory are bounded: one of them may never end.

Imports nothing of the platform, and starts as a script: names and expressions come on standard input, what has matched
goes to standard output.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress

CPU_SECONDS = 2
MEMORY_BYTES = 1 << 30


def find(expressions: Sequence[tuple[str, bool]], names: Sequence[str]) -> list[dict[str, str] | str]:
    """The names that each expression matches, with its group `idx` if it has one.

    Args:
        expressions: each with whether it must match a name to the end.
        names: the names.

    Returns:
        For each expression its names, or the complaint if it cannot be read.
    """
    found: list[dict[str, str] | str] = []
    for expression, whole in expressions:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled = re.compile(expression)
        except (re.error, RecursionError, OverflowError) as error:
            found.append(str(error))
            continue
        match_of = compiled.fullmatch if whole else compiled.match
        matches = ((name, match_of(name)) for name in names)
        found.append({name: match.groupdict().get("idx") or "" for name, match in matches if match})
    return found


def main() -> None:
    """Answers one question."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    with suppress(OSError, ValueError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    json.dump(find(*json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
