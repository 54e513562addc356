"""Prefix sharing: examples of one job that begin with the same tokens go through the trunk with that beginning once.

A group of RL samples has one prompt and many completions. Laid out, the prompt stands first and each completion behind
it attends to the prompt and to itself, so every token sees exactly what it would see alone. The unembedding is shared
too: positions of one hidden state and one set of targets are one row of the head, whatever their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SAVING = 0.2
"""Sharing must leave out more than this part of the tokens."""


@dataclass(frozen=True)
class Group:
    """Consecutive examples with a common beginning."""

    prefix: int
    """Its length; 0 for an example on its own."""

    members: tuple[int, ...]


@dataclass(frozen=True)
class SharedLayout:
    """Examples laid out with shared beginnings. P laid-out tokens, T tokens of the examples, U rows of the head."""

    tokens: Tensor
    """int64 [P]."""

    lengths: tuple[int, ...]
    """Of each laid-out stretch: a prefix, or what is an example's own."""

    prefixes: tuple[tuple[int, int], ...]
    """(start, length) of the prefix that each stretch continues; length 0 where it continues none."""

    hidden_rows: Tensor
    """int64 [U]: which laid-out token each row of the head comes from."""

    head_rows: Tensor
    """int64 [T]: which row of the head is each token's."""


def find_groups(sequences: Sequence[Tensor]) -> list[Group]:
    """Groups neighbours wherever that leaves out more tokens than not; each keeps at least one token of its own."""
    groups: list[Group] = []
    for index, tokens in enumerate(sequences):
        if groups:
            prefix, members = groups[-1].prefix, groups[-1].members
            common = common_beginning(sequences[members[0]], tokens)
            common = min(common, prefix) if prefix else common
            if common * len(members) > prefix * (len(members) - 1):
                groups[-1] = Group(common, (*members, index))
                continue
        groups.append(Group(0, (index,)))
    return groups


def share(sequences: Sequence[Tensor], targets: Sequence[Tensor]) -> SharedLayout | None:
    """Lays examples out, or None where too little is shared.

    Args:
        sequences: int64 [N] tokens of each example.
        targets: int64 [N, K] of each, one K for all.
    """
    groups = find_groups(sequences)
    saved = sum(group.prefix * (len(group.members) - 1) for group in groups)
    if saved <= MIN_SAVING * sum(map(len, sequences)):
        return None
    pieces: list[Tensor] = []
    lengths: list[int] = []
    prefixes: list[tuple[int, int]] = []
    hidden_rows: list[Tensor] = []
    head_rows: list[Tensor] = []
    laid_out = heads = 0
    for group in groups:
        start, first = laid_out, sequences[group.members[0]]
        if group.prefix:
            pieces.append(first[: group.prefix])
            lengths.append(group.prefix)
            prefixes.append((0, 0))
            laid_out += group.prefix
        first_heads = torch.arange(heads, heads + group.prefix)
        for member in group.members:
            own = len(sequences[member]) - group.prefix
            rows = torch.cat([torch.arange(start, start + group.prefix), torch.arange(laid_out, laid_out + own)])
            is_first = member == group.members[0]
            same = targets[member][: group.prefix] == targets[group.members[0]][: group.prefix]
            fresh = torch.ones(len(rows), dtype=torch.bool)
            if not is_first:
                fresh[: group.prefix] = ~same.all(dim=1)
            mine = torch.cat([first_heads, torch.empty(own, dtype=torch.int64)])
            mine[fresh] = torch.arange(heads, heads + int(fresh.sum()))
            heads += int(fresh.sum())
            hidden_rows.append(rows[fresh])
            head_rows.append(mine)
            pieces.append(sequences[member][group.prefix :])
            lengths.append(own)
            prefixes.append((start, group.prefix))
            laid_out += own
    return SharedLayout(
        torch.cat(pieces), tuple(lengths), tuple(prefixes), torch.cat(hidden_rows), torch.cat(head_rows)
    )


def common_beginning(one: Tensor, other: Tensor) -> int:
    """Length of the common beginning, at most all but one token of either."""
    most = min(len(one), len(other)) - 1
    different = (one[:most] != other[:most]).nonzero()
    return int(different[0]) if len(different) else most
