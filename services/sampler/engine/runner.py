"""One step on the device: a packed forward of all chunks, then the unembedding of the rows that are needed.

Results are plain values on the host. Nothing here changes a sequence, so a step that fails has no effect.

T tokens of the step, N rows that are needed, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.core.sampling_limits import MAX_SAMPLES, NO_TARGET
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.sampler.engine.draw import Draw, draw_tokens
from services.sampler.engine.flash_forward import FlashForward
from services.sampler.engine.kv import KVStore
from services.sampler.engine.packed_forward import LoopForward, PackedChunks, PackedForward
from services.sampler.engine.scheduler import Chunk
from services.sampler.engine.sequence import DrawnToken, PromptScores
from services.sampler.request import AltTokens, GenerationRequest, TopkRow

# Rows of a prompt that are scored, and samples of one that are drawn, at once: bound the memory of their
# [rows, vocabulary] logits.
SCORED_ROWS = 128
SAMPLED_ROWS = 128


@dataclass(frozen=True)
class StepResult:
    """The result of a step for one chunk."""

    chunk: Chunk
    drawn: tuple[DrawnToken, ...]
    """A token for each sample that the chunk's sequence draws for, or none."""

    scores: PromptScores

    @property
    def is_finite(self) -> bool:
        """Whether the logits were finite."""
        return all(map(math.isfinite, (*self.scores.logprobs, *(token.logprob for token in self.drawn))))


class Runner:
    """Steps of one base model over one KV store."""

    def __init__(self, base: BaseModel, store: KVStore, *, deterministic: bool) -> None:
        self._forward: PackedForward
        if FlashForward.can_run(base) and not deterministic:
            self._forward = FlashForward(base, store)
        else:
            self._forward = LoopForward(base, store, deterministic=deterministic)

    @torch.inference_mode()
    def admit(self, adapter: AdapterWeights) -> None:
        """Prepares an adapter for the next steps.

        Raises:
            torch.OutOfMemoryError: there is no memory for it.
        """
        self._forward.admit([adapter])

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> list[StepResult]:
        """Feeds the chunks; one outcome each, in any order."""
        adapters = (chunk.sequence.group.adapter for chunk in chunks)
        self._forward.admit(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
        packed = PackedChunks.of(self._forward.ordered(chunks))
        hidden_TD = self._forward.forward(packed)
        pairs = list(zip(packed.chunks, packed.spans, strict=True))
        last_rows = [span.end - 1 for chunk, span in pairs if chunk.draws]
        drawn = self._draw([chunk for chunk, _ in pairs if chunk.draws], hidden_TD, last_rows)
        results = []
        for chunk, span in pairs:
            scores = self._score(chunk, hidden_TD[span.start : span.end])
            results.append(StepResult(chunk, next(drawn) if chunk.draws else (), scores))
        return results

    def _draw(self, drawing: Sequence[Chunk], hidden_TD: Tensor, rows: list[int]) -> Iterator[tuple[DrawnToken, ...]]:
        """The tokens of each chunk's samples; `rows[i]` of the step predicts those of chunk i."""
        if not drawing:
            return
        hidden_ND = hidden_TD[torch.tensor(rows, device=hidden_TD.device)]
        logits_NV = self._forward.logits(hidden_ND, [(chunk.sequence.group.adapter, 1) for chunk in drawing])
        own = _drawn(logits_NV, [(chunk, chunk.sequence.draws_for[0]) for chunk in drawing])
        for row, (chunk, first) in enumerate(zip(drawing, own, strict=True)):
            others = chunk.sequence.draws_for[1:]
            tokens = [first]
            for start in range(0, len(others), SAMPLED_ROWS):
                samples = others[start : start + SAMPLED_ROWS]
                tokens += _drawn(logits_NV[row].expand(len(samples), -1), [(chunk, sample) for sample in samples])
            yield tuple(tokens)

    def _score(self, chunk: Chunk, hidden_ND: Tensor) -> PromptScores:
        """Log-probabilities at temperature 1 where the chunk's rows predict prompt tokens."""
        group, scores = chunk.sequence.group, PromptScores()
        if not group.request.scores_prompt:
            return scores
        end = min(chunk.end, group.scorable_rows)
        for start in range(max(chunk.start, group.next_scored_row), end, SCORED_ROWS):
            stop = min(start + SCORED_ROWS, end)
            rows_ND = hidden_ND[start - chunk.start : stop - chunk.start]
            logits_NV = self._forward.logits(rows_ND, [(group.adapter, stop - start)])
            scores.add(_scores(group.request, start, logits_NV))
        return scores


def _scores(request: GenerationRequest, start: int, logits_NV: Tensor) -> PromptScores:
    """The requested scores of the rows that predict the prompt tokens from start + 1 on."""
    predicted = slice(start + 1, start + 1 + len(logits_NV))
    total_N1 = logits_NV.logsumexp(dim=-1, keepdim=True)
    own_N1 = torch.tensor(request.prompt[predicted], device=logits_NV.device)[:, None]
    scores = PromptScores((logits_NV.gather(1, own_N1) - total_N1)[:, 0].tolist())
    scores.topk_rows = _likeliest(logits_NV, total_N1, request.topk_prompt_logprobs)
    if request.target_prompt_tokens is not None:
        targets_NK = torch.tensor(request.target_prompt_tokens[predicted], device=logits_NV.device)
        targets_logprobs_NK = logits_NV.gather(1, targets_NK.clamp(min=0)) - total_N1
        targets_logprobs_NK.masked_fill_(targets_NK == NO_TARGET, math.nan)
        scores.target_rows = [tuple(row) for row in targets_logprobs_NK.tolist()]
    if request.prompt_alt_tokens:
        tokens_NK = torch.stack(
            [_drawn_in_place(request, start, number, logits_NV) for number in range(request.prompt_alt_tokens)], dim=1
        )
        logprobs_NK = logits_NV.gather(1, tokens_NK) - total_N1
        pairs = zip(tokens_NK.tolist(), logprobs_NK.tolist(), strict=True)
        scores.alt_rows = [AltTokens(tuple(tokens), tuple(logprobs)) for tokens, logprobs in pairs]
    return scores


def _drawn_in_place(request: GenerationRequest, start: int, number: int, logits_NV: Tensor) -> Tensor:
    """Tokens int64 [N] that rows draw in the place of the prompt tokens from start + 1 on, with noise of no sample."""
    temperature, seed, sample = request.params.temperature, request.params.seed, MAX_SAMPLES + number
    draws = [Draw(temperature, -1, 1.0, seed, sample, start + 1 + row) for row in range(len(logits_NV))]
    return draw_tokens(logits_NV, draws)[0]


def _drawn(logits_NV: Tensor, samples: Sequence[tuple[Chunk, int]]) -> list[DrawnToken]:
    """The next token for each row's chunk and index of its sample."""
    tokens_N, logprobs_N = draw_tokens(logits_NV, [_draw_of(chunk, sample) for chunk, sample in samples])
    raw, topk = _extras([chunk.sequence.group.request for chunk, _ in samples], logits_NV, tokens_N)
    columns = (tokens_N.tolist(), logprobs_N.tolist(), raw, topk)
    return [DrawnToken(*row) for row in zip(*columns, strict=True)]


def _extras(
    requests: Sequence[GenerationRequest], logits_NV: Tensor, tokens_N: Tensor
) -> tuple[list[float | None], list[TopkRow | None]]:
    """For each row the log-probability of its token and the likeliest tokens at temperature 1, if requested."""
    raw: list[float | None] = [None] * len(requests)
    topk: list[TopkRow | None] = [None] * len(requests)
    requested = [
        row for row, request in enumerate(requests) if request.include_raw_logprobs or request.topk_sample_logprobs
    ]
    if not requested:
        return raw, topk
    rows = torch.tensor(requested, device=logits_NV.device)
    logits_RV = logits_NV[rows]
    total_R1 = logits_RV.logsumexp(dim=-1, keepdim=True)
    drawn = (logits_RV.gather(1, tokens_N[rows][:, None]) - total_R1)[:, 0].tolist()
    likeliest = _likeliest(logits_RV, total_R1, max(requests[row].topk_sample_logprobs for row in requested))
    for index, row in enumerate(requested):
        if requests[row].include_raw_logprobs:
            raw[row] = drawn[index]
        if count := requests[row].topk_sample_logprobs:
            topk[row] = likeliest[index][:count]
    return raw, topk


def _draw_of(chunk: Chunk, sample: int) -> Draw:
    sequence, params = chunk.sequence, chunk.sequence.group.request.params
    position = len(sequence.logprobs)
    return Draw(params.temperature, params.top_k, params.top_p, params.seed, sample, position)


def _likeliest(logits_NV: Tensor, total_N1: Tensor, count: int) -> list[TopkRow]:
    if count == 0:
        return []
    best = logits_NV.topk(min(count, logits_NV.shape[1]))
    return [TopkRow(*row) for row in zip(best.indices.tolist(), (best.values - total_N1).tolist(), strict=True)]
