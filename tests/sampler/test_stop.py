"""Stop rules: tokens, and strings over token borders, also when a character is spread over tokens."""

from __future__ import annotations

import pytest

from services.sampler.engine.stop import StopMatcher
from services.sampler.request import StopRule

EOS = 99


def ends_after(pieces: list[bytes], rule: StopRule) -> int | None:
    """How many tokens a sequence of these pieces has when it ends; token i stands for piece i."""
    watch = StopMatcher(rule, lambda token: pieces[token])
    for token in range(len(pieces)):
        if watch.ends_at(token):
            return token + 1
    return None


@pytest.mark.parametrize(
    ("pieces", "strings", "expected"),
    [
        (["a", "STOP", "b"], ["STOP"], 2),
        (["a", "ST", "OP", "b"], ["STOP"], 3),
        (["S", "T", "O", "P"], ["STOP"], 4),
        (["xxSTO", "Pyy", "z"], ["STOP"], 2),
        (["a", " STOPPED by", "b"], ["STOP"], 2),
        (["ST", "O", "ST", "OP"], ["STOP"], 4),
        (["SS", "ST", "TO", "P", "STOP"], ["STOP"], 5),
        (["a", "b", "c"], ["zzz", "bc"], 3),
        (["long en", "d", "x"], ["end of it all", "nd"], 2),
        (["ab", "cd"], ["abcde"], None),
        (["\n", "\n"], ["\n\n"], 2),
        (["", "a", "", "b"], ["ab"], 4),
    ],
)
def test_strings(pieces: list[str], strings: list[str], expected: int | None) -> None:
    rule = StopRule(frozenset({EOS}), tuple(string.encode() for string in strings))
    assert ends_after([piece.encode() for piece in pieces], rule) == expected


@pytest.mark.parametrize(
    "string", ["\u4f60", "\U0001f642", "e\u0301", "\u65e5\u672c\u8a9e", "\U0001f468\u200d\U0001f469"]
)
@pytest.mark.parametrize("width", [1, 2, 3])
def test_characters_spread_over_tokens(string: str, width: int) -> None:
    text = ("\u4f61\U0001f643" + string + "\u4f60 tail").encode()
    pieces = [text[start : start + width] for start in range(0, len(text), width)]
    end = text.index(string.encode()) + len(string.encode())
    assert ends_after(pieces, StopRule(strings=(string.encode(),))) == -(-end // width)


def test_a_string_ends_the_sequence_though_its_token_begins_a_character() -> None:
    pieces = [b"a", b"STOP\xe4\xbd", b"\xa0"]
    assert ends_after(pieces, StopRule(strings=(b"STOP",))) == 2


def test_bytes_that_are_no_text_match_nothing_and_hide_nothing() -> None:
    pieces = [b"\xff\xfe", b"\xf0\x9f", b"EN", b"\xc0D", b"END"]
    assert ends_after(pieces, StopRule(strings=(b"END",))) == 5


def test_token_ids_stop_and_the_empty_rule_never_does() -> None:
    pieces = [b"x"] * 5
    assert ends_after(pieces, StopRule(frozenset({3}))) == 4
    assert ends_after(pieces, StopRule()) is None
