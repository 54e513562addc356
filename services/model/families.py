"""Families of base models that are served: a row each, and the check that a model is of one of them.

A row says where transformers keeps the parts of a family's models and which configuration fields are understood. No
other file names a module of theirs; the rest of the services asks the row, mostly through `BaseModel`. A dense family
with other module names needs a row here and nothing else. A family with a mixer of its own also needs that mixer's
forward over packed rows (see services.model.linear_attention).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from services.core.errors import InvalidArgumentError, quoted
from services.core.linears import ATTENTION_LINEARS, MLP_LINEARS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Keeps = Literal["keys and values", "state"]
"""Memory of a mixer of the tokens before: keys and values of each, or one state that every token changes."""


@dataclass(frozen=True)
class LayerKind:
    """A kind of decoder layer: the module that mixes its tokens."""

    mixer: str
    """Path in the layer."""

    linears: tuple[str, ...]
    """Paths in the mixer of what `train_attn` adapts."""

    keeps: Keeps = "keys and values"


@dataclass(frozen=True)
class FeedForward:
    """The MLP of a decoder layer."""

    path: str
    """Path in the layer."""

    linears: tuple[str, ...]
    """Paths in the MLP of what `train_mlp` adapts."""

    activation: str
    """Attribute of the MLP: the module of its elementwise activation."""


@dataclass(frozen=True)
class Family:
    """A row. Paths are dotted, as `get_submodule` takes them.

    Raises:
        ValueError: two groups of linears share a last name; PEFT tells linears apart by it.
    """

    architectures: tuple[str, ...]
    """Names in config.json, as transformers spells them, of models with an unembedding."""

    kinds: Mapping[str, LayerKind]
    """Layer kinds by their name in `layer_types` of config.json."""

    understood: frozenset[str]
    """Fields of the language model's configuration whose effect is computed, or that have none here."""

    required: Mapping[str, Any] = field(default_factory=dict)
    """Fields that must have a value, also where they are absent and transformers has another default."""

    trunk: str = "model"
    """All of the model but the unembedding."""

    other_trunks: tuple[str, ...] = ()
    """The same in other classes of models with these weights, as adapters that were trained on one name it."""

    layers: str = "layers"
    """The list of decoder layers, in the trunk."""

    embedding: str = "embed_tokens"
    """In the trunk."""

    unembedding: str = "lm_head"
    """The linear that `train_unembed` adapts."""

    feed_forward: FeedForward | None = FeedForward("mlp", MLP_LINEARS, "act_fn")
    """None: the layers have no dense MLP; adapters leave it, and results are not promised bit by bit."""

    activation_field: str = "hidden_act"
    """Field of the configuration that names the MLP's activation."""

    def __post_init__(self) -> None:
        attention, unembed = self.last_names(mlp=False, unembed=False), self.last_names(attention=False, mlp=False)
        names = [*attention, *self.last_names(attention=False, unembed=False), *unembed]
        if len(names) != len(set(names)):
            raise ValueError(f"the last names of adaptable linears must differ (got {', '.join(names)})")

    def last_names(self, *, attention: bool = True, mlp: bool = True, unembed: bool = True) -> tuple[str, ...]:
        """Last names of the adaptable linears of some groups, each name once."""
        paths = [path for kind in self.kinds.values() for path in kind.linears] if attention else []
        if mlp and self.feed_forward is not None:
            paths += self.feed_forward.linears
        if unembed:
            paths.append(self.unembedding)
        return tuple(dict.fromkeys(path.rpartition(".")[2] for path in paths))

    @property
    def layers_path(self) -> str:
        """Path of the list of decoder layers in the whole model."""
        return f"{self.trunk}.{self.layers}"

    def layer_kinds(self, config: PreTrainedConfig) -> tuple[LayerKind, ...]:
        """The kind of each decoder layer; without `layer_types` all have full attention."""
        names = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        return tuple(self.kinds[name] for name in names)

    def linear_paths(self, config: PreTrainedConfig) -> frozenset[str]:
        """Paths in the whole model of every linear that an adapter may touch."""
        paths = {self.unembedding}
        for index, kind in enumerate(self.layer_kinds(config)):
            layer = f"{self.layers_path}.{index}"
            paths.update(f"{layer}.{kind.mixer}.{linear}" for linear in kind.linears)
            if self.feed_forward is not None:
                paths.update(f"{layer}.{self.feed_forward.path}.{linear}" for linear in self.feed_forward.linears)
        return frozenset(paths)


_FULL_ATTENTION = {"full_attention": LayerKind("self_attn", ATTENTION_LINEARS)}
_HYBRID = {**_FULL_ATTENTION, "linear_attention": LayerKind("linear_attn", (), keeps="state")}

_UNDERSTOOD = frozenset(
    {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings", "layer_types"}
    | {"num_attention_heads", "num_key_value_heads", "head_dim", "attention_bias", "attention_dropout"}
    | {"hidden_act", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "initializer_range", "use_cache"}
    | {"pad_token_id", "bos_token_id", "eos_token_id"}
)
_LLAMA = _UNDERSTOOD | {"mlp_bias", "pretraining_tp"}
_QWEN3 = _UNDERSTOOD | {"use_sliding_window", "sliding_window", "max_window_layers"}
_SMOLLM3 = _UNDERSTOOD | {
    "mlp_bias",
    "no_rope_layers",
    "no_rope_layer_interval",
    "use_sliding_window",
    "sliding_window",
}
_SEED_OSS = _LLAMA | {"attention_out_bias", "residual_dropout"}
_QWEN3_5 = _UNDERSTOOD | {"linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim"}
_QWEN3_5 |= {"linear_num_key_heads", "linear_num_value_heads"}

_NO_WINDOW = {"sliding_window": None}
"""Where transformers' default is a window, the configuration has to say that there is none."""

SUPPORTED_FAMILIES: dict[str, Family] = {
    "llama": Family(("LlamaForCausalLM",), _FULL_ATTENTION, _LLAMA),
    "mistral": Family(("MistralForCausalLM",), _FULL_ATTENTION, _UNDERSTOOD, required=_NO_WINDOW),
    "ministral3": Family(("Ministral3ForCausalLM",), _FULL_ATTENTION, _UNDERSTOOD, required=_NO_WINDOW),
    "olmo2": Family(("Olmo2ForCausalLM",), _FULL_ATTENTION, _UNDERSTOOD),
    "qwen2": Family(("Qwen2ForCausalLM",), _FULL_ATTENTION, _QWEN3),
    "seed_oss": Family(("SeedOssForCausalLM",), _FULL_ATTENTION, _SEED_OSS),
    "smollm3": Family(("SmolLM3ForCausalLM",), _FULL_ATTENTION, _SMOLLM3),
    "qwen3": Family(("Qwen3ForCausalLM",), _FULL_ATTENTION, _QWEN3),
    "qwen3_5": Family(
        ("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"),
        _HYBRID,
        _QWEN3_5,
        other_trunks=("model.language_model",),
    ),
    "qwen3_5_text": Family(("Qwen3_5ForCausalLM",), _HYBRID, _QWEN3_5),
}
"""Rows by `model_type` of config.json. Of qwen3_5, which also sees images, the language model is served."""

_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True)
class KVShape:
    """Size of the keys and values that a model keeps of a token."""

    layer_count: int
    head_count: int
    """Of the keys, and of the values."""

    head_size: int


def kv_shape(config: PreTrainedConfig) -> KVShape:
    """Size of the keys and values of a token, in a model whose layers all have full attention."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return KVShape(config.num_hidden_layers, config.num_key_value_heads, head_dim)


def check_architecture(config: dict[str, Any], name: str) -> None:
    """Refuses what would be computed wrongly: what `check_layout` refuses, and fields that are not understood here.

    Args:
        config: content of the model's config.json.
        name: the model's name, for the error.

    Raises:
        InvalidArgumentError: names what is not supported.
    """
    family = check_layout(config, name)
    language = config.get("text_config") or config
    if fields := _other_fields(language, language.get("model_type", config["model_type"]), family):
        described = ", ".join(f"{name} = {quoted(language.get(name, 'not set'))}" for name in fields)
        raise _refusal(name, f"with {described}", ", without options that are not understood here")


def check_layout(config: dict[str, Any], name: str) -> Family:
    """The row of a model's family; needs no transformers. Refuses other families and kinds of layers, quantized weights
    and moving rotary frequencies.

    Args:
        config: content of the model's config.json.
        name: the model's name, for the error.

    Raises:
        InvalidArgumentError: names what is not supported.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in SUPPORTED_FAMILIES:
        raise _refusal(name, f"of the family {model_type!r}")
    family = SUPPORTED_FAMILIES[model_type]
    other = [
        architecture for architecture in config.get("architectures") or () if architecture not in family.architectures
    ]
    if other:
        rule = f"; of {model_type} {' and '.join(family.architectures)}"
        raise _refusal(name, f"with the architecture {other[0]}", rule)
    language = config.get("text_config") or config
    kinds = sorted(set(language.get("layer_types") or ()) - family.kinds.keys())
    if language.get("use_sliding_window") and not kinds:
        kinds = ["sliding_attention"]
    if kinds:
        rule = f"; of {model_type} layers with {' and '.join(sorted(family.kinds))}"
        raise _refusal(name, f"with layers of the kind {', '.join(kinds)}", rule)
    rope_type = _rope_type(language)
    if rope_type in _BATCH_DEPENDENT_ROPE:
        rule = ", with rotary frequencies that do not depend on the longest sequence of a batch"
        raise _refusal(name, f"with rope_type {rope_type!r}", rule)
    if config.get("quantization_config"):
        raise _refusal(name, "with quantized weights")
    return family


def _refusal(name: str, got: str, rule: str = "") -> InvalidArgumentError:
    families = ", ".join(SUPPORTED_FAMILIES)
    rule = f"a full-precision dense model of the families {families}{rule}"
    return InvalidArgumentError.must_be("base_model", rule, f"{name} {got}")


def _rope_type(config: dict[str, Any]) -> str | None:
    """Scaling of the rotary frequencies, by either of the names that configurations use."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rope.get("rope_type", rope.get("type"))


def _other_fields(language: dict[str, Any], model_type: str, family: Family) -> list[str]:
    """Fields that transformers reads in a language model's configuration, not understood here and not at their default.

    Fields that transformers does not declare for the family change nothing there either.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    if model_type not in CONFIG_MAPPING:
        return []
    common = {item.name for item in dataclasses.fields(PreTrainedConfig)}
    declared = {item.name: item.default for item in dataclasses.fields(CONFIG_MAPPING[model_type])}
    return [
        name
        for name in sorted(declared.keys() - common - family.understood)
        if language.get(name, declared[name]) not in _neutral(name, declared[name], family)
    ]


def _neutral(name: str, default: Any, family: Family) -> tuple[Any, ...]:
    """Values of a field that change nothing."""
    return (family.required[name],) if name in family.required else (None, default)
