"""Training examples as tensors: from a request's data to packed rows, and from packed results back to each example.

A request arrives here validated by the gateway. Its arrays are brought to one form: two-dimensional, optional ones
filled with ones, `mask` multiplied into the factor of the loss.

T tokens of all examples end to end, N tokens of one, K targets a position. Where examples share beginnings, P tokens
are laid out and the head has U rows; see services.trainer.engine.prefix_sharing. Otherwise both are T.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from services.core.chunks import text_ids
from services.core.losses import LossSpec
from services.trainer.engine.prefix_sharing import SharedLayout, share
from tinker_proto.tensor import to_array
from tinker_proto.v1 import data_pb2


@dataclass(frozen=True)
class Example:
    """One datum, on the CPU."""

    tokens: Tensor
    """int64 [N]: content ids (services.core.chunks), which prefix sharing compares."""

    targets: Tensor
    """int64 [N, K]."""

    inputs: Mapping[str, Tensor]
    """What the loss reads beside logprobs, float32 [N, K] each."""

    shape: tuple[int, ...]
    """[N] or [N, K]: of target_tokens as the client sent it, and so of the logprobs that it gets."""


def read_example(datum: data_pb2.Datum, spec: LossSpec) -> Example:
    """Converts a validated datum for a loss function."""
    arrays = {name: torch.from_numpy(to_array(tensor)) for name, tensor in datum.loss_fn_inputs.items()}
    targets = arrays.pop("target_tokens")
    for name in spec.optional:
        arrays.setdefault(name, torch.ones(targets.shape))
    mask = arrays.pop("mask")
    arrays[spec.factor] = arrays.get(spec.factor, 1.0) * mask
    rows = len(targets)
    return Example(
        tokens=torch.from_numpy(text_ids("model_input", datum.model_input)),
        targets=targets.view(rows, -1),
        inputs={name: array.view(rows, -1) for name, array in arrays.items()},
        shape=tuple(targets.shape),
    )


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

        def joined(matrices: Iterator[Tensor]) -> Tensor:
            return torch.cat([F.pad(matrix, (0, width - matrix.shape[1])) for matrix in matrices]).to(device)

        lengths = tuple(len(example.tokens) for example in examples)
        tokens = [example.tokens for example in examples]
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
