"""The unembedding: from hidden states to log-probabilities, and in training to the gradient of a loss over them.

Training never builds a [tokens, vocabulary] tensor for a whole batch: it works on chunks of rows, outside autograd, in
one float32 buffer per chunk. Parts of several adapters share a chunk; the borders of a part's chunks follow from the
part alone, so that its sums are formed in the same order alone or batched. The gradient leaves as dL/dhidden, for
`hidden.backward(...)` to carry on. LoRA on the unembedding is computed in float32 whatever the base model's dtype.

N rows, C rows of a chunk, D hidden size, K targets a row, V vocabulary, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.lora import MultiLoraLinear, Segment
from services.model.precision import matmul_fp32
from services.model.rowwise import Product, addmm_rows_, aligned_rows

LossGradient = Callable[[slice, Tensor], Tensor]
"""(rows of the part, their logprobs [C, K]) -> dL/dlogprobs [C, K]."""

_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}


@dataclass(frozen=True)
class HeadPart:
    """Consecutive rows of one adapter."""

    targets: Tensor
    """int64 [N, K] token ids."""

    adapter: AdapterWeights | None
    """None for the base model alone."""

    gradient: AdapterWeights | None = None
    """Buffer that the gradient of the unembedding's adapter is added to; None for log-probabilities alone."""

    loss_gradient: LossGradient | None = None
    """Called once per chunk, in row order; set together with `gradient`."""


@torch.no_grad()
def unembed(base: BaseModel, hidden_TD: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Logits as float32 [T, V], each segment's rows through its own adapter."""
    logits_TV = _to_logits(base)(hidden_TD)
    for segment in segments:
        _add_adapter_(base, logits_TV, hidden_TD, slice(segment.start, segment.end), segment.adapter)
    return logits_TV


def target_logprobs(base: BaseModel, hidden_ND: Tensor, targets_NK: Tensor, adapter: AdapterWeights | None) -> Tensor:
    """log softmax(logits)[target] as float32 [N, K].

    Args:
        base: the base model.
        hidden_ND: rows of one adapter, as the trunk returns them.
        targets_NK: int64 token ids.
        adapter: the rows' adapter; None for the base model alone.
    """
    (logprobs_NK,), _ = logprobs_and_gradient(base, hidden_ND, [HeadPart(targets_NK, adapter)])
    return logprobs_NK


@torch.no_grad()
def logprobs_and_gradient(base: BaseModel, hidden_ND: Tensor, parts: Sequence[HeadPart]) -> tuple[list[Tensor], Tensor]:
    """Log-probabilities, and the gradient of losses that are functions of them.

    With g = dL/dlogprobs and z the logits: dL/dz[n, v] = sum_k g[n, k] 1[v = t_k] - softmax(z)[n, v] sum_k g[n, k].
    Logits of a chunk are made once for both. Rows whose g is zero cost no backward.

    Args:
        base: the base model.
        hidden_ND: the parts' rows end to end, as the trunk returns them.
        parts: what each range of rows is for.

    Returns:
        float32 [N, K] for each part, and dL/dhidden [N, D] in hidden's dtype, zero for parts without a loss gradient.
    """
    logprobs: list[list[Tensor]] = [[] for _ in parts]
    d_hidden_ND = torch.zeros_like(hidden_ND)
    for chunk, pieces in _chunks(parts, rows_at_once(base)):
        found = _run_chunk(base, hidden_ND[chunk], pieces, d_hidden_ND[chunk])
        for piece, logprobs_MK in zip(pieces, found, strict=True):
            logprobs[piece.index].append(logprobs_MK)
    return [torch.cat(of_part) for of_part in logprobs], d_hidden_ND


def rows_at_once(base: BaseModel) -> int:
    """Rows whose float32 logits fit the device's budget: a part of no more is computed in one piece."""
    return max(1, _CHUNK_BYTES[base.device.type] // (4 * base.vocab_size))


@dataclass(frozen=True)
class _Piece:
    """M consecutive rows of a part in a chunk."""

    index: int
    """Of the part."""

    part: HeadPart

    rows: slice
    """Rows of the part."""

    chunk_rows: slice
    """The same rows in the chunk."""

    @property
    def targets(self) -> Tensor:
        """int64 [M, K]."""
        return self.part.targets[self.rows]


def _chunks(parts: Sequence[HeadPart], size: int) -> Iterator[tuple[slice, list[_Piece]]]:
    """Ranges of at most `size` rows and the pieces in each; a part is divided every `size` rows of its own."""
    start = used = 0
    pieces: list[_Piece] = []
    for index, part in enumerate(parts):
        for first in range(0, len(part.targets), size):
            rows = slice(first, min(first + size, len(part.targets)))
            length = rows.stop - rows.start
            if used + length > size:
                yield slice(start, start + used), pieces
                start, used, pieces = start + used, 0, []
            pieces.append(_Piece(index, part, rows, slice(used, used + length)))
            used += length
    if pieces:
        yield slice(start, start + used), pieces


def _run_chunk(base: BaseModel, hidden_CD: Tensor, pieces: Sequence[_Piece], d_hidden_CD: Tensor) -> list[Tensor]:
    """Log-probabilities [M, K] of each piece; adds dL/dhidden of one chunk, whose [C, V] buffer is free on return.

    The buffer holds logits, then their exponentials, then dL/dlogits; each row is shifted by its maximum.
    """
    buffer_CV = _to_logits(base)(hidden_CD)
    for piece in pieces:
        _add_adapter_(base, buffer_CV, hidden_CD, piece.chunk_rows, piece.part.adapter)
    buffer_CV.sub_(buffer_CV.amax(dim=1, keepdim=True))
    chosen = [buffer_CV[piece.chunk_rows].gather(1, piece.targets) for piece in pieces]
    sum_C1 = _sum_of_rows(buffer_CV.exp_())
    log_sum_C1 = sum_C1.log()
    logprobs = [chosen_MK - log_sum_C1[piece.chunk_rows] for piece, chosen_MK in zip(pieces, chosen, strict=True)]
    active_C = torch.zeros(len(hidden_CD), dtype=torch.bool, device=hidden_CD.device)
    for piece, logprobs_MK in zip(pieces, logprobs, strict=True):
        if piece.part.loss_gradient is not None:
            g_MK = piece.part.loss_gradient(piece.rows, logprobs_MK)
            active_C[piece.chunk_rows] = g_MK.ne(0).any(dim=1)
            d_logits_MV = buffer_CV[piece.chunk_rows].mul_(-g_MK.sum(dim=1, keepdim=True) / sum_C1[piece.chunk_rows])
            d_logits_MV.scatter_add_(1, piece.targets, g_MK)
    if active_C.all():
        d_hidden_CD.copy_(_backward(base, hidden_CD, buffer_CV, [(piece.part, piece.chunk_rows) for piece in pieces]))
    elif active_C.any():
        ends = [0, *accumulate(int(active_C[piece.chunk_rows].sum()) for piece in pieces)]
        ranges = [slice(*pair) for pair in pairwise(ends)]
        parts = [(piece.part, rows) for piece, rows in zip(pieces, ranges, strict=True)]
        d_hidden_CD[active_C] = _backward(base, hidden_CD[active_C], buffer_CV[active_C], parts)
    return logprobs


def _sum_of_rows(values_CV: Tensor) -> Tensor:
    """[C, 1]; a row that is alone is doubled, because torch adds up a whole tensor in another order than rows."""
    doubled = values_CV.expand(2, -1) if len(values_CV) == 1 else values_CV
    return doubled.sum(dim=1, keepdim=True)[: len(values_CV)]


def _backward(
    base: BaseModel, hidden_CD: Tensor, d_logits_CV: Tensor, parts: Sequence[tuple[HeadPart, slice]]
) -> Tensor:
    """dL/dhidden [C, D]; adds the gradients of the unembedding's adapters."""
    unembedding = base.family.unembedding
    d_hidden_CD = _from_logits(base, hidden_CD.dtype)(d_logits_CV)
    for part, rows in parts:
        if part.adapter is None or part.gradient is None or unembedding not in part.adapter.linears:
            continue
        scale, (a_RD, b_VR) = part.adapter.scale_of(unembedding), part.adapter.linears[unembedding]
        d_a_RD, d_b_VR = part.gradient.linears[unembedding]
        d_logits_MV, hidden_MD = aligned_rows(d_logits_CV, rows), aligned_rows(hidden_CD, rows).float()
        d_projected_MR = d_logits_MV @ b_VR
        d_b_VR.addmm_(d_logits_MV.t(), hidden_MD @ a_RD.t(), alpha=scale)
        d_a_RD.addmm_(d_projected_MR.t(), hidden_MD, alpha=scale)
        d_hidden_CD[rows].add_(d_projected_MR @ a_RD, alpha=scale)
    return d_hidden_CD


def _add_adapter_(
    base: BaseModel, logits_CV: Tensor, hidden_CD: Tensor, rows: slice, adapter: AdapterWeights | None
) -> None:
    """Adds the unembedding's adapter to rows of logits in place."""
    if adapter is not None and (pair := adapter.linears.get(base.family.unembedding)) is not None:
        a_RD, b_VR = pair
        projected_MR = aligned_rows(hidden_CD, rows).float() @ a_RD.t()
        addmm_rows_(logits_CV, rows, projected_MR, b_VR.t(), scale=adapter.scale_of(base.family.unembedding))


def _to_logits(base: BaseModel) -> Product:
    """From hidden states [C, D] to float32 [C, V]."""
    linear = base.unembedding
    if isinstance(linear, MultiLoraLinear) and base.dtype == torch.float32:
        return linear.products.forward
    weight_VD = base.unembedding_weight
    return lambda hidden_CD: matmul_fp32(hidden_CD, weight_VD.t())


def _from_logits(base: BaseModel, dtype: torch.dtype) -> Product:
    """From dL/dlogits [C, V] to dL/dhidden [C, D] in a dtype."""
    linear = base.unembedding
    if isinstance(linear, MultiLoraLinear) and base.dtype == torch.float32:
        return linear.products.backward
    weight_VD = base.unembedding_weight
    return lambda d_logits_CV: d_logits_CV.to(dtype) @ weight_VD
