"""The unembedding: from hidden states to log-probabilities, and in training to the gradient of a loss over them.

Training never builds a [tokens, vocabulary] tensor for a whole batch: it works on chunks of rows of one adapter,
outside autograd, in one float32 buffer per chunk. The gradient leaves as dL/dhidden, for `hidden.backward(...)` to
carry on. LoRA on the unembedding is computed in float32 whatever the base model's dtype.

N rows, C rows of a chunk, D hidden size, K targets a row, V vocabulary, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.lora import Segment
from services.model.precision import matmul_fp32

LossGradient = Callable[[slice, Tensor], Tensor]
"""(rows, logprobs [C, K] of these rows) -> dL/dlogprobs [C, K]."""

_UNEMBED = "lm_head"
_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}


@torch.no_grad()
def unembed(base: BaseModel, hidden_TD: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Logits as float32 [T, V], each segment's rows through its own adapter."""
    logits_TV = matmul_fp32(hidden_TD, _unembedding(base).t())
    for segment in segments:
        rows = slice(segment.start, segment.end)
        _add_adapter_(logits_TV[rows], hidden_TD[rows], segment.adapter)
    return logits_TV


@torch.no_grad()
def target_logprobs(base: BaseModel, hidden_ND: Tensor, targets_NK: Tensor, adapter: AdapterWeights | None) -> Tensor:
    """log softmax(logits)[target] as float32 [N, K].

    Args:
        base: the base model.
        hidden_ND: rows of one adapter, as the trunk returns them.
        targets_NK: int64 token ids.
        adapter: the rows' adapter; None for the base model alone.
    """
    logprobs_NK = torch.empty(targets_NK.shape, dtype=torch.float32, device=hidden_ND.device)
    for rows in _chunks(base, len(hidden_ND)):
        logprobs_NK[rows], _, _ = _softmax_parts(base, hidden_ND[rows], targets_NK[rows], adapter)
    return logprobs_NK


@torch.no_grad()
def target_logprobs_and_gradient(
    base: BaseModel,
    hidden_ND: Tensor,
    targets_NK: Tensor,
    *,
    adapter: AdapterWeights,
    gradient: AdapterWeights,
    loss_gradient: LossGradient,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and the gradient of a loss that is a function of them.

    With g = dL/dlogprobs and z the logits: dL/dz[n, v] = sum_k g[n, k] 1[v = t_k] - softmax(z)[n, v] sum_k g[n, k].
    Logits of a chunk are made once for both. Rows whose g is zero cost no backward.

    Args:
        base: the base model.
        hidden_ND: rows of one adapter, as the trunk returns them.
        targets_NK: int64 token ids.
        adapter: the rows' adapter.
        gradient: the adapter's gradient is added here.
        loss_gradient: called once per chunk, in row order.

    Returns:
        float32 [N, K], and dL/dhidden [N, D] in hidden's dtype.
    """
    logprobs_NK = torch.empty(targets_NK.shape, dtype=torch.float32, device=hidden_ND.device)
    d_hidden_ND = torch.empty_like(hidden_ND)
    for rows in _chunks(base, len(hidden_ND)):
        logprobs_NK[rows], d_hidden_ND[rows] = _chunk(
            base,
            hidden_ND[rows],
            targets_NK[rows],
            adapter=adapter,
            gradient=gradient,
            loss_gradient=partial(loss_gradient, rows),
        )
    return logprobs_NK, d_hidden_ND


def _chunk(
    base: BaseModel,
    hidden_CD: Tensor,
    targets_CK: Tensor,
    *,
    adapter: AdapterWeights,
    gradient: AdapterWeights,
    loss_gradient: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [C, K] and dL/dhidden [C, D] of one chunk; its [C, V] buffer is free again on return."""
    logprobs_CK, exp_CV, sum_C1 = _softmax_parts(base, hidden_CD, targets_CK, adapter)
    d_hidden_CD = torch.zeros_like(hidden_CD)
    g_CK = loss_gradient(logprobs_CK)
    active = g_CK.ne(0).any(dim=1)
    if not active.any():
        return logprobs_CK, d_hidden_CD
    if not active.all():
        hidden_CD, targets_CK, exp_CV, sum_C1, g_CK = (
            tensor[active] for tensor in (hidden_CD, targets_CK, exp_CV, sum_C1, g_CK)
        )
    d_logits_CV = exp_CV.mul_(-g_CK.sum(dim=1, keepdim=True) / sum_C1).scatter_add_(1, targets_CK, g_CK)
    d_hidden_CD[active] = _backward(base, hidden_CD, d_logits_CV, adapter, gradient)
    return logprobs_CK, d_hidden_CD


def _softmax_parts(
    base: BaseModel, hidden_CD: Tensor, targets_CK: Tensor, adapter: AdapterWeights | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities [C, K], and exponentials [C, V] with their sums [C, 1]: softmax is their quotient.

    One [C, V] buffer serves logits and exponentials; each row is shifted by its maximum.
    """
    logits_CV = matmul_fp32(hidden_CD, _unembedding(base).t())
    _add_adapter_(logits_CV, hidden_CD, adapter)
    logits_CV.sub_(logits_CV.amax(dim=1, keepdim=True))
    chosen_CK = logits_CV.gather(1, targets_CK)
    exp_CV = logits_CV.exp_()
    sum_C1 = exp_CV.sum(dim=1, keepdim=True)
    return chosen_CK - sum_C1.log(), exp_CV, sum_C1


def _backward(
    base: BaseModel, hidden_CD: Tensor, d_logits_CV: Tensor, adapter: AdapterWeights, gradient: AdapterWeights
) -> Tensor:
    """dL/dhidden [C, D]; adds the gradient of the unembedding's adapter."""
    d_hidden_CD = d_logits_CV.to(hidden_CD.dtype) @ _unembedding(base)
    if _UNEMBED in adapter.linears:
        a_RD, b_VR = adapter.linears[_UNEMBED]
        d_a_RD, d_b_VR = gradient.linears[_UNEMBED]
        wide_CD = hidden_CD.float()
        d_projected_CR = d_logits_CV @ b_VR
        d_b_VR.addmm_(d_logits_CV.t(), wide_CD @ a_RD.t(), alpha=adapter.scale)
        d_a_RD.addmm_(d_projected_CR.t(), wide_CD, alpha=adapter.scale)
        d_hidden_CD.add_(d_projected_CR @ a_RD, alpha=adapter.scale)
    return d_hidden_CD


def _add_adapter_(logits_CV: Tensor, hidden_CD: Tensor, adapter: AdapterWeights | None) -> None:
    """Adds the unembedding's adapter to logits in place."""
    if adapter is not None and _UNEMBED in adapter.linears:
        a_RD, b_VR = adapter.linears[_UNEMBED]
        logits_CV.addmm_(hidden_CD.float() @ a_RD.t(), b_VR.t(), alpha=adapter.scale)


def _unembedding(base: BaseModel) -> Tensor:
    """The frozen weight [V, D]."""
    return base.module.get_parameter(f"{_UNEMBED}.weight")


def _chunks(base: BaseModel, rows: int) -> Iterator[slice]:
    """Ranges of rows whose float32 logits fit the device's budget."""
    size = max(1, _CHUNK_BYTES[base.device.type] // (4 * base.vocab_size))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
