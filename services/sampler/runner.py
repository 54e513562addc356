"""One step on the device: a packed forward of all chunks, then the unembedding of the wanted rows and no others.

Chunks lie end to end in one row, each adapter's adjacent, so that every linear works on all tokens at once and each
adapter on one range. What comes back are plain values on the host; nothing here changes a sequence, so a step that
fails leaves no trace.

T tokens of the step, N wanted rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.logprobs import unembed
from services.model.lora import Segment, install_lora
from services.sampler.attention import SLOT_ATTENTION, PackedStep, Span
from services.sampler.kv import KVStore
from services.sampler.request import TopkRow
from services.sampler.sampling import Draw, draw_tokens
from services.sampler.scheduler import Chunk

# Rows of a prompt that are scored at once: bounds the memory of their [rows, vocabulary] logits.
_SCORED_ROWS = 128


@dataclass(frozen=True)
class Outcome:
    """What a step found for one chunk."""

    chunk: Chunk
    token: int | None = None
    logprob: float | None = None
    prompt_logprobs: tuple[float, ...] = ()
    topk_rows: tuple[TopkRow, ...] = ()

    @property
    def logprobs(self) -> tuple[float, ...]:
        """All of them; one that is not finite means that the chunk's logits were not."""
        return self.prompt_logprobs if self.logprob is None else (*self.prompt_logprobs, self.logprob)


class Runner:
    """A base model that reads and writes the KV store."""

    def __init__(self, base: BaseModel, store: KVStore) -> None:
        self._base = base
        self._store = store
        self._lora = install_lora(base)
        base.module.set_attn_implementation(SLOT_ATTENTION)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> list[Outcome]:
        """Feeds the chunks; one outcome each, in order."""
        spans = tuple(_spans(chunks))
        hidden_TD = self._forward(chunks, spans)
        last_rows = [span.end - 1 for chunk, span in zip(chunks, spans, strict=True) if chunk.draws]
        drawn = self._draw([chunk for chunk in chunks if chunk.draws], hidden_TD, last_rows)
        outcomes = []
        for chunk, span in zip(chunks, spans, strict=True):
            token, logprob = next(drawn) if chunk.draws else (None, None)
            scores = self._score(chunk, hidden_TD[span.start : span.end])
            outcomes.append(Outcome(chunk, token, logprob, *scores))
        return outcomes

    def _forward(self, chunks: Sequence[Chunk], spans: tuple[Span, ...]) -> Tensor:
        """The trunk's output [T, D]."""
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        for chunk, span in zip(chunks, spans, strict=True):
            tokens += chunk.sequence.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            rows += range(span.slot_end - chunk.count, span.slot_end)
        tokens_T, positions_T, rows_T = torch.tensor([tokens, positions, rows], device=self._base.device)
        with self._lora.segments(_segments([(chunk.sequence.group.adapter, chunk.count) for chunk in chunks])):
            output = self._base.trunk(
                input_ids=tokens_T[None],
                position_ids=positions_T[None],
                use_cache=False,
                step=PackedStep(self._store, spans, rows_T),
            )
        hidden_TD: Tensor = output.last_hidden_state[0]
        return hidden_TD

    def _draw(self, drawing: Sequence[Chunk], hidden_TD: Tensor, rows: list[int]) -> Iterator[tuple[int, float]]:
        """The next token of each chunk, which the row of the same place predicts, and its log-probability."""
        if not drawing:
            return iter(())
        hidden_ND = hidden_TD[torch.tensor(rows, device=hidden_TD.device)]
        logits_NV = unembed(self._base, hidden_ND, _segments([(chunk.sequence.group.adapter, 1) for chunk in drawing]))
        tokens_N, logprobs_N = draw_tokens(logits_NV, [_draw_of(chunk) for chunk in drawing])
        return zip(tokens_N.tolist(), logprobs_N.tolist(), strict=True)

    def _score(self, chunk: Chunk, hidden_ND: Tensor) -> tuple[tuple[float, ...], tuple[TopkRow, ...]]:
        """Log-probabilities at temperature 1 of the prompt tokens that the chunk's rows predict, and the likeliest."""
        group = chunk.sequence.group
        end = min(chunk.end, group.prefix)
        if not group.request.scores_prompt or end <= chunk.start:
            return (), ()
        logprobs: list[float] = []
        topk_rows: list[TopkRow] = []
        for start in range(chunk.start, end, _SCORED_ROWS):
            stop = min(start + _SCORED_ROWS, end)
            rows_ND = hidden_ND[start - chunk.start : stop - chunk.start]
            targets_N = torch.tensor(group.request.prompt[start + 1 : stop + 1], device=rows_ND.device)
            logits_NV = unembed(self._base, rows_ND, _segments([(group.adapter, stop - start)]))
            total_N1 = logits_NV.logsumexp(dim=-1, keepdim=True)
            logprobs += (logits_NV.gather(1, targets_N[:, None]) - total_N1)[:, 0].tolist()
            topk_rows += _likeliest(logits_NV, total_N1, group.request.topk_prompt_logprobs)
        return tuple(logprobs), tuple(topk_rows)


def _spans(chunks: Sequence[Chunk]) -> Iterator[Span]:
    """Where each chunk lies in the packed row and in the store."""
    start = 0
    for chunk in chunks:
        slot = chunk.sequence.slot
        yield Span(start, start + chunk.count, slot.start, slot.start + chunk.end)
        start += chunk.count


def _segments(adapters: Sequence[tuple[AdapterWeights | None, int]]) -> list[Segment]:
    """Segments of a row whose ranges have these adapters and lengths; neighbours with one adapter are joined."""
    segments, start = [], 0
    for _, ranges in groupby(adapters, key=lambda pair: id(pair[0])):
        joined = list(ranges)
        end = start + sum(count for _, count in joined)
        segments.append(Segment(start, end, joined[0][0]))
        start = end
    return segments


def _draw_of(chunk: Chunk) -> Draw:
    sequence, params = chunk.sequence, chunk.sequence.group.request.params
    position = len(sequence.logprobs)
    return Draw(params.temperature, params.top_k, params.top_p, params.seed, sequence.index, position)


def _likeliest(logits_NV: Tensor, total_N1: Tensor, count: int) -> list[TopkRow]:
    if count == 0:
        return []
    best = logits_NV.topk(min(count, logits_NV.shape[1]))
    pairs = zip(best.indices.tolist(), (best.values - total_N1).tolist(), strict=True)
    return [tuple(zip(ids, logprobs, strict=True)) for ids, logprobs in pairs]
