"""Arguments of attention functions beside the tensors: each is honoured, or known to say nothing, or refused."""

from __future__ import annotations

from collections.abc import Mapping

SAY_NOTHING = frozenset({"position_ids", "use_cache"})
"""Positions are in queries and keys already, and there is no cache of transformers' own."""


def refuse_arguments(arguments: Mapping[str, object]) -> None:
    """Refuses what an attention function was given and does not compute, such as a window or a cap.

    A model that needs it would be computed wrongly without a sign of it.

    Args:
        arguments: what transformers gave, by name; None and False say nothing, and so does a dropout of 0.

    Raises:
        TypeError: names the arguments.
    """
    given = [
        f"{name} = {value}"
        for name, value in sorted(arguments.items())
        if not (name in SAY_NOTHING or value is None or value is False or (name == "dropout" and value == 0))
    ]
    if given:
        raise TypeError(f"attention here does not compute {', '.join(given)}")
