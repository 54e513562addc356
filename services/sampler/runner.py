"""One step on the device: a packed forward of all chunks, then the unembedding of the wanted rows and no others.

Chunks lie end to end in one row, each adapter's adjacent, so that every linear works on all tokens at once and each
adapter on one range. What comes back are plain values on the host; nothing here changes a sequence, so a step that
fails leaves no trace.

T tokens of the step, N wanted rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.logprobs import unembed
from services.model.lora import LoraContext, Segment, install_lora
from services.sampler.attention import SLOT_ATTENTION, PackedStep, Span, join_spans
from services.sampler.kv import KVStore
from services.sampler.linears import Routes, install_linears
from services.sampler.request import GenerationRequest, TopkRow
from services.sampler.sampling import Draw, draw_tokens
from services.sampler.scheduler import ALIGNMENT, Chunk
from services.sampler.sequence import DrawnToken, PromptScores

# Rows of a prompt that are scored, and samples of one that are drawn, at once: bound the memory of their
# [rows, vocabulary] logits.
_SCORED_ROWS = 128
_SAMPLED_ROWS = 128


@dataclass(frozen=True)
class Outcome:
    """What a step found for one chunk."""

    chunk: Chunk
    drawn: tuple[DrawnToken, ...]
    """A token for each sample that the chunk's sequence draws for, or none."""

    scores: PromptScores

    @property
    def is_finite(self) -> bool:
        """Whether the logits were."""
        return all(map(math.isfinite, (*self.scores.logprobs, *(token.logprob for token in self.drawn))))


class Runner:
    """A base model that reads and writes the KV store."""

    def __init__(self, base: BaseModel, store: KVStore, *, deterministic: bool) -> None:
        self._base = base
        self._store = store
        self._deterministic = deterministic
        self._plain = base.device.type == "cpu" and base.dtype == torch.float32
        self._lora: LoraContext | Routes
        if deterministic or self._plain:
            self._lora = install_linears(base, deterministic=deterministic)
        else:
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
            scores = self._score(chunk, hidden_TD[span.start : span.end])
            outcomes.append(Outcome(chunk, next(drawn) if chunk.draws else (), scores))
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
        attended = _aligned(spans) if self._deterministic else join_spans(spans)
        with self._lora.segments(_segments([(chunk.sequence.group.adapter, chunk.count) for chunk in chunks])):
            output = self._base.trunk(
                input_ids=tokens_T[None],
                position_ids=positions_T[None],
                use_cache=False,
                step=PackedStep(self._store, tuple(attended), rows_T),
            )
        hidden_TD: Tensor = output.last_hidden_state[0]
        return hidden_TD

    def _draw(self, drawing: Sequence[Chunk], hidden_TD: Tensor, rows: list[int]) -> Iterator[tuple[DrawnToken, ...]]:
        """For each chunk its samples' tokens, which the row of the same place predicts."""
        if not drawing:
            return
        hidden_ND = hidden_TD[torch.tensor(rows, device=hidden_TD.device)]
        logits_NV = self._logits(hidden_ND, [(chunk.sequence.group.adapter, 1) for chunk in drawing])
        own = _drawn(logits_NV, [(chunk, chunk.sequence.draws_for[0]) for chunk in drawing])
        for row, (chunk, first) in enumerate(zip(drawing, own, strict=True)):
            others = chunk.sequence.draws_for[1:]
            tokens = [first]
            for start in range(0, len(others), _SAMPLED_ROWS):
                samples = others[start : start + _SAMPLED_ROWS]
                tokens += _drawn(logits_NV[row].expand(len(samples), -1), [(chunk, sample) for sample in samples])
            yield tuple(tokens)

    def _logits(self, hidden_ND: Tensor, adapters: Sequence[tuple[AdapterWeights | None, int]]) -> Tensor:
        """float32 [N, V] of rows in ranges of these adapters and lengths."""
        segments = _segments(adapters)
        if not self._plain:
            return unembed(self._base, hidden_ND, segments)
        with self._lora.segments(segments):
            logits_NV: Tensor = self._base.module.get_submodule("lm_head")(hidden_ND)
        return logits_NV

    def _score(self, chunk: Chunk, hidden_ND: Tensor) -> PromptScores:
        """Log-probabilities at temperature 1 where the chunk's rows predict prompt tokens."""
        group, scores = chunk.sequence.group, PromptScores()
        if not group.request.scores_prompt:
            return scores
        end = min(chunk.end, group.scorable_rows)
        for start in range(max(chunk.start, group.next_scored_row), end, _SCORED_ROWS):
            stop = min(start + _SCORED_ROWS, end)
            rows_ND = hidden_ND[start - chunk.start : stop - chunk.start]
            logits_NV = self._logits(rows_ND, [(group.adapter, stop - start)])
            scores.add(_scores(group.request, start, logits_NV))
        return scores


def _scores(request: GenerationRequest, start: int, logits_NV: Tensor) -> PromptScores:
    """What is wanted of the rows that predict the prompt tokens from start + 1 on."""
    predicted = slice(start + 1, start + 1 + len(logits_NV))
    total_N1 = logits_NV.logsumexp(dim=-1, keepdim=True)
    own_N1 = torch.tensor(request.prompt[predicted], device=logits_NV.device)[:, None]
    scores = PromptScores((logits_NV.gather(1, own_N1) - total_N1)[:, 0].tolist())
    scores.topk_rows = _likeliest(logits_NV, total_N1, request.topk_prompt_logprobs)
    if request.target_prompt_tokens is not None:
        targets_NK = torch.tensor(request.target_prompt_tokens[predicted], device=logits_NV.device)
        scores.target_rows = [tuple(row) for row in (logits_NV.gather(1, targets_NK) - total_N1).tolist()]
    return scores


def _drawn(logits_NV: Tensor, wanted: Sequence[tuple[Chunk, int]]) -> list[DrawnToken]:
    """The next token of a sample of each row's chunk."""
    tokens_N, logprobs_N = draw_tokens(logits_NV, [_draw_of(chunk, sample) for chunk, sample in wanted])
    raw, topk = _extras([chunk.sequence.group.request for chunk, _ in wanted], logits_NV, tokens_N)
    columns = (tokens_N.tolist(), logprobs_N.tolist(), raw, topk)
    return [DrawnToken(*row) for row in zip(*columns, strict=True)]


def _extras(
    requests: Sequence[GenerationRequest], logits_NV: Tensor, tokens_N: Tensor
) -> tuple[list[float | None], list[TopkRow | None]]:
    """For each row the log-probability of its token and the likeliest tokens at temperature 1, where asked for."""
    raw: list[float | None] = [None] * len(requests)
    topk: list[TopkRow | None] = [None] * len(requests)
    asked = [
        row for row, request in enumerate(requests) if request.include_raw_logprobs or request.topk_sample_logprobs
    ]
    if not asked:
        return raw, topk
    rows = torch.tensor(asked, device=logits_NV.device)
    logits_RV = logits_NV[rows]
    total_R1 = logits_RV.logsumexp(dim=-1, keepdim=True)
    drawn = (logits_RV.gather(1, tokens_N[rows][:, None]) - total_R1)[:, 0].tolist()
    likeliest = _likeliest(logits_RV, total_R1, max(requests[row].topk_sample_logprobs for row in asked))
    for place, row in enumerate(asked):
        if requests[row].include_raw_logprobs:
            raw[row] = drawn[place]
        if count := requests[row].topk_sample_logprobs:
            topk[row] = likeliest[place][:count]
    return raw, topk


def _spans(chunks: Sequence[Chunk]) -> Iterator[Span]:
    """Where each chunk lies in the packed row and in the store."""
    start = 0
    for chunk in chunks:
        slot = chunk.sequence.slot
        yield Span(start, start + chunk.count, slot.start, slot.start + chunk.end)
        start += chunk.count


def _aligned(spans: Sequence[Span]) -> Iterator[Span]:
    """The spans in pieces that end where aligned chunks may, so that attention does not see how a prompt was cut."""
    for span in spans:
        start, slot_end = span.start, span.slot_end - (span.end - span.start)
        while start < span.end:
            position = slot_end - span.slot_start
            count = min(span.end - start, ALIGNMENT - position % ALIGNMENT)
            slot_end += count
            yield Span(start, start + count, span.slot_start, slot_end)
            start += count


def _segments(adapters: Sequence[tuple[AdapterWeights | None, int]]) -> list[Segment]:
    """Segments of a row whose ranges have these adapters and lengths; neighbours with one adapter are joined."""
    segments, start = [], 0
    for _, ranges in groupby(adapters, key=lambda pair: id(pair[0])):
        joined = list(ranges)
        end = start + sum(count for _, count in joined)
        segments.append(Segment(start, end, joined[0][0]))
        start = end
    return segments


def _draw_of(chunk: Chunk, sample: int) -> Draw:
    sequence, params = chunk.sequence, chunk.sequence.group.request.params
    position = len(sequence.logprobs)
    return Draw(params.temperature, params.top_k, params.top_p, params.seed, sample, position)


def _likeliest(logits_NV: Tensor, total_N1: Tensor, count: int) -> list[TopkRow]:
    if count == 0:
        return []
    best = logits_NV.topk(min(count, logits_NV.shape[1]))
    pairs = zip(best.indices.tolist(), (best.values - total_N1).tolist(), strict=True)
    return [tuple(zip(ids, logprobs, strict=True)) for ids, logprobs in pairs]
