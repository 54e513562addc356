"""Prefix sharing: examples of one job that begin with the same tokens go through the trunk with that beginning once.

A group of RL samples has one prompt and many completions. Laid out, the prompt stands first and each completion behind
it attends to the prompt and to itself, so every token sees exactly what it would see alone. The unembedding is shared
too: positions of one hidden state and one set of targets are one row of the head, whatever their weights.

Tokens are content ids (services.core.chunks): equal ids are equal content, also where the content is no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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

    @property
    def saved(self) -> int:
        """Tokens that are left out because the beginning is laid out once."""
        return self.prefix * (len(self.members) - 1)

    def joined_by(self, tokens: Tensor, index: int, first: Tensor) -> Group | None:
        """With one more member, if that saves more; `first` are the first member's tokens."""
        common = common_beginning(first, tokens)
        grown = Group(min(common, self.prefix) if self.prefix else common, (*self.members, index))
        return grown if grown.saved > self.saved else None


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

    def on(self, device: torch.device) -> SharedLayout:
        """With its tensors on a device."""
        tokens, hidden_rows, head_rows = (t.to(device) for t in (self.tokens, self.hidden_rows, self.head_rows))
        return replace(self, tokens=tokens, hidden_rows=hidden_rows, head_rows=head_rows)


def find_groups(sequences: Sequence[Tensor]) -> list[Group]:
    """Groups neighbours wherever that leaves out more tokens than not; each keeps at least one token of its own."""
    groups: list[Group] = []
    for index, tokens in enumerate(sequences):
        if groups and (grown := groups[-1].joined_by(tokens, index, sequences[groups[-1].members[0]])):
            groups[-1] = grown
        else:
            groups.append(Group(0, (index,)))
    return groups


@dataclass(frozen=True)
class Extent:
    """How many tokens neighbours take that `share` lays out, counted as they come."""

    whole: int
    """Tokens of all."""

    saved: int
    """Tokens that groups before the last leave out."""

    last: Group
    first: Tensor
    """Tokens of the last group's first member."""

    @classmethod
    def of(cls, tokens: Tensor) -> Extent:
        """That of one example."""
        return cls(len(tokens), 0, Group(0, (0,)), tokens)

    def joined_by(self, tokens: Tensor) -> Extent:
        """With one more example behind."""
        index, whole = self.last.members[-1] + 1, self.whole + len(tokens)
        if grown := self.last.joined_by(tokens, index, self.first):
            return Extent(whole, self.saved, grown, self.first)
        return Extent(whole, self.saved + self.last.saved, Group(0, (index,)), tokens)

    @property
    def tokens(self) -> int:
        """Tokens laid out."""
        return laid_out(self.whole, self.saved + self.last.saved)


def laid_out(whole: int, saved: int) -> int:
    """Tokens that are laid out of `whole` ones of which `saved` could be left out: all, if sharing is not worth it."""
    return whole - saved if saved > MIN_SAVING * whole else whole


def share(sequences: Sequence[Tensor], targets: Sequence[Tensor]) -> SharedLayout | None:
    """Lays examples out, or None where too little is shared.

    Args:
        sequences: int64 [N] tokens of each example.
        targets: int64 [N, K] of each, one K for all.
    """
    groups = find_groups(sequences)
    whole = sum(map(len, sequences))
    if laid_out(whole, sum(group.saved for group in groups)) == whole:
        return None
    pieces: list[Tensor] = []
    lengths: list[int] = []
    prefixes: list[tuple[int, int]] = []
    hidden_rows: list[Tensor] = []
    head_rows: list[Tensor] = []
    end = heads = 0
    for group in groups:
        start, first = end, sequences[group.members[0]]
        if group.prefix:
            pieces.append(first[: group.prefix])
            lengths.append(group.prefix)
            prefixes.append((0, 0))
            end += group.prefix
        first_heads = torch.arange(heads, heads + group.prefix)
        for member in group.members:
            own = len(sequences[member]) - group.prefix
            rows = torch.cat([torch.arange(start, start + group.prefix), torch.arange(end, end + own)])
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
            end += own
    return SharedLayout(
        torch.cat(pieces), tuple(lengths), tuple(prefixes), torch.cat(hidden_rows), torch.cat(head_rows)
    )


def common_beginning(one: Tensor, other: Tensor) -> int:
    """Length of the common beginning, at most all but one token of either."""
    most = min(len(one), len(other)) - 1
    different = (one[:most] != other[:most]).nonzero()
    return int(different[0]) if len(different) else most
