"""The opponent: many tenants in plain PEFT, as one writes it without a platform.

One PEFT model with an adapter for each tenant; a step is set_adapter, a right-padded batch, all logits at once, and
torch.optim.AdamW.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from services.model.adapter_config import AdapterConfig
from services.model.adapters import peft_config
from services.model.families import SUPPORTED_FAMILIES


class NaivePeft:
    """Trains tenants one after another."""

    def __init__(self, source: Path, config: AdapterConfig, tenants: int) -> None:
        base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = peft_config(config, str(source), SUPPORTED_FAMILIES[base.config.model_type])
            options.inference_mode = False
            self._model = get_peft_model(base, options, adapter_name="t0")
            for index in range(1, tenants):
                self._model.add_adapter(f"t{index}", options)
        self._model.eval()
        self._optimizers: dict[str, torch.optim.AdamW] = {}
        for index in range(tenants):
            name = f"t{index}"
            self._model.set_adapter(name)
            own = [weight for key, weight in self._model.named_parameters() if f".{name}." in key]
            self._optimizers[name] = torch.optim.AdamW(own, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)

    def forward_backward(self, tenant: int, tokens: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
        """Cross-entropy of a batch, padded to its longest sequence."""
        self._model.set_adapter(f"t{tenant}")
        width = max(map(len, tokens))
        ids, wanted = (torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]) for rows in (tokens, targets))
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in tokens])
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        losses: Tensor = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        (losses * mask.flatten()).sum().backward()

    def optim_step(self, tenant: int) -> None:
        self._optimizers[f"t{tenant}"].step()
        self._optimizers[f"t{tenant}"].zero_grad()
