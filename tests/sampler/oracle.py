"""What plain transformers and PEFT say: one sequence at a time, no cache of ours, all logits at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from services.model.adapters import AdapterWeights
from testing.plain_peft import PlainPeft


class Oracle:
    """A plain model with an adapter, or without."""

    def __init__(self, source: Path, weights: AdapterWeights | None = None) -> None:
        if weights is None:
            self._module = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        else:
            self._module = PlainPeft(source, weights.config, weights).model

    @torch.no_grad()
    def log_softmax(self, tokens: Sequence[int], temperature: float = 1.0) -> Tensor:
        """[N, V]: row i is the distribution of token i + 1."""
        logits = self._module(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return (logits / temperature).log_softmax(-1)

    @torch.no_grad()
    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        """Greedy continuation by transformers' own `generate`, not stopped by anything."""
        output = self._module.generate(
            input_ids=torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=None,
            eos_token_id=None,
        )
        return output[0, len(prompt) :].tolist()

    def prompt_logprobs(self, prompt: Sequence[int]) -> Tensor:
        """Log-probability of each prompt token but the first."""
        return self.of_tokens(prompt[:1], prompt[1:])

    def of_tokens(self, prompt: Sequence[int], tokens: Sequence[int], temperature: float = 1.0) -> Tensor:
        """Log-probability of each token of a continuation."""
        rows = self.log_softmax([*prompt, *tokens], temperature)[len(prompt) - 1 : -1]
        return rows.gather(1, torch.tensor(tokens, dtype=torch.long)[:, None])[:, 0]
