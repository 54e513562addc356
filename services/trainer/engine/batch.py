"""Examples of one job as tensors on the device, end to end.

T tokens of all examples end to end, N tokens of one, K targets a position. Where examples share beginnings, P tokens
are laid out and the head has U rows; see services.trainer.engine.prefix_sharing. Otherwise both are T.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from services.trainer.engine.prefix_sharing import SharedLayout, share
from services.trainer.values import Example


@dataclass(frozen=True)
class Batch:
    """Examples of one job end to end, on the device."""

    lengths: tuple[int, ...]
    """N of each example."""

    tokens: Tensor
    """int64 [P]."""

    stretches: tuple[int, ...]
    """Lengths of what is laid end to end: the examples, or their beginnings and ends."""

    prefixes: tuple[tuple[int, int], ...]
    """What each stretch continues, as PackedSequences has it, counted from the batch's first token."""

    shared: SharedLayout | None
    """How examples with a common beginning are laid out; None where none is shared."""

    targets: Tensor
    """int64 [U, K]; K is the largest of the examples, further columns of the others are 0."""

    inputs: Mapping[str, Tensor]
    """float32 [T, K] each; 0 in columns that an example does not have, so they add nothing to a loss."""

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device, *, may_share: bool = True) -> Batch:
        """Lays examples of one loss function end to end; `may_share` has common beginnings laid out once."""
        width = max(example.targets.shape[1] for example in examples)

        def joined(matrices: Iterator[npt.NDArray[Any]]) -> Tensor:
            padded = [F.pad(torch.from_numpy(matrix), (0, width - matrix.shape[1])) for matrix in matrices]
            return torch.cat(padded).to(device)

        lengths = tuple(len(example.tokens) for example in examples)
        tokens = [torch.from_numpy(example.tokens) for example in examples]
        targets_TK = joined(example.targets for example in examples)
        shared = share(tokens, torch.split_with_sizes(targets_TK.cpu(), lengths)) if may_share else None
        if shared is not None:
            shared = shared.on(device)
            targets = torch.empty(len(shared.hidden_rows), width, dtype=torch.int64, device=device)
            targets[shared.head_rows] = targets_TK
        return cls(
            lengths=lengths,
            tokens=(shared.tokens if shared else torch.cat(tokens)).to(device),
            stretches=shared.lengths if shared else lengths,
            prefixes=shared.prefixes if shared else ((0, 0),) * len(lengths),
            shared=shared,
            targets=targets if shared else targets_TK,
            inputs={name: joined(example.inputs[name] for example in examples) for name in examples[0].inputs},
        )
