"""A dense family that transformers does not have, none of whose modules has the usual name; and its row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, LlamaConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from services.model.families import SUPPORTED_FAMILIES, Family, FeedForward, LayerKind
from testing.tiny_models import EOS, HIDDEN_SIZE, VOCAB_SIZE


class RenamedConfig(LlamaConfig):
    model_type = "renamed"
    nonlinearity: str = "silu"
    logit_scale: float = 1.0


class Mixer(nn.Module):
    is_causal = True

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        heads, key_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.config, self.layer_idx, self.width = config, index, width
        self.num_key_value_groups = heads // key_heads
        self.wq = nn.Linear(config.hidden_size, heads * width, bias=True)
        self.wk = nn.Linear(config.hidden_size, key_heads * width, bias=True)
        self.wv = nn.Linear(config.hidden_size, key_heads * width, bias=False)
        self.wo = nn.Linear(heads * width, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], **options: Any) -> Tensor:
        shape = (*hidden.shape[:-1], -1, self.width)
        q, k, v = (linear(hidden).view(shape).transpose(1, 2) for linear in (self.wq, self.wk, self.wv))
        q, k = apply_rotary_pos_emb(q, k, *rotation)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)  # noqa: SLF001 - transformers gives it no public name
        mixed, _ = attend(self, q, k, v, None, dropout=0.0, scaling=self.width**-0.5, **options)
        output: Tensor = self.wo(mixed.reshape(*hidden.shape[:-1], -1))
        return output


class Dense(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.curve = ACT2FN[config.nonlinearity]

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.w2(self.curve(self.w1(hidden)) * self.w3(hidden))
        return output


class Block(nn.Module):
    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        self.attn = Mixer(config, index)
        self.ff = Dense(config)
        self.norm1 = LlamaRMSNorm(config.hidden_size)
        self.norm2 = LlamaRMSNorm(config.hidden_size)

    def forward(self, hidden: Tensor, **options: Any) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden), **options)
        return hidden + self.ff(self.norm2(hidden))


class RenamedModel(PreTrainedModel):
    config_class = RenamedConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True
    _supports_attention_backend = True


class Backbone(RenamedModel):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([Block(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size)
        self.rotary = LlamaRotaryEmbedding(config=config)
        self.post_init()

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, use_cache: bool = False, **options: Any
    ) -> BaseModelOutputWithPast:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        hidden = self.tokens(input_ids)
        rotation = self.rotary(hidden, position_ids)
        for block in self.blocks:
            hidden = block(hidden, rotation=rotation, **options)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


class RenamedForCausalLM(RenamedModel, GenerationMixin):
    _tied_weights_keys = {"output.weight": "backbone.tokens.weight"}  # noqa: RUF012 - as transformers reads it

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.backbone = Backbone(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.output

    def forward(self, input_ids: Tensor, **options: Any) -> CausalLMOutputWithPast:
        keep = {name: options[name] for name in ("position_ids", "use_cache") if name in options}
        return CausalLMOutputWithPast(logits=self.output(self.backbone(input_ids, **keep).last_hidden_state))


AutoConfig.register("renamed", RenamedConfig, exist_ok=True)
AutoModelForCausalLM.register(RenamedConfig, RenamedForCausalLM, exist_ok=True)

RENAMED = Family(
    architectures=("RenamedForCausalLM",),
    kinds={"full_attention": LayerKind("attn", ("wq", "wk", "wv", "wo"))},
    understood=SUPPORTED_FAMILIES["llama"].understood | {"nonlinearity"},
    trunk="backbone",
    layers="blocks",
    embedding="tokens",
    unembedding="output",
    feed_forward=FeedForward("ff", ("w1", "w3", "w2"), "curve"),
    activation_field="nonlinearity",
)


def renamed_config(*, tied: bool) -> RenamedConfig:
    """Sizes no two of which are equal; `hidden_act`, which the model does not read, is another activation."""
    return RenamedConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        hidden_act="gelu",
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=0,
    )
