"""The chunked unembedding against one big log-softmax and autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from services.model import logprobs
from services.model.adapter_config import AdapterConfig
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.lora import Segment
from testing.rows import perturbed_adapter
from testing.tiny_models import HIDDEN_SIZE, VOCAB_SIZE

ROWS = 23


def _naive_logits(base: BaseModel, hidden: Tensor, weights: AdapterWeights | None) -> Tensor:
    logits = hidden @ base.module.get_output_embeddings().weight.t()
    if weights is not None:
        a, b = weights.linears["lm_head"]
        logits = logits + weights.scale_of("lm_head") * (hidden @ a.t()) @ b.t()
    return logits


@pytest.fixture(params=[1, 4, 1000], ids=["rows one by one", "chunks of four", "one chunk"])
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "_CHUNK_BYTES", {"cpu": request.param * 4 * VOCAB_SIZE})


@pytest.mark.usefixtures("chunk_rows")
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("train_unembed", [True, False])
def test_logprobs_and_gradients_equal_autograd(load: Callable[..., BaseModel], k: int, train_unembed: bool) -> None:
    base = load(tied=False)
    weights = perturbed_adapter(base, AdapterConfig(4, train_unembed=train_unembed, seed=0))
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(ROWS, HIDDEN_SIZE, generator=generator)
    targets = torch.randint(VOCAB_SIZE, (ROWS, k), generator=generator)
    targets[3] = targets[3, 0]  # the same target twice in a row adds up
    coefficients = torch.randn(ROWS, k, generator=generator)
    coefficients[5:9] = 0

    def quadratic(values: Tensor, factors: Tensor) -> Tensor:
        return (factors * values * values).sum()

    leaf = hidden.clone().requires_grad_()
    head = [matrix.clone().requires_grad_() for matrix in weights.linears.get("lm_head", ())]
    logits = leaf @ base.module.get_output_embeddings().weight.t()
    if head:
        logits = logits + weights.scale_of("lm_head") * (leaf @ head[0].t()) @ head[1].t()
    expected = logits.log_softmax(-1).gather(1, targets)
    quadratic(expected, coefficients).backward()

    gradient = weights.zeros()
    part = logprobs.HeadPart(targets, weights, gradient, lambda rows, values: 2 * coefficients[rows] * values)
    (actual,), d_hidden = logprobs.logprobs_and_gradient(base, hidden, [part])
    torch.testing.assert_close(actual, expected.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(d_hidden, leaf.grad, rtol=1e-5, atol=1e-5)
    assert not d_hidden[5:9].any()
    for mine, leaf_matrix in zip(gradient.linears.get("lm_head", ()), head, strict=True):
        assert float((mine - leaf_matrix.grad).norm() / leaf_matrix.grad.norm()) < 1e-5
    assert torch.equal(actual, logprobs.target_logprobs(base, hidden, targets, weights))


def test_unembed_gives_each_segment_its_own_adapter(load: Callable[..., BaseModel]) -> None:
    base = load()
    first, second = (perturbed_adapter(base, AdapterConfig(4, seed=index)) for index in range(2))
    hidden = torch.randn(9, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    segments = [Segment(0, 4, first), Segment(4, 7, second), Segment(7, 9, None)]
    logits = logprobs.unembed(base, hidden, segments)
    assert logits.dtype == torch.float32
    for segment in segments:
        rows = slice(segment.start, segment.end)
        expected = _naive_logits(base, hidden[rows], segment.adapter)
        torch.testing.assert_close(logits[rows], expected, rtol=0, atol=1e-5)


def test_huge_logits_do_not_overflow(load: Callable[..., BaseModel]) -> None:
    base = load()
    hidden = torch.full((2, HIDDEN_SIZE), 1e4)
    targets = torch.tensor([[5], [7]])
    values = logprobs.target_logprobs(base, hidden, targets, None)
    assert values.isfinite().all()
    torch.testing.assert_close(values, _naive_logits(base, hidden, None).log_softmax(-1).gather(1, targets))
