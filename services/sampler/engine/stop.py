"""Stop rules: a sequence ends at a token, or when its generated text contains a string.

Strings are compared as UTF-8 bytes. UTF-8 synchronises itself, so a match in bytes is a match in text; an incomplete
character is bytes that match nothing yet. The prompt is not searched.
"""

from __future__ import annotations

from collections.abc import Callable

from services.sampler.request import StopRule


class StopMatcher:
    """The stop rule of one sequence, and the end of its text so far."""

    def __init__(self, rule: StopRule, token_bytes: Callable[[int], bytes]) -> None:
        self._rule = rule
        self._token_bytes = token_bytes
        self._kept = max((len(string) for string in rule.strings), default=1) - 1
        """No match can begin earlier than this many bytes before a new token."""
        self._tail = b""

    def ends_at(self, token: int) -> bool:
        """Takes the next generated token; True if the sequence ends with it."""
        if token in self._rule.token_ids:
            return True
        if not self._rule.strings:
            return False
        text = self._tail + self._token_bytes(token)
        self._tail = text[len(text) - min(self._kept, len(text)) :]
        return any(string in text for string in self._rule.strings)
