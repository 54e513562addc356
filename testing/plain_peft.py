"""The oracle: an adapter in plain PEFT on a plain transformers model, one sequence at a time, all logits at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from services.model.adapter_config import AdapterConfig
from services.model.adapters import AdapterWeights, peft_config
from services.model.families import SUPPORTED_FAMILIES


@contextmanager
def peft_warnings_ignored() -> Iterator[None]:
    """Silences what PEFT says about tied embeddings, which we adapt on purpose, and its own use of an old property."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield


class PlainPeft:
    """A PEFT model of its own, trainable, with the weights that it is given."""

    def __init__(self, source: Path, config: AdapterConfig, weights: AdapterWeights | None = None) -> None:
        base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa")
        options = peft_config(config, str(source), SUPPORTED_FAMILIES[base.config.model_type])
        options.inference_mode = False
        with peft_warnings_ignored(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed or 0)
            self.model: PeftModel = get_peft_model(base, options)
        self.model.eval()
        if weights is not None:
            self.set_weights(weights)

    def matrices(self, name: str) -> tuple[Tensor, Tensor]:
        """A and B of one linear."""
        adapted: Any = cast(nn.Module, self.model.base_model.model).get_submodule(name)
        return adapted.lora_A["default"].weight, adapted.lora_B["default"].weight

    def set_weights(self, weights: AdapterWeights) -> None:
        """Copies the A and B of every linear."""
        with torch.no_grad():
            for name, pair in weights.linears.items():
                for own, given in zip(self.matrices(name), pair, strict=True):
                    own.copy_(given)

    def parameters(self) -> list[Tensor]:
        """The trainable parameters: every A and B."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def logprobs(self, tokens: Sequence[int], targets: Tensor) -> Tensor:
        """log softmax of one sequence's logits at targets [N] or [N, K]."""
        logits: Tensor = self.model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
        wanted = targets if targets.ndim == 2 else targets[:, None]
        return logits.log_softmax(-1).gather(1, wanted).reshape(targets.shape)


def largest_difference(actual: dict[str, tuple[Tensor, Tensor]], expected: dict[str, tuple[Tensor, Tensor]]) -> float:
    """Largest relative difference in norm over the matrices of all linears."""
    assert actual.keys() == expected.keys()
    return max(
        float((mine - theirs).norm() / theirs.norm().clamp(min=1e-12))
        for name in expected
        for mine, theirs in zip(actual[name], expected[name], strict=True)
    )
