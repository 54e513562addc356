"""From logits to tokens: pure functions of logits and of how each row is drawn.

The order is temperature, top_k, top_p on what is left, draw. A draw is a Gumbel race (argmax of log-probability plus
noise), so equal logits and an equal key give an equal token whatever else is in the batch. Reported log-probabilities
are those of the tempered distribution before top_k and top_p; at temperature 0, those of temperature 1.

Shapes: N rows, V vocabulary, M candidates looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.sampler.engine.noise import gumbel_noise, noise_key

# How many of the likeliest tokens are looked at first; rows whose top_k or top_p reaches further are sorted whole.
_CANDIDATES = 1024


@dataclass(frozen=True)
class Draw:
    """The parameters of one draw: temperature >= 0, top_k (-1 or 0: off), top_p in (0, 1], and the key of its noise."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    sample: int
    position: int

    @property
    def is_random(self) -> bool:
        """Whether noise decides; at temperature 0 the likeliest token wins."""
        return self.temperature > 0


def draw_tokens(logits_NV: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [N] and their reported log-probabilities float32 [N]; NaN where a row's logits are not finite."""
    tempered_NV = _temper(logits_NV, draws)
    scores_NV = _restrict(tempered_NV, draws)
    random = [row for row, draw in enumerate(draws) if draw.is_random]
    if random:
        keys = [noise_key(draws[row].seed, draws[row].sample, draws[row].position) for row in random]
        rows = torch.tensor(random, device=logits_NV.device)
        noise_RV = gumbel_noise(keys, logits_NV.shape[1], logits_NV.device)
        scores_NV = scores_NV.index_add(0, rows, noise_RV)
    tokens_N = scores_NV.argmax(dim=-1)
    chosen_N = tempered_NV.gather(1, tokens_N[:, None])[:, 0]
    return tokens_N, chosen_N - tempered_NV.logsumexp(dim=-1)


def _temper(logits_NV: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """(logits - their maximum) / temperature: the shift changes no probability and keeps tiny temperatures finite."""
    smallest = torch.finfo(torch.float32).tiny
    divisor_N = torch.tensor(
        [max(draw.temperature, smallest) if draw.is_random else 1.0 for draw in draws], device=logits_NV.device
    )
    return (logits_NV - logits_NV.amax(dim=-1, keepdim=True)) / divisor_N[:, None]


def _restrict(tempered_NV: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """-inf for tokens outside top_k and top_p of their row; the same tensor when no row asks for either."""
    vocab_size = tempered_NV.shape[1]
    limits = [(draw.top_k if 0 < draw.top_k < vocab_size else vocab_size, draw.top_p) for draw in draws]
    restricted = [
        row for row, (top_k, top_p) in enumerate(limits) if draws[row].is_random and (top_k < vocab_size or top_p < 1)
    ]
    if not restricted:
        return tempered_NV
    device = tempered_NV.device
    rows = torch.tensor(restricted, device=device)
    top_k_N = torch.tensor([limits[row][0] for row in restricted], device=device)
    # Off is infinite: rounding must not end the set before its last token.
    top_p_N = torch.tensor(
        [limits[row][1] if limits[row][1] < 1 else float("inf") for row in restricted],
        dtype=torch.float64,
        device=device,
    )
    kept_NV = keep_likeliest(tempered_NV[rows], top_k_N, top_p_N)
    return tempered_NV.index_copy(0, rows, tempered_NV[rows].masked_fill(~kept_NV, float("-inf")))


def keep_likeliest(values_NV: torch.Tensor, top_k_N: torch.Tensor, top_p_N: torch.Tensor) -> torch.Tensor:
    """Mask of the kept tokens, bool [N, V]: the top_k likeliest, of those the fewest whose probability reaches top_p.

    `values_NV` are log-probabilities up to a constant per row, top_k in [1, V], top_p > 0. One token always stays.
    Among equally likely tokens at the border the lower ids stay, so the answer is a function of the row alone.
    """
    vocab_size = values_NV.shape[1]
    count_N, border_N, exact_N = _border(values_NV, top_k_N, top_p_N, min(_CANDIDATES, vocab_size))
    if not bool(exact_N.all()):
        rows = (~exact_N).nonzero()[:, 0]
        count_R, border_R, _ = _border(values_NV[rows], top_k_N[rows], top_p_N[rows], vocab_size)
        count_N, border_N = count_N.index_copy(0, rows, count_R), border_N.index_copy(0, rows, border_R)
    above_NV, tied_NV = values_NV > border_N[:, None], values_NV == border_N[:, None]
    left_N = count_N - above_NV.sum(dim=-1)
    crowded = (tied_NV.sum(dim=-1) > left_N).nonzero()[:, 0]
    if len(crowded):
        tied_RV = tied_NV[crowded]
        tied_NV[crowded] = tied_RV & (tied_RV.cumsum(dim=-1) <= left_N[crowded, None])
    return above_NV | tied_NV


def _border(
    values_NV: torch.Tensor, top_k_N: torch.Tensor, top_p_N: torch.Tensor, candidates: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Number of tokens that stay, the value of the last of them, and whether `candidates` tokens were enough."""
    vocab_size = values_NV.shape[1]
    if candidates < vocab_size:
        sorted_NM = values_NV.topk(candidates).values
    else:
        sorted_NM = values_NV.sort(dim=-1, descending=True).values
    rank_M = torch.arange(candidates, device=values_NV.device)
    within_k_NM = rank_M < top_k_N[:, None]
    total_N = torch.where(
        top_k_N < vocab_size,
        sorted_NM.masked_fill(~within_k_NM, float("-inf")).logsumexp(dim=-1),
        values_NV.logsumexp(dim=-1),
    )
    probability_NM = (sorted_NM - total_N[:, None]).double().exp()
    reached_NM = probability_NM.cumsum(dim=-1)
    within_NM = within_k_NM & (reached_NM - probability_NM < top_p_N[:, None])
    count_N = within_NM.sum(dim=-1).clamp(min=1)
    # A set that ends before the last candidate has its end in sight.
    exact_N = (top_k_N <= candidates) | ((top_k_N == vocab_size) & (reached_NM[:, -1] >= top_p_N))
    return count_N, sorted_NM.gather(1, count_N[:, None] - 1)[:, 0], exact_N
